"""Compose the config of a run without running it, also inside a command that Hydra itself runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from npas import config as schema


@functools.cache
def compose(*words: str) -> schema.Config:
    """Compose and check the config that `npas-train` would run with these words."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    from npas import models, tasks

    with _own_hydra(), initialize_config_module("npas.configs", version_base="1.3"):
        composed = OmegaConf.to_container(hydra_compose("train", list(words)), resolve=True)
    assert isinstance(composed, dict)
    raw: dict[str, Any] = {str(key): value for key, value in composed.items()}
    return schema.load_config(
        raw,
        models.family(raw["model"]["family"]).Config,
        tasks.family(raw["task"]["family"]).Config,
    )


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the Hydra of a running command: there is only one, and it composes one config."""
    from hydra.core.global_hydra import GlobalHydra

    current = GlobalHydra.instance()
    hydra, current.hydra = current.hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
