"""Make a layer's weight a property that returns the generated weight.

`attach` removes the dense parameter and gives the module a subclass of its class, with one property
per generated weight; `detach` undoes both. An `Attachment` links a module to its `SharedWeights`.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from npas.sharing.layers import Layer, computes_as, is_transposed_linear
from npas.sharing.runtime.weights import SharedWeights
from npas.utils.checks import one_line

_SHARED_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
_ROUNDING = (nn.Linear, nn.MultiheadAttention, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROUNDING += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # type: ignore[assignment]


@dataclass
class Attachment:
    """The generated weights of one module."""

    shared: SharedWeights
    layers: dict[str, int]  # attribute to index in Allocation.layers
    order: list[str]  # of the dense module's parameters


def attach(owner: nn.Module, name: str, layer: int, shared: SharedWeights) -> None:
    """Replace a module's parameter `name` by the generated weight of the layer with this index."""
    attachment = owner.__dict__.setdefault("_npas", Attachment(shared, {}, list(owner._parameters)))
    attachment.layers[name] = layer
    shared.modules.add(owner)
    del owner._parameters[name]
    owner.__dict__.pop("_flat_weights", None)  # an RNN's list of dense weights
    _set_class(owner, _shared_class(_dense_class(owner), tuple(sorted(attachment.layers))))


def require_subclasses(layers: Iterable[Layer]) -> None:
    """Raise ValueError if the class of a module that reads one of the weights has no subclasses."""
    for layer in layers:
        for owner, name in layer.owners:
            try:
                _shared_class(_dense_class(owner), (name,))
            except Exception as error:  # of the class's own making
                raise ValueError(
                    f"{layer.spec.name}: its class {type(owner).__name__} cannot be subclassed"
                    f" ({one_line(error)}): exclude it"
                ) from error


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", cls)  # a module's own __setattr__ may refuse


def detach(owner: nn.Module, parameters: Mapping[int, nn.Parameter]) -> None:
    """Restore a module's class and put `parameters`, by layer index, back in the dense order."""
    attachment: Attachment = owner.__dict__.pop("_npas")
    _set_class(owner, _dense_class(owner))
    restored = {name: parameters[layer] for name, layer in attachment.layers.items()}
    found = {**restored, **owner._parameters}
    owner._parameters.clear()
    owner._parameters.update({name: found[name] for name in attachment.order if name in found})
    owner._parameters.update(found)
    if isinstance(owner, nn.RNNBase):
        owner._init_flat_weights()


def rounds_under_autocast(layer: Layer) -> bool:
    """Return whether all modules that read the weight are known to cast it under autocast.

    A subclass with its own forward may use the weight in full precision.
    """

    def rounds(cls: type) -> bool:
        return is_transposed_linear(cls) or any(computes_as(cls, base) for base in _ROUNDING)

    return all(rounds(type(owner)) for owner, _ in layer.owners)


def _dense_class(owner: nn.Module) -> type[nn.Module]:
    cls = type(owner)
    return cls.__mro__[1] if "_npas_names" in cls.__dict__ else cls


def _shared_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `base` in which the parameters `names` are generated.

    An instance without an attachment (of a user's subclass of it) behaves like one of `base`.
    """
    if (base, names) in _SHARED_CLASSES:
        return _SHARED_CLASSES[base, names]

    @functools.wraps(base.__init__)
    def init(module: nn.Module, *args: Any, **options: Any) -> None:
        if "_npas" in module.__dict__:
            _refuse_change(module, names[0])
        if type(module) is cls:
            _set_class(module, base)
        base.__init__(module, *args, **options)

    def reduce(module: nn.Module, _: object) -> tuple[Any, ...]:
        return _revive, (base, names), module.__getstate__()

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        own = name.removesuffix("_orig")  # the name that nn.utils.prune would register
        if own in names and is_attached(module, own):
            _refuse_change(module, own)
        base.register_parameter(module, name, param)

    def train(module: nn.Module, *mode: Any, **named: Any) -> nn.Module:
        attachment = module.__dict__.get("_npas")
        if attachment is not None:  # a write through .data is noticed only here
            attachment.shared.refuse_written()
            attachment.shared.forget()
        return base.train(module, *mode, **named)

    def save(module: nn.Module, destination: dict[str, Any], prefix: str, *options: Any) -> None:
        base._save_to_state_dict(module, destination, prefix, *options)
        for name in names:  # a class may write its `weight` itself, parameter or not
            if is_attached(module, name):
                destination.pop(prefix + name, None)

    body: dict[str, Any] = {name: _generated(name) for name in names} | {"_npas_names": names}
    body |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {"register_parameter": register, "__prepare_scriptable__": _refuse_scripting}
    body |= {"__init__": init, "train": train}  # `eval` calls `train`
    body["_save_to_state_dict"] = save
    if issubclass(base, nn.RNNBase):
        body |= _RECURRENT
    cls = _SHARED_CLASSES.setdefault((base, names), type(base.__name__, (base,), body))
    return cls


def is_attached(module: nn.Module, name: str) -> bool:
    """Return whether a module's attribute is a generated weight."""
    attachment = getattr(module, "_npas", None)
    return attachment is not None and name in attachment.layers


def _generated(name: str) -> property:
    """Return a property for a generated weight; without an attachment a plain attribute."""

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
        raise AttributeError(name)  # then nn.Module.__getattr__ looks for a parameter

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


# An RNN's forward reads the list _flat_weights instead of attributes, and flatten_parameters would
# move parameters into one block for cuDNN.
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
    """Return an uninitialized module of a shared class, for copies and pickles."""
    cls = _shared_class(base, names)
    return cls.__new__(cls)
