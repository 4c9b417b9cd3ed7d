"""Make a network's layers read generated weights: a property of a subclass of their class.

Nothing else about a layer changes. Its dense parameter is gone, so that it is neither trained nor
saved; `detach` puts a parameter back in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from npas.sharing.layers import Layer
from npas.sharing.weights import SharedWeights

_SHARED_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
_ROUNDING = (nn.Linear, nn.MultiheadAttention, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROUNDING += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # type: ignore[assignment]


@dataclass
class Attachment:
    """Link an owner of shared tensors to the weights: which attribute is which layer."""

    shared: SharedWeights
    layers: dict[str, int]
    order: list[str]


def attach(owner: nn.Module, name: str, layer: int, shared: SharedWeights) -> None:
    """Make a module read its parameter `name` from the shared weights."""
    attachment = owner.__dict__.setdefault("_npas", Attachment(shared, {}, list(owner._parameters)))
    attachment.layers[name] = layer
    shared.modules.add(owner)
    del owner._parameters[name]
    owner.__dict__.pop("_flat_weights", None)  # a recurrent module's list of dense weights
    owner.__class__ = _shared_class(_dense_class(owner), tuple(sorted(attachment.layers)))


def detach(owner: nn.Module, parameters: Mapping[int, nn.Parameter]) -> None:
    """Give a module its own class and parameters back, in the dense order."""
    attachment: Attachment = owner.__dict__.pop("_npas")
    owner.__class__ = _dense_class(owner)
    restored = {name: parameters[layer] for name, layer in attachment.layers.items()}
    found = {**restored, **owner._parameters}
    owner._parameters.clear()
    first = [name for name in attachment.order if name in found]
    for name in dict.fromkeys([*first, *found]):
        owner._parameters[name] = found[name]
    if isinstance(owner, nn.RNNBase):
        owner._init_flat_weights()


def rounds_under_autocast(layer: Layer) -> bool:
    """Return whether all that reads a tensor is known to round it to autocast's dtype, unasked.

    A subclass with a forward of its own may compute with its weight in full first.
    """

    def rounds(cls: type) -> bool:
        if (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D"):
            return True
        return any(
            issubclass(cls, base)
            and all(
                getattr(cls, method, None) is getattr(base, method, None)
                for method in ("forward", "_conv_forward")
            )
            for base in _ROUNDING
        )

    return all(rounds(type(owner)) for owner, _ in layer.owners)


def _dense_class(owner: nn.Module) -> type[nn.Module]:
    cls = type(owner)
    return cls.__mro__[1] if "_npas_names" in cls.__dict__ else cls


def _shared_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of a module class whose named parameters are generated.

    A module of the class that nothing is attached to (`type(layer)(8, 8)` is of the base class, but
    a user may have made subclasses) behaves as one of the base class.
    """
    if (base, names) in _SHARED_CLASSES:
        return _SHARED_CLASSES[base, names]

    @functools.wraps(base.__init__)
    def init(module: nn.Module, *args: Any, **options: Any) -> None:
        if "_npas" in module.__dict__:
            _refuse_change(module, names[0])
        if type(module) is cls:
            module.__class__ = base
        base.__init__(module, *args, **options)

    def reduce(module: nn.Module, _: object) -> tuple[Any, ...]:
        return _revive, (base, names), module.__getstate__()

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        own = name.removesuffix("_orig")  # what nn.utils.prune would put beside the weight
        if own in names and is_attached(module, own):
            _refuse_change(module, own)
        base.register_parameter(module, name, param)

    def train(module: nn.Module, *mode: Any, **named: Any) -> nn.Module:
        attachment = module.__dict__.get("_npas")
        if attachment is not None:  # what was written meanwhile may have moved no version counter
            attachment.shared.refuse_written()
            attachment.shared.forget()
        return base.train(module, *mode, **named)

    body: dict[str, Any] = {name: _generated(name) for name in names} | {"_npas_names": names}
    body |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {"register_parameter": register, "__prepare_scriptable__": _refuse_scripting}
    body |= {"__init__": init, "train": train}  # `eval` calls `train`
    if issubclass(base, nn.RNNBase):
        body |= _RECURRENT
    if issubclass(base, nn.ParameterList):
        body["__getitem__"] = functools.partialmethod(_get_item, base)
    if issubclass(base, nn.ParameterDict):
        body["copy"] = _refuse_copying
    cls = _SHARED_CLASSES.setdefault((base, names), type(base.__name__, (base,), body))
    return cls


def is_attached(module: nn.Module, name: str) -> bool:
    """Return whether a module's attribute is a generated weight."""
    attachment = getattr(module, "_npas", None)
    return attachment is not None and name in attachment.layers


def _generated(name: str) -> property:
    """Return the property that generates a weight; where none is attached, a plain attribute."""

    def get(module: Any) -> Any:
        attachment = module.__dict__.get("_npas")
        if attachment is not None and name in attachment.layers:
            if "_is_replica" in module.__dict__:
                raise RuntimeError(
                    "nn.DataParallel copies layers but not the bank they read: use"
                    " DistributedDataParallel"
                )
            return attachment.shared.weight(attachment.layers[name])
        if name in module.__dict__:
            return module.__dict__[name]
        raise AttributeError(name)  # nn.Module.__getattr__ then looks among the parameters

    def set_(module: nn.Module, value: object) -> None:
        if is_attached(module, name):
            _refuse_change(module, name)
        module.__dict__[name] = value

    def delete(module: nn.Module) -> None:
        if is_attached(module, name):
            _refuse_change(module, name)
        if module.__dict__.pop(name, None) is None:
            raise AttributeError(name)

    return property(get, set_, delete)


def _get_item(module: nn.ParameterList, base: type[nn.ParameterList], index: Any) -> Any:
    """Return an item of a list; a slice would be a list of plain copies."""
    return _refuse_copying(module) if isinstance(index, slice) else base.__getitem__(module, index)


def _refuse_copying(module: nn.Module) -> NoReturn:
    raise ValueError(
        f"slices and copies of an {type(module).__name__} of generated weights would not be"
        " generated: read its items one by one, or leave it out of npas.share with exclude"
    )


def _refuse_change(module: Any, name: str) -> NoReturn:
    layer = module._npas.shared.reading.places[module._npas.layers[name]][1].name
    raise ValueError(
        f"the weight {layer!r} is generated from a bank and cannot be replaced, deleted or pruned:"
        " do that before npas.share, or npas.materialize the network first; filters are pruned by"
        " npas.sharing.prune_filters, or pruning.method of npas-train"
    )


def _refuse_scripting(module: nn.Module) -> nn.Module:
    if "_npas" not in module.__dict__:
        return module
    raise ValueError(
        "torch.jit.script cannot follow generated weights: npas.materialize the network first, or"
        " use torch.compile, torch.export or torch.jit.trace"
    )


def _recurrent_state(module: Any) -> dict[str, Any]:
    state = dict(nn.Module.__getstate__(module))
    state["_flat_weight_refs"] = [None] * len(module._flat_weights_names)
    return state


# A recurrent module's forward reads a list of its weights, not the attributes, and cuDNN would lay
# them out again as one block; generated weights are no parameters to be moved.
_RECURRENT: dict[str, Any] = {
    "_flat_weights": property(
        lambda module: [getattr(module, name) for name in module._flat_weights_names],
        lambda module, value: None,
    ),
    "_update_flat_weights": lambda module: None,
    "flatten_parameters": lambda module: None,
    "__getstate__": _recurrent_state,
    "__setstate__": nn.Module.__setstate__,
}


def _revive(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Make an empty module of a shared class, for copies and pickles."""
    cls = _shared_class(base, names)
    return cls.__new__(cls)
