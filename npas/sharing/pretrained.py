"""Let `save_pretrained` write a shared network so that nobody reads it as a dense one.

The files of transformers' networks become such as `npas.load` reads too, and `from_pretrained`
refuses them: it knows nothing of banks and would fill the layers at random. The `save_pretrained`
of other libraries, and of a part, is refused. Known by name, so that nothing is imported.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from npas.sharing import audit, storage
from npas.sharing.loops import refuse_loops

# transformers' name for the file of weights. It refuses one of no known suffix, and shows it.
FILE_KEY = "transformers_weights"
MARK = "none: this is a shared network, read it with npas.load(directory, Model(config))"


def guard_saving(root: nn.Module) -> None:
    """Put the guards before every `save_pretrained` that would lack what `npas.load` needs."""
    for module in root.modules():
        if callable(getattr(type(module), "save_pretrained", None)):
            reads = any("_npas" in part.__dict__ for part in module.modules())
            if module is root and _is_transformers(module):
                module.__dict__["save_pretrained"] = partial(_save, module)
            elif module is root or reads:
                module.__dict__["save_pretrained"] = _refuse


def free_saving(modules: Iterable[nn.Module]) -> None:
    """Take the guards away."""
    for module in modules:
        guard = module.__dict__.get("save_pretrained")
        if guard is _refuse or getattr(guard, "func", None) is _save:
            del module.__dict__["save_pretrained"]


def _is_transformers(module: nn.Module) -> bool:
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
    return ("transformers", "PreTrainedModel") in names


def _save(
    root: Any,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    *arguments: Any,
    **options: Any,
) -> None:
    signature = inspect.signature(type(root).save_pretrained)
    call = signature.bind(root, save_directory, is_main_process, *arguments, **options)
    given = {**call.arguments, **call.arguments.get("kwargs", {})}
    if given.get("push_to_hub"):
        raise ValueError(
            "push_to_hub=True would upload before the files are whole: save without it, then call"
            " push_to_hub"
        )
    for name in ("variant", "distributed_checkpoint"):
        if given.get(name):
            raise ValueError(f"npas.load reads {storage.WEIGHTS_FILE} alone: save without {name}")
    if "max_shard_size" in given:
        warnings.warn(
            f"max_shard_size is ignored: npas.load reads one file, {storage.WEIGHTS_FILE}",
            stacklevel=2,
        )
    if "max_shard_size" in signature.parameters:
        call.arguments["max_shard_size"] = sys.maxsize
    refuse_loops(root)
    shared = root.__dict__["_npas_shared"]
    if given.get("state_dict") is None:  # else a wrapper gathered it, which names parts otherwise
        audit.refuse_unloadable(audit.follow(shared), "save_pretrained")
    type(root).save_pretrained(*call.args, **call.kwargs)
    if is_main_process:
        directory = Path(save_directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        storage.write_json(directory / "config.json", config | {FILE_KEY: MARK})
        storage.describe(directory, "allocation.json", shared.allocation.to_dict())


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "save_pretrained knows nothing of banks: npas.save the whole shared network, or"
        " npas.materialize it first"
    )
