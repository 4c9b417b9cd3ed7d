"""Guards on methods that expect dense parameters, which a shared network no longer has.

`guard` replaces methods of a network's modules: of Hugging Face models those that resize,
re-initialize, tie and save, of submodules `requires_grad_`. Hooks handle state dicts of dense
networks and of other plans. A guard does the right thing, warns, or says what to call instead.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from npas.sharing.layers import PREFIX, SCALES, indices_name
from npas.sharing.runtime import audit, storage
from npas.sharing.runtime.loops import refuse_folded
from npas.sharing.torch_private import caller, level_outside

# The config's key for the weights' file name. transformers shows an unknown name in its error.
FILE_KEY = "transformers_weights"
MARK = "none: this is a shared network, read it with npas.load(directory, Model(config))"


def guard(root: nn.Module) -> None:
    """Add the guards to a shared network."""
    for module in root.modules():
        own = module.__dict__
        reads = any("_npas" in part.__dict__ for part in module.modules())  # generated weights
        names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
        for name, method in _METHODS.items():
            if callable(getattr(type(module), name, None)):
                own[name] = method
        if callable(getattr(type(module), "save_pretrained", None)) and (reads or module is root):
            is_whole = module is root and ("transformers", "PreTrainedModel") in names
            own["save_pretrained"] = partial(_save_pretrained, module) if is_whole else _refuse_save
        if module is not root and reads:
            own["requires_grad_"] = partial(_requires_grad_, module)
    root.register_load_state_dict_pre_hook(_refuse_others)
    root.register_state_dict_post_hook(_note_plan)


def remove_guards(root: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Remove the guards from a network and these modules."""
    for module in modules:
        for name in _GUARDED & module.__dict__.keys():
            own = module.__dict__[name]
            if getattr(own, "func", own) in _OURS:
                del module.__dict__[name]
    for hooks in (root._load_state_dict_pre_hooks, root._state_dict_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_refuse_others, _note_plan):
                del hooks[key]


def _stay_tied(*_: object, **__: object) -> None:
    """Do nothing: tied weights are one generated weight already."""


def _refuse_resizing(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "a shared network's size is fixed: resize the embeddings before npas.share, or"
        " npas.materialize the network first"
    )


def _refuse_initializing(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "npas.share has initialized the network: pass it another seed to initialize differently"
    )


_METHODS: dict[str, Callable[..., object]] = {
    "tie_weights": _stay_tied,
    "resize_token_embeddings": _refuse_resizing,
    "init_weights": _refuse_initializing,
}


def _refuse_save(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "save_pretrained cannot save banks: npas.save the whole shared network, or"
        " npas.materialize it first"
    )


def _save_pretrained(
    root: Any, save_directory: str | os.PathLike[str], is_main_process: bool = True, **options: Any
) -> None:
    """Save as transformers does, but all weights in one file; add the plan for `npas.load`."""
    for name in ("push_to_hub", "variant", "distributed_checkpoint"):
        if options.get(name):
            raise ValueError(f"npas.load reads only {storage.WEIGHTS_FILE}: save without {name}")
    refuse_folded(root)
    shared = root.__dict__["_npas_shared"]
    if options.get("state_dict") is None:  # else a wrapper gathered it, with other names
        audit.refuse_unloadable(audit.follow(shared), "save_pretrained")
    options |= {"max_shard_size": sys.maxsize, "save_original_format": False}  # the plan's names
    type(root).save_pretrained(root, save_directory, is_main_process, **options)
    if is_main_process:
        config = Path(save_directory) / "config.json"
        marked = json.loads(config.read_text(encoding="utf-8")) | {FILE_KEY: MARK}
        config.write_text(json.dumps(marked, indent=1) + "\n", encoding="utf-8")
        storage.describe(config.parent, "allocation.json", shared.allocation.to_dict())


def _requires_grad_(part: nn.Module, requires_grad: bool = True) -> nn.Module:
    warnings.warn(
        "requires_grad_() of a part does not reach the weights that it reads from the network's"
        " banks: to train or freeze a part alone, share without it (exclude) or give it a group of"
        " its own, and train or freeze that group's bank and coefficients",
        stacklevel=2,
    )
    return type(part).requires_grad_(part, requires_grad)


def _note_plan(root: nn.Module, state: object, prefix: str, metadata: dict[str, Any]) -> None:
    """Write the plan's digest and scales to a state dict's metadata, which `torch.save` keeps."""
    shared = root.__dict__["_npas_shared"]
    metadata["npas_plan"] = shared.plan
    metadata["npas_scales"] = [layer.scale for layer in shared.allocation.layers]


def _refuse_others(
    root: nn.Module,
    state: dict[str, Any],  # a copy of the user's
    prefix: str,
    metadata: Mapping[str, Any],
    *others: Any,
) -> None:
    """Report a state dict of a dense network, of another plan or with indices that are no integers;
    take the scales of an equal plan.

    Reports are errors if the loading is strict, else warnings. Which layers have one scale depends
    on the dense network's values, so an equal plan may have other scales.
    """
    shared, errors = root.__dict__["_npas_shared"], others[-1]
    layers = shared.allocation.layers
    rounded = [
        name
        for name in (prefix + indices_name(i) for i in shared.reading.tables)
        if name in state and state[name].is_floating_point()
    ]
    dense = [layer.name for layer in layers if layer.templates and prefix + layer.name in state]
    has_banks = any(name.startswith(f"{prefix}{PREFIX}bank_") for name in state)
    if dense and not has_banks:
        reason = (
            f"a shared network cannot load the dense weights of its {len(dense)} shared layers"
            f" ({dense[0]}, ...): load them into the dense network, and npas.share it with"
            " init='fit'"
        )
    elif has_banks and metadata.get("npas_plan", shared.plan) != shared.plan:
        reason = (
            "the state dict is of a network that shares in another way: share with the same"
            " arguments (groups, seed, ...), or use npas.save and npas.load"
        )
    elif rounded:
        for name in rounded[1:]:
            del state[name]
        first = state.pop(rounded[0])
        reason = (
            f"{rounded[0]} must be integers, not {first.dtype}, which rounds indices"
            " into a codebook: convert only the floating-point tensors of a state dict"
        )
    else:
        scale_of, scales = metadata.get("npas_scales"), state.get(prefix + SCALES)
        if scale_of and scales is not None and 1 + max(scale_of) == len(scales):
            shared.take_scales(scale_of)
        return
    frame = caller(1)  # torch passes strict=True to its hooks in any case
    while frame is not None and frame.f_code.co_name != "load_state_dict":
        frame = frame.f_back
    if frame is None or frame.f_locals.get("strict", True):
        errors.append(reason)
    else:
        warnings.warn(reason, stacklevel=level_outside())


_OURS = (*_METHODS.values(), _refuse_save, _save_pretrained, _requires_grad_)
_GUARDED = {*_METHODS, "save_pretrained", "requires_grad_"}
