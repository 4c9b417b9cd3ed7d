"""Find the shareable tensors of any module."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class LayerSpec:
    """Describe one shareable tensor without holding it: what the allocation needs to know."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """Tie a spec to the dense parameter and to every place in the network that reads it."""

    spec: LayerSpec
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]


def find_layers(
    model: nn.Module,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[Layer]:
    """List the shareable tensors of `model` in registration order, tied tensors once.

    Shareable is a trainable floating-point parameter with two or more non-unit dimensions and a
    non-constant initialization. `include` adds tensors that this rule leaves out (by glob pattern
    over parameter names), `exclude` takes tensors away.

    Raises ValueError for a pattern that matches no parameter, for an included tensor that is
    constant or frozen, and where nothing is left to share.
    """
    tensors = find_tensors(model)
    names = [tensor.spec.name for tensor in tensors]
    included = match_names(names, include, "include")
    excluded = match_names(names, exclude, "exclude")
    layers = []
    for tensor in tensors:
        if tensor.spec.name in included - excluded:
            _refuse_unsharable(tensor.spec.name, tensor.parameter)
        elif tensor.spec.name in excluded or not is_shareable(tensor.parameter):
            continue
        _refuse_unsupported(tensor)
        layers.append(tensor)
    if not layers:
        raise ValueError(
            "the network has no shareable tensor (a trainable parameter with two or more non-unit"
            " dimensions and a non-constant initialization): name tensors with include"
        )
    return layers


def find_tensors(model: nn.Module) -> list[Layer]:
    """List all parameters of `model` in registration order, tied tensors once.

    Raises ValueError for lazy modules, whose shapes are not known yet.
    """
    found: dict[int, Layer] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}".lstrip(".")
            if is_lazy(parameter):
                raise ValueError(
                    f"{name!r} has no shape yet: run one batch through the network first"
                )
            first = found.get(id(parameter))
            owners = (*first.owners, (module, attribute)) if first else ((module, attribute),)
            spec = LayerSpec(name, tuple(parameter.shape), type(module).__name__.lower())
            found[id(parameter)] = Layer(first.spec if first else spec, parameter, owners)
    return list(found.values())


def is_shareable(parameter: Tensor) -> bool:
    """Tell whether a tensor is shared unless the user says otherwise."""
    return (
        parameter.requires_grad
        and parameter.is_floating_point()
        and sum(n > 1 for n in parameter.shape) >= 2
        and not is_constant(parameter)
    )


def is_constant(parameter: Tensor) -> bool:
    """Tell whether all values are equal, as in a norm's weight or a zero-initialized token."""
    if parameter.is_meta:
        return False
    flat = parameter.detach().reshape(-1)
    return bool((flat == flat[0]).all())


def match_names(
    names: Sequence[str], patterns: str | Iterable[str] | None, option: str
) -> set[str]:
    """Return the names that match any glob pattern; ValueError for a pattern matching none."""
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else (patterns or ()):
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise ValueError(
                f"{option} pattern {pattern!r} matches no parameter: did you mean"
                f" {' or '.join(repr(name) for name in near)}?"
            )
        matched |= hits
    return matched


def _refuse_unsharable(name: str, parameter: Tensor) -> None:
    if not parameter.requires_grad or not parameter.is_floating_point():
        raise ValueError(f"include names {name!r}, which is not trainable: leave it out of include")
    if is_constant(parameter):
        raise ValueError(
            f"include names {name!r}, whose initial values are all equal, so no generated weight"
            " can start like it: initialize it at random or leave it out of include"
        )


def _refuse_unsupported(layer: Layer) -> None:
    for owner, _ in layer.owners:
        for option in ("max_norm", "sparse"):
            if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and getattr(owner, option):
                raise ValueError(
                    f"{layer.spec.name!r} belongs to an embedding with {option}, which writes to"
                    " its weight or needs a sparse gradient: add it to exclude"
                )
