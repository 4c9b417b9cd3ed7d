"""Compose the config of a run without running it, and count its parameters and FLOPs."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas import models, tasks
from npas.config import DENSE, Config

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from npas.sharing import Allocation


@functools.cache
def compose(*overrides: str) -> Config:
    """Compose and check the config of `npas-train` with these overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    plain = [one for one in overrides if PLAIN.match(one)]
    composed = _composed(*(one for one in overrides if one not in plain)).copy()
    for override in OverridesParser.create().parse_overrides(plain):
        OmegaConf.update(composed, override.key_or_group, override.value())
    raw: Any = OmegaConf.to_container(composed, resolve=True)
    families = models.family(raw["model"]["family"]), tasks.family(raw["task"]["family"])
    return schema.load_config(raw, *(family.Config for family in families))


# Overrides of single values, which are fast. Others choose files or add keys: 0.1 s each, cached.
PLAIN = re.compile(r"(budget|seed|\w+(\.\w+)+)=")


@functools.cache
def _composed(*overrides: str) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with suspended_hydra(), initialize_config_module("npas.configs", version_base="1.3"):
        return hydra_compose("train", list(overrides))


@contextlib.contextmanager
def suspended_hydra() -> Iterator[None]:
    """Suspend the Hydra instance of a running command or of a caller, to compose with another."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    outer, settings = GlobalHydra.instance(), HydraConfig.instance()
    hydra, cfg = outer.hydra, settings.cfg
    outer.hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, settings.cfg = hydra, cfg


@functools.cache
def planned_count(*overrides: str) -> int:
    """Count the parameters that the run of these overrides ends with, exactly.

    Its groups must not need a search. Initial weights are not read. Tensors are allocated only if
    filters are pruned.
    """
    from npas.sharing import count_parameters
    from npas.training import pruning

    starts = ("model.pretrained=", "sharing.init=")
    overrides = tuple(one for one in overrides if not one.startswith(starts))
    config = compose(*overrides)
    if config.budget == DENSE:
        count = count_parameters(_network(config))
    else:
        count = planned(*overrides).budget.used
    if config.pruning.method is None:
        return count
    return pruning.planned(config, _spec(config), count).parameters


@functools.cache
def planned(*overrides: str) -> Allocation:
    """Return the allocation of the run of these overrides, whose groups must not need a search."""
    from npas.sharing import plan
    from npas.training.experiment import plan_keywords

    config = compose(*overrides)
    model = _network(config)
    return plan(model, config.budget, **plan_keywords(config, None))


@functools.cache
def planned_flops(*overrides: str) -> int:
    """Count the FLOPs per input of the network that the run of these overrides exports."""
    from npas.tasks.base import inference_flops
    from npas.training import pruning

    config = compose(*overrides)
    if config.pruning.method is not None:
        return pruning.planned(config, _spec(config), 0).flops
    return inference_flops(_network(config), _spec(config))


def _network(config: Config) -> nn.Module:
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        """Skip random initialization of meta tensors, for which torch imports its compiler."""

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            drawing = func in (torch.Tensor.normal_, torch.Tensor.uniform_)
            return args[0] if drawing else func(*args, **(kwargs or {}))

    spec = _spec(config)
    with torch.device("meta"), Undrawn():
        return models.build(config.model, spec)


def _spec(config: Config) -> models.InputSpec:
    from npas.training.experiment import build_task

    return build_task(config).spec
