"""Find the files of a published network or tokenizer: in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What was read from the hub in this process: "name@commit" by the name that was asked for.
COMMITS: dict[str, str] = {}


def find_folder(
    key: str, name: str, files: Sequence[str], needed: Sequence[str], *, download: bool = True
) -> Path:
    """Return the folder that holds `files` of `name`: one on disk, or the hub's, kept in its cache.

    "name@revision" asks for a commit, tag or branch; without one, the newest. `COMMITS` then tells
    which commit it was.
    `files` may hold patterns; a folder will do if it has any of `needed`. What is in the cache
    already needs no network, and without `download` none is used. ValueError, naming the config's
    `key` and the remedy, if it cannot be had.
    """
    folder = Path(name)
    if folder.is_dir():
        if not _has_any(folder, needed):
            raise ValueError(f"{key}={name} holds no {' or '.join(needed)}: give another folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    how: Any = {"revision": revision} if revision else {}
    try:
        with quietly():
            for offline in (True, False) if download else (True,):
                try:
                    where = snapshot_download(
                        repository,
                        allow_patterns=list(files),
                        local_files_only=offline,
                        **how,
                    )
                except FileNotFoundError:  # nothing in the cache, or no network either
                    if offline:
                        continue
                    raise
                if _has_any(Path(where), needed):
                    COMMITS[name] = f"{repository}@{Path(where).name}"
                    return Path(where)
    except HFValidationError:
        raise ValueError(f"{key}={name} is no folder here, and no name on a hub") from None
    except Exception as error:  # whatever the network and its clients come up with
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{key}={name} is no folder here, and fetching it from the Hugging Face hub failed"
            f" ({reason[:200]}): fetch {', '.join(files)} elsewhere, and give the folder as"
            f" {key}=FOLDER"
        ) from error
    if not download:
        raise ValueError(
            f"{key}={name} is no folder here, and nothing is fetched with data.download=false: put"
            f" {' or '.join(needed)} into a folder and give it as {key}=FOLDER"
        )
    raise ValueError(f"{key}={name} on the Hugging Face hub has no {' or '.join(needed)}")


def _has_any(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the hub's client and transformers; errors are still raised."""
    import huggingface_hub.utils
    from transformers.utils import logging as of_transformers

    hub: Any = huggingface_hub.utils
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels, bars = [logger.level for logger in loggers], not hub.are_progress_bars_disabled()
    of_loading = of_transformers.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        hub.disable_progress_bars()
        of_transformers.disable_progress_bar()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hub.enable_progress_bars()
        if of_loading:
            of_transformers.enable_progress_bar()
