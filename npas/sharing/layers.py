"""Name, read and remove the shared tensors, which the root module holds as its own parameters."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from npas.sharing.blocks import expand

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"
_PRUNED, _MASK = "_orig", "_mask"
"""What `torch.nn.utils.prune` adds to the name of a parameter for its two tensors."""


def shared_names(root: nn.Module) -> list[str]:
    """Name the root's tensors that weights are generated from, also pruned or parametrized ones.

    Where FSDP1 has flattened the parameters, they are plain attributes.
    """
    parametrized: Any = root._modules.get("parametrizations", ())  # getattr is slow where none is
    found = [*root._parameters, *parametrized]
    if not any(name.startswith(PREFIX) for name in found):  # only then: dynamo cannot follow it
        found += [name for name, value in root.__dict__.items() if isinstance(value, Tensor)]
    return [
        name.removesuffix(_PRUNED)
        for name in (*found, *root._buffers)
        if name.startswith(PREFIX) and not name.endswith(_MASK)
    ]


def shared_value(root: nn.Module, name: str) -> Tensor:
    """Return the tensor that weights are generated from, as pruned or parametrized.

    `torch.nn.utils.prune` computes the pruned tensor only when the root is called, so that it would
    be out of date where a part of the network is called.
    """
    own = root._parameters.get(name)
    if own is not None:  # as nearly always: what follows takes long for what runs at every read
        return own
    original = root._parameters.get(name + _PRUNED)
    mask = root._buffers.get(name + _MASK)
    if original is None or mask is None:
        found: Tensor = getattr(root, name)
        return found
    return mask.to(original.dtype) * original


def is_pruned(root: nn.Module, name: str) -> bool:
    """Return whether `torch.nn.utils.prune` prunes a shared tensor."""
    return name + _PRUNED in root._parameters


def is_parametrized(root: nn.Module, name: str) -> bool:
    """Return whether `torch.nn.utils.parametrize` computes a shared tensor."""
    return name in getattr(root, "parametrizations", ())


def is_trainable(root: nn.Module, name: str) -> bool:
    """Return whether a shared tensor, or what it is computed from, takes gradients."""
    if is_parametrized(root, name):
        return any(
            p.requires_grad for p in root.get_submodule(f"parametrizations.{name}").parameters()
        )
    own = root._parameters.get(name, root._parameters.get(name + _PRUNED))
    return own is not None and own.requires_grad


def remove_shared(root: nn.Module) -> None:
    """Remove the shared tensors from the root, with what prunes or parametrizes them."""
    for name in shared_names(root):
        if is_pruned(root, name):
            prune.remove(root, name)
        elif is_parametrized(root, name):
            # torch's function takes the name from the class, which copies of the root have, too.
            parametrizations = root.get_submodule("parametrizations")
            del parametrizations._modules[name]
            if not parametrizations._modules:
                del root._modules["parametrizations"]
                root.__class__ = type(root).__mro__[1]
        for tensors in (root._parameters, root._buffers):
            tensors.pop(name, None)


def bank_name(group: int) -> str:
    """Return the names of the root's parameter that is the bank of the group at this place."""
    return f"{PREFIX}bank_{group}"


def generator_name(kind: str, group: int, templates: int) -> str:
    """Name a generator's parameter for the layers of a group that mix `templates` templates."""
    return f"{PREFIX}{kind}_{group}_{templates}"


def generator_names(root: nn.Module, group: int, templates: int) -> dict[str, str]:
    """Return the names of those that the root has, by kind."""
    suffix = generator_name("", group, templates).removeprefix(PREFIX)
    return {
        name.removeprefix(PREFIX).removesuffix(suffix): name
        for name in shared_names(root)
        if name.endswith(suffix)
    }


def upsampler_name(layer: int) -> str:
    """Name the upsampler's weights of the layer at this place in `Allocation.layers`."""
    return f"{PREFIX}upsampler_{layer}"


KINDS = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Layers whose subclasses are of the same kind: `groups="type"` puts them together."""

WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DataParallel": "nn.DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LayerSpec:
    """One shareable tensor without holding it: what the allocation needs to know."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """Tie a spec to the dense parameter and to every place in the network that reads it.

    `names` are all names of a tied parameter, the spec's own, the first, among them.
    """

    spec: LayerSpec
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]
    names: tuple[str, ...]


def find_layers(
    model: nn.Module,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[Layer]:
    """List the shareable tensors of `model` in registration order, tied tensors once.

    Shareable is a trainable floating-point parameter with two or more non-unit dimensions and a
    non-constant initialization. `include` adds tensors that this rule leaves out (by glob pattern
    over parameter names, or one of `blocks.SELECTORS`), `exclude` takes tensors away; a tied tensor
    answers to all its names.

    The original of a parametrized weight (`weight_norm`, `spectral_norm`) is shared, and its
    parametrization computes the weight from it as ever. The padding row of an embedding gets no
    gradient from padding, as in the dense layer, but it is generated like any other row: it does
    not start at zero and moves with its bank.

    Raises ValueError for a pattern that matches no parameter, for an included tensor that is
    constant or frozen, for a network that cannot be shared as it is (quantized, compiled, wrapped,
    lazy; tensors that overlap, are sparse or not finite), and where nothing is left to share.
    """
    tensors = find_tensors(model)
    names = [name for tensor in tensors for name in tensor.names]
    included = match_names(names, expand(include, "include", tensors), "include")
    excluded = match_names(names, expand(exclude, "exclude", tensors), "exclude")
    layers = []
    for tensor in tensors:
        if not excluded.isdisjoint(tensor.names):
            continue
        _refuse_quantized(tensor)
        if not included.isdisjoint(tensor.names):
            _refuse_unsharable(tensor)
        elif not is_shareable(tensor.parameter):
            continue
        _refuse_unsupported(tensor)
        layers.append(tensor)
    if not layers:
        if any(is_shareable(t.parameter) for t in tensors if not excluded.isdisjoint(t.names)):
            raise ValueError(
                "exclude takes away every shareable tensor, so nothing is left to share: narrow its"
                " patterns"
            )
        raise ValueError(
            "the network has no shareable tensor (a trainable parameter with two or more non-unit"
            " dimensions and a non-constant initialization): name tensors with include"
        )
    _refuse_overlaps(tensors, layers)
    return layers


def find_tensors(model: nn.Module) -> list[Layer]:
    """List all parameters of `model` in registration order, tied tensors once.

    Raises ValueError for modules whose parameters cannot be replaced, and for lazy ones, whose
    shapes are not known yet.
    """
    found: dict[int, Layer] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        _refuse_module(prefix, module)
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}".lstrip(".")
            if is_lazy(parameter):
                raise ValueError(
                    f"{name!r} has no shape yet: run one batch through the network first"
                )
            first = found.get(id(parameter))
            if first is None:
                spec = LayerSpec(name, tuple(parameter.shape), _kind(model, prefix, module))
                first = Layer(spec, parameter, (), ())
            owners = dict.fromkeys([*first.owners, (module, attribute)])
            names = (*first.names, name)
            found[id(parameter)] = Layer(first.spec, parameter, tuple(owners), names)
    return list(found.values())


def is_shareable(parameter: Tensor) -> bool:
    """Return whether a tensor is shared unless the user says otherwise."""
    return (
        parameter.requires_grad
        and parameter.is_floating_point()
        and parameter.numel() > 0
        and sum(n > 1 for n in parameter.shape) >= 2
        and not is_constant(parameter)
    )


def is_constant(parameter: Tensor) -> bool:
    """Return whether all values are equal, as in a norm's weight or a zero-initialized token."""
    if parameter.is_meta or parameter.layout is not torch.strided:
        return False
    flat = parameter.detach().reshape(-1)
    # Most tensors differ within their first values, and are not read to the end.
    return all(bool((part == flat[0]).all()) for part in (flat[:64], flat))


def match_names(
    names: Sequence[str], patterns: str | Iterable[str] | None, option: str, what: str = "parameter"
) -> set[str]:
    """Return the names that match any glob pattern; ValueError for a pattern matching none."""
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else (patterns or ()):
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise ValueError(
                f"{option} pattern {pattern!r} matches no {what}: did you mean"
                f" {' or '.join(repr(name) for name in near)}?"
            )
        matched |= hits
    return matched


def _kind(model: nn.Module, prefix: str, module: nn.Module) -> str:
    """Name the type of layer; the original of a parametrized weight is of its layer's type."""
    owner, parametrized, _ = prefix.rpartition(".parametrizations.")
    if parametrized or prefix.startswith("parametrizations."):
        module = model.get_submodule(owner)
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.modules.") and issubclass(cls, KINDS):
            module_kind = next(base for base in KINDS if issubclass(cls, base))
            recurrent = module_kind in (nn.RNNBase, nn.RNNCellBase)
            return (cls if recurrent else module_kind).__name__.lower()
    return type(module).__name__.lower()


def _refuse_module(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    where = f"{name!r} is" if name else "the network is"
    if kind in WRAPPERS and type(module).__module__.startswith("torch."):
        raise ValueError(
            f"{where} wrapped by {WRAPPERS[kind]}, which keeps the dense parameters: share the"
            " network first, then wrap it"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{where} a ScriptModule, whose parameters are fixed: share its source")
    if type(module).__module__.startswith(("torch.ao.nn.", "torch.nn.quantized.")):
        raise ValueError(
            f"{where} quantized ({kind}): share and train the floating-point network, materialize"
            " it, and quantize that"
        )


def _refuse_quantized(tensor: Layer) -> None:
    name, parameter = tensor.spec.name, tensor.parameter
    kind = type(parameter.data)
    if kind is not Tensor:  # a weight in a format of its own, or spread over devices
        raise ValueError(
            f"{name!r} is a {kind.__name__}: share the network while its weights are plain tensors,"
            " or add it to exclude"
        )
    bits = {torch.int8, torch.uint8, torch.qint8, torch.quint8, torch.qint32}
    small_float = parameter.is_floating_point() and parameter.dtype not in FLOATS
    if parameter.ndim > 1 and (parameter.dtype in bits or small_float):
        raise ValueError(
            f"{name!r} is quantized ({parameter.dtype}): share the floating-point network, or add"
            " it to exclude"
        )


def _refuse_unsharable(tensor: Layer) -> None:
    name, parameter = tensor.spec.name, tensor.parameter
    if parameter.is_complex():
        raise ValueError(f"include names {name!r}, which is complex: banks hold real numbers only")
    if not parameter.requires_grad or not parameter.is_floating_point():
        raise ValueError(f"include names {name!r}, which is not trainable: leave it out of include")
    if parameter.numel() == 0 or is_constant(parameter):
        raise ValueError(
            f"include names {name!r}, whose initial values are all equal, so no generated weight"
            " can start like it: initialize it at random or leave it out of include"
        )


def _refuse_unsupported(tensor: Layer) -> None:
    name, parameter = tensor.spec.name, tensor.parameter
    if parameter.layout is not torch.strided:
        raise ValueError(f"{name!r} is sparse: make it dense or add it to exclude")
    if any(
        stride == 0 < n - 1 for stride, n in zip(parameter.stride(), parameter.shape, strict=True)
    ):
        raise ValueError(
            f"{name!r} is an expanded tensor, one value in many places: make it contiguous or add"
            " it to exclude"
        )
    if not parameter.is_meta and not bool(parameter.detach().sum(dtype=torch.float64).isfinite()):
        raise ValueError(
            f"{name!r} holds values that are not finite: initialize it or add it to exclude"
        )
    for owner, _ in tensor.owners:
        for option in ("max_norm", "sparse"):
            if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and getattr(owner, option):
                raise ValueError(
                    f"{name!r} belongs to an embedding with {option}, which writes to its weight"
                    " or needs a sparse gradient: add it to exclude"
                )


def _refuse_overlaps(tensors: Sequence[Layer], shared: Sequence[Layer]) -> None:
    """Refuse a shared parameter that another one overlaps: sharing would part them silently."""
    chosen = {layer.spec.name for layer in shared}
    spans = sorted(
        (*_span(tensor.parameter), tensor.spec.name)
        for tensor in tensors
        if tensor.parameter.layout is torch.strided
        and tensor.parameter.numel() > 0
        and tensor.parameter.device.type in ("cpu", "cuda")
    )
    reach, last = (-1, 0), ""
    for start, end, name in spans:
        if start[0] == reach[0] and start[1] < reach[1] and not chosen.isdisjoint((name, last)):
            raise ValueError(
                f"{last!r} and {name!r} are two parameters in one memory: tie them as one"
                " parameter, or copy one of them"
            )
        if (start[0], end) > reach:
            reach, last = (start[0], end), name


def _span(parameter: Tensor) -> tuple[tuple[int, int], int]:
    """Return the device and first byte of a tensor's memory, and the byte after its last."""
    extent = 1 + sum(
        stride * (n - 1) for stride, n in zip(parameter.stride(), parameter.shape, strict=True)
    )
    device = -1 if parameter.device.index is None else parameter.device.index
    start = parameter.data_ptr()
    return (device, start), start + extent * parameter.element_size()
