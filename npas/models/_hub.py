"""Find the files of a published network or tokenizer in a folder or on the Hugging Face hub."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from npas.utils.files import reason

# What this process read from the hub: "name@commit" by the requested name.
COMMITS: dict[str, str] = {}
# The files with a network's weights: whole, or an index of parts.
WHOLE = ("model.safetensors", "model.safetensors.index.json")


def find_folder(
    key: str, name: str, files: Sequence[str], needed: Sequence[str], *, download: bool = True
) -> Path:
    """Return a folder with `files` of `name`: a folder on disk, or a snapshot in the hub's cache.

    "name@revision" is a commit, tag or branch; the default is the newest. `COMMITS` records the
    commit. `files` may be patterns; the folder must have at least one of `needed`. Cached files are
    used without network access; without `download`, only they are. Raises ValueError, with the
    config's `key`, if the files cannot be found or downloaded.
    """

    def has_any(folder: Path) -> bool:
        return any((folder / file).is_file() for file in needed)

    required = " or ".join(needed)
    if (folder := Path(name)).is_dir():
        if not has_any(folder):
            raise ValueError(f"{key}={name} holds no {required}: set another folder")
        return folder
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    how: Any = {"allow_patterns": list(files), **({"revision": revision} if revision else {})}
    why, attempts = "nothing is downloaded with data.download=false", [True, False][: 1 + download]
    if name.count("/") > 1:
        why, attempts = "it cannot be had from the Hugging Face hub, where names are USER/NAME", []
    for offline in attempts:
        try:
            with quietly():
                snapshot = Path(snapshot_download(repository, local_files_only=offline, **how))
            if has_any(snapshot):
                COMMITS[name] = f"{repository}@{snapshot.name}"
                return snapshot
            if download:
                why = f"it has no {required} on the Hugging Face hub"
        except Exception as error:  # network and clients raise many kinds of errors
            if not offline:
                why = f"it cannot be had from the Hugging Face hub ({reason(error)})"
    fresh = ", or null for fresh weights" if key == "model.pretrained" else ""
    raise ValueError(
        f"{key}={name} is not a folder, and {why}: put {required} into a folder, and set"
        f" {key}=FOLDER{fresh}"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the hub's client and transformers; errors are still raised."""
    import huggingface_hub.utils
    from transformers.utils import logging as of_transformers

    hub: Any = huggingface_hub.utils
    with ExitStack() as undo:
        for name in ("huggingface_hub", "transformers"):
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not hub.are_progress_bars_disabled():
            undo.callback(hub.enable_progress_bars)
        if of_transformers.is_progress_bar_enabled():
            undo.callback(of_transformers.enable_progress_bar)
        hub.disable_progress_bars()
        of_transformers.disable_progress_bar()
        yield


@contextmanager
def reading(what: str, remedy: str = "get it again") -> Iterator[None]:
    """Read a library's files quietly, and convert the many kinds of errors of broken ones."""
    try:
        with quietly():
            yield
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({reason(error)}): {remedy}") from error


def load(
    what: str, kind: Any, folder: Path, may_lack: Callable[[Any, str], bool], **how: Any
) -> Any:
    """Load a network of class `kind` of transformers, in train mode, float32.

    Parameters that the files may lack, by network and name, are initialized anew. Raises ValueError
    if the files lack others or cannot be read.
    """
    import torch

    how |= {"dtype": torch.float32, "output_loading_info": True}
    with reading(what):
        network, info = kind.from_pretrained(folder, **how)
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if absent := sorted(key for key in missing if not may_lack(network, key)):
        raise ValueError(
            f"{what} lacks {absent[0]} ({len(absent)} parameters in all): its weights are those of"
            " another network"
        )
    return network.train()
