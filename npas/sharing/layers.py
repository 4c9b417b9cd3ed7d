"""Find a network's shareable tensors (`Layer`), and name the tensors that generate them.

The latter (banks, coefficients, upsamplers, corrections and scales) are parameters and buffers of
the root module, i.e. the network that was shared; their names start with `PREFIX`.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from npas.sharing.blocks import expand
from npas.sharing.held import find_held

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"
INDICES = "indices"


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Create tensors on the CPU and in fp32, whatever the user's defaults are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def shared_names(root: nn.Module) -> list[str]:
    """Return the names of the root's shared tensors."""
    found = [*root._parameters, *root._buffers]
    # FSDP1 flattens parameters and keeps plain attributes. Dynamo cannot trace this line.
    if not any(name.startswith(PREFIX) for name in root._parameters):
        found += [name for name, value in root.__dict__.items() if isinstance(value, Tensor)]
    return [name for name in found if name.startswith(PREFIX)]


def shared_value(root: nn.Module, name: str) -> Tensor:
    """Return a shared tensor. Raises ValueError if shared tensors are pruned or parametrized."""
    own = root._parameters.get(name)
    if own is not None:  # the usual, fast case
        return own
    refuse_computed(root)
    found: Tensor = getattr(root, name)
    return found


def refuse_computed(root: nn.Module) -> None:
    """Raise ValueError if `torch.nn.utils` prunes or parametrizes a shared tensor."""
    parametrized: Any = root._modules.get("parametrizations") or ()
    pruned = (name for name in root._parameters if name.endswith("_orig"))
    for name in (*pruned, *parametrized):
        if name.startswith(PREFIX):
            raise ValueError(
                f"{name.removesuffix('_orig')} is pruned or parametrized, and npas reads plain"
                " parameters: undo that by prune.remove or remove_parametrizations; prune filters"
                " by npas.sharing.prune_filters, or npas.materialize the network before"
            )


def remove_shared(root: nn.Module) -> None:
    """Remove the shared tensors from the root."""
    for name in shared_names(root):
        for tensors in (root._parameters, root._buffers):
            tensors.pop(name, None)


def bank_name(group: int) -> str:
    """Return the name of the bank of the group at this index."""
    return f"{PREFIX}bank_{group}"


def generator_name(kind: str, group: int, templates: int) -> str:
    """Return the name of a generator's parameter for a group's layers of K = `templates`."""
    return f"{PREFIX}{kind}_{group}_{templates}"


def generator_names(root: nn.Module, group: int, templates: int) -> dict[str, str]:
    """Return the names of a generator's parameters that the root has, by kind."""
    suffix = f"_{group}_{templates}"
    return {name.split("_")[1]: name for name in shared_names(root) if name.endswith(suffix)}


def indices_name(layer: int) -> str:
    """Return the name of the indices of the layer at this index into its codebook."""
    return f"{PREFIX}{INDICES}_{layer}"


def upsampler_name(layer: int) -> str:
    """Return the name of the upsampler's weights of the layer at this index."""
    return f"{PREFIX}upsampler_{layer}"


KINDS = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Layer types that `groups="type"` groups with their subclasses."""

WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DataParallel": "nn.DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def matrix_form(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (first non-unit dimension, product of the rest): out x rest of a weight."""
    rows = next((length for length in shape if length > 1), 1)
    return rows, math.prod(shape) // rows


@dataclass(frozen=True)
class LayerSpec:
    """Name, shape and layer type of a tensor: what an allocation needs to know."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """A dense parameter with its owners (module, attribute) and names; several if it is tied.

    The first name is the spec's.
    """

    spec: LayerSpec
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]
    names: tuple[str, ...]


def require_network(model: nn.Module) -> nn.Module:
    """Return the network; raise ValueError if it is no nn.Module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"this {type(model).__name__} is not a network: pass an nn.Module")
    return model


def find_layers(
    model: nn.Module,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[Layer]:
    """Return the shareable tensors of `model` in registration order, tied tensors once.

    A trainable floating-point parameter with two or more non-unit dimensions and a non-constant
    initialization is shareable. `include` and `exclude` (glob patterns of parameter names, or
    `blocks.SELECTORS`) add and remove tensors; any name of a tied tensor matches.

    Of a parametrized weight (`weight_norm`, `spectral_norm`) the original is shared. An embedding's
    padding row gets no gradient from padding, but it is generated like any other row: it does not
    start at zero, and it changes with its bank.

    Raises ValueError for a pattern that matches no parameter, an included tensor that is constant
    or frozen, a network that cannot be shared (quantized, compiled, wrapped, lazy; tensors that
    overlap, are sparse, not finite or also held in lists), and if no tensor is left to share.
    """
    tensors = find_tensors(model)
    names = [name for tensor in tensors for name in tensor.names]
    included = match_names(names, expand(include, "include", tensors), "include")
    excluded = match_names(names, expand(exclude, "exclude", tensors), "exclude")
    layers, held = [], find_held(model)
    for tensor in tensors:
        if not excluded.isdisjoint(tensor.names):
            continue
        is_included = not included.isdisjoint(tensor.names)
        if fault := _find_fault(tensor, is_included):
            raise ValueError(f"{tensor.spec.name!r} {fault}, or add it to exclude")
        if is_included or is_shareable(tensor.parameter):
            if where := held.get(id(tensor.parameter)):
                raise ValueError(
                    f"{tensor.spec.name!r} is also held in {where!r}, which sharing cannot replace:"
                    " read it from its module, or use a ParameterList, or add it to exclude"
                )
            layers.append(tensor)
    if not layers:
        left = " left by exclude" if excluded else ""
        raise ValueError(
            f"the network has no shareable tensor{left} (a trainable parameter with two or more"
            " non-unit dimensions and a non-constant initialization): name tensors with include"
        )
    _refuse_overlaps(tensors, layers)
    return layers


def find_tensors(model: nn.Module) -> list[Layer]:
    """Return all parameters of `model` in registration order, tied tensors once.

    Raises ValueError for modules whose parameters cannot be replaced, and for lazy parameters.
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
    """Return whether a tensor is shared by default."""
    return (
        parameter.requires_grad
        and parameter.is_floating_point()
        and parameter.numel() > 0
        and sum(n > 1 for n in parameter.shape) >= 2
        and not is_constant(parameter)
    )


def is_constant(parameter: Tensor) -> bool:
    """Return whether all values are equal, e.g. a norm's initial weight."""
    if parameter.is_meta or parameter.layout is not torch.strided:
        return False
    flat = parameter.detach().reshape(-1)
    # The first values differ in most tensors, which are then not read to the end.
    return all(bool((part == flat[0]).all()) for part in (flat[:64], flat))


def match_names(
    names: Sequence[str], patterns: str | Iterable[str] | None, option: str, what: str = "parameter"
) -> set[str]:
    """Return the names that match any glob pattern; raise ValueError if a pattern matches none."""
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


def computes_as(cls: type, base: type[nn.Module]) -> bool:
    """Return whether a class is `base`, or a subclass of it without a forward of its own."""
    return issubclass(cls, base) and all(
        getattr(cls, method, None) is getattr(base, method, None)
        for method in ("forward", "_conv_forward")
    )


def is_transposed_linear(cls: type) -> bool:
    """Return whether a class is transformers' Conv1D: a linear layer of a weight in x out."""
    return (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _kind(model: nn.Module, prefix: str, module: nn.Module) -> str:
    """Return the layer type in lower case; for a parametrized weight that of its layer."""
    owner, parametrized, _ = prefix.rpartition(".parametrizations.")
    if parametrized or prefix.startswith("parametrizations."):
        module = model.get_submodule(owner)
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.modules.") and issubclass(cls, KINDS):
            kind = next(base for base in KINDS if issubclass(cls, base))
            return (cls if kind in (nn.RNNBase, nn.RNNCellBase) else kind).__name__.lower()
    return type(module).__name__.lower()


def _refuse_module(name: str, module: nn.Module) -> None:
    kind, source = type(module).__name__, type(module).__module__
    where = f"{name!r} is" if name else "the network is"
    if kind in WRAPPERS and source.startswith("torch."):
        raise ValueError(
            f"{where} wrapped by {WRAPPERS[kind]}, which keeps the dense parameters: share the"
            " network first, then wrap it"
        )
    is_quantized = source.startswith(("torch.ao.nn.", "torch.nn.quantized."))
    if is_quantized or isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{where} a {kind}, whose parameters are fixed: share the original floating-point"
            " network"
        )


def _find_fault(tensor: Layer, is_included: bool) -> str:
    """Return an error message if a tensor that is not excluded cannot be shared, else ''."""
    parameter = tensor.parameter
    kind, many = type(parameter.data), parameter.ndim > 1
    if kind is not Tensor:  # a quantized format, or a DTensor
        return f"is a {kind.__name__}: share the network while its weights are plain tensors"
    packed = parameter.dtype in (torch.int8, torch.uint8, torch.qint8, torch.quint8, torch.qint32)
    if many and (packed or (parameter.is_floating_point() and parameter.dtype not in FLOATS)):
        return f"is quantized ({parameter.dtype}): share the floating-point network"
    if not is_included and not is_shareable(parameter):
        return ""
    if not parameter.requires_grad or not parameter.is_floating_point():
        return "is not trainable or not floating-point: leave it out of include"
    if parameter.numel() == 0 or is_constant(parameter):
        return "starts with equal values, which generated weights cannot: initialize it at random"
    strides = zip(parameter.stride(), parameter.shape, strict=True)
    if parameter.layout is not torch.strided or any(step == 0 < n - 1 for step, n in strides):
        return "is sparse or an expanded tensor: make it dense and contiguous"
    if not parameter.is_meta and not _is_finite(parameter.detach()):
        return "holds values that are not finite: initialize it"
    for owner, _ in tensor.owners:
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and (owner.max_norm or owner.sparse):
            return (
                "belongs to an embedding with max_norm or sparse, which writes to its weight or"
                " needs a sparse gradient: leave them out"
            )
    return ""


def _is_finite(values: Tensor) -> bool:
    """Return whether all values are finite, by their sum; in fp64 if the sum overflows."""
    return any(bool(values.sum(dtype=dtype).isfinite()) for dtype in (None, torch.float64))


def _refuse_overlaps(tensors: Sequence[Layer], shared: Sequence[Layer]) -> None:
    """Raise ValueError if a shared parameter has the memory of another one (tied by `.data`)."""
    chosen = {layer.spec.name for layer in shared}
    first: dict[object, str] = {}
    for tensor in tensors:
        parameter, name = tensor.parameter, tensor.spec.name
        if parameter.layout is torch.strided and parameter.numel() and not parameter.is_meta:
            other = first.setdefault((parameter.device, parameter.data_ptr()), name)
            if other != name and not chosen.isdisjoint((name, other)):
                raise ValueError(
                    f"{other!r} and {name!r} are two parameters in one memory: tie them as one"
                    " parameter, or copy one of them"
                )
