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

    def has_any(folder: Path) -> bool:
        return any((folder / file).is_file() for file in needed)

    wanted = " or ".join(needed)
    folder = Path(name)
    if folder.is_dir():
        if not has_any(folder):
            raise ValueError(f"{key}={name} holds no {wanted}: give another folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    how: Any = {"revision": revision} if revision else {}
    why = f"it has no {wanted} on the Hugging Face hub"
    if not download:
        why = "nothing is fetched with data.download=false"
    cause: Exception | None = None
    for offline in (True, False) if download else (True,):
        try:
            with quietly():
                where = snapshot_download(
                    repository, allow_patterns=list(files), local_files_only=offline, **how
                )
        except HFValidationError:
            raise ValueError(f"{key}={name} is no folder here, and no name on a hub") from None
        except Exception as error:  # whatever the network and its clients come up with
            if not offline:
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                why, cause = f"fetching it from the Hugging Face hub failed ({said[:200]})", error
            continue
        if has_any(Path(where)):
            COMMITS[name] = f"{repository}@{Path(where).name}"
            return Path(where)
    raise ValueError(
        f"{key}={name} is no folder here, and {why}: put {wanted} into a folder, and give the"
        f" folder as {key}=FOLDER"
    ) from cause


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
