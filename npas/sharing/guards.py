"""Guards on methods that would miss what a shared network keeps in its banks.

Libraries look for dense parameters that a shared network no longer has: Hugging Face models
resize, re-initialize and save themselves, optimizers ask a part for its parameters, a dense state
dict is loaded. Each guard does the right thing, or says in one line what to call instead.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from npas.sharing import audit, storage
from npas.sharing.layers import PREFIX
from npas.sharing.loops import refuse_loops
from npas.sharing.torch_private import caller, level_outside

# transformers' name for the file of weights. It refuses one of no known suffix, and shows it.
FILE_KEY = "transformers_weights"
MARK = "none: this is a shared network, read it with npas.load(directory, Model(config))"


def guard(root: nn.Module) -> None:
    """Put the guards on a network that is now shared."""
    for module in root.modules():
        own = module.__dict__
        reads = any("_npas" in part.__dict__ for part in module.modules())
        names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
        for name, method in _METHODS.items():
            if callable(getattr(type(module), name, None)):
                own[name] = method
        if callable(getattr(type(module), "save_pretrained", None)) and (reads or module is root):
            is_whole = module is root and ("transformers", "PreTrainedModel") in names
            own["save_pretrained"] = partial(_save_pretrained, module) if is_whole else _refuse_save
        if module is not root and reads:
            own["parameters"] = partial(_parameters, module)
            own["requires_grad_"] = partial(_requires_grad_, module)
    root.register_load_state_dict_pre_hook(_refuse_dense)


def remove_guards(root: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Remove the guards from the modules of a network that is no longer shared."""
    for module in modules:
        for name in _GUARDED & module.__dict__.keys():
            own = module.__dict__[name]
            if getattr(own, "func", own) in _OURS:
                del module.__dict__[name]
    for key, hook in list(root._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", None) is _refuse_dense:
            del root._load_state_dict_pre_hooks[key]


def _stay_tied(*_: object, **__: object) -> None:
    """Do nothing: weights that were tied are one generated weight."""


def _refuse_resizing(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "a shared network's size is fixed: resize the embeddings before npas.share, or"
        " npas.materialize the network first"
    )


def _refuse_initializing(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "npas.share has initialized the network: for another start give it another seed"
    )


_METHODS: dict[str, Callable[..., object]] = {
    "tie_weights": _stay_tied,
    "resize_token_embeddings": _refuse_resizing,
    "init_weights": _refuse_initializing,
}


def _refuse_save(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "save_pretrained knows nothing of banks: npas.save the whole shared network, or"
        " npas.materialize it first"
    )


def _save_pretrained(
    root: Any,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    **options: Any,
) -> None:
    """Write what transformers writes, in the one file that `npas.load` reads, and the plan."""
    for name in ("push_to_hub", "variant", "distributed_checkpoint"):
        if options.get(name):
            raise ValueError(
                f"npas.load reads {storage.WEIGHTS_FILE} alone, once it is whole: save without"
                f" {name}"
            )
    refuse_loops(root)
    shared = root.__dict__["_npas_shared"]
    if options.get("state_dict") is None:  # else a wrapper gathered it, which names parts otherwise
        audit.refuse_unloadable(audit.follow(shared), "save_pretrained")
    options["max_shard_size"] = sys.maxsize
    type(root).save_pretrained(root, save_directory, is_main_process, **options)
    if is_main_process:
        config = Path(save_directory) / "config.json"
        marked = json.loads(config.read_text(encoding="utf-8")) | {FILE_KEY: MARK}
        config.write_text(json.dumps(marked, indent=1) + "\n", encoding="utf-8")
        storage.describe(config.parent, "allocation.json", shared.allocation.to_dict())


# These go through a network's parts for their own book-keeping, over and over.
_LIBRARIES = (
    *("torch", "npas", "transformers", "accelerate", "peft", "deepspeed"),
    *("lightning", "pytorch_lightning", "lightning_fabric"),
)


# Not named_parameters, of which torch.compile demands that it be a method.
def _parameters(part: nn.Module, recurse: bool = True) -> Iterator[nn.Parameter]:
    """Return the parameters, and warn if more than the first is asked for.

    `next(part.parameters()).device` is a usual question, and no sign of training.
    """
    found = type(part).parameters(part, recurse)
    warn = _warning(part, recurse, "parameters()", "lacks")
    return found if warn is None else _after_first(found, warn)


def _after_first(found: Iterator[nn.Parameter], warn: Callable[[], None]) -> Iterator[nn.Parameter]:
    first = next(found, None)
    if first is not None:
        yield first
    warn()
    yield from found


def _requires_grad_(part: nn.Module, requires_grad: bool = True) -> nn.Module:
    warn = _warning(part, True, "requires_grad_()", "does not reach")
    if warn is not None:
        warn()
    return type(part).requires_grad_(part, requires_grad)


def _warning(part: nn.Module, recurse: bool, method: str, what: str) -> Callable[[], None] | None:
    """Return what warns at the line that asks; None for a library's that is not there to freeze.

    And where the part reads no bank any more.
    """
    if torch.compiler.is_compiling():
        return None
    asking = caller(2)
    library = asking.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES
    if "freeze" not in asking.f_code.co_name and (library or not recurse):
        return None
    if not any("_npas" in module.__dict__ for module in part.modules()):
        return None
    return partial(
        warnings.warn_explicit,
        f"{method} of a part {what} the weights that it reads from the network's banks: to train"
        " or freeze a part alone, share without it (exclude) or give it a group of its own, and"
        " train or freeze that group's bank and coefficients",
        UserWarning,
        asking.f_code.co_filename,
        asking.f_lineno,
        registry=asking.f_globals.setdefault("__warningregistry__", {}),
    )


def _refuse_dense(root: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Add to what a strict loading raises, and warn where it would leave out the dense weights."""
    layers = root.__dict__["_npas_shared"].allocation.layers
    dense = [layer.name for layer in layers if layer.templates and prefix + layer.name in state]
    if not dense or any(name.startswith(f"{prefix}{PREFIX}bank_") for name in state):
        return
    reason = (
        f"the weights of {len(dense)} shared layers ({dense[0]}, ...) are a dense network's, which"
        " a shared one cannot load: load them into the dense network, and npas.share it with"
        " init='fit'"
    )
    frame = caller(1)  # torch tells its hooks that every loading is strict
    while frame is not None and frame.f_code.co_name != "load_state_dict":
        frame = frame.f_back
    if frame is None or frame.f_locals.get("strict", True):
        others[-1].append(reason)
    else:
        warnings.warn(f"{reason}; the banks stay as they are", stacklevel=level_outside())


_OURS = (*_METHODS.values(), _refuse_save, _save_pretrained, _parameters, _requires_grad_)
_GUARDED = {*_METHODS, "save_pretrained", "parameters", "requires_grad_"}
