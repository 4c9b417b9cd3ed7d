"""Find and check generators of other packages and scripts (schemes).

A scheme is an object, e.g. a module, with three functions. A layer reads N values of its group's
bank: as many as its weight has, or the whole bank if that is smaller.

    learned(shape, values)                  shape, rows x columns, of the layer's own parameters
                                            besides the N values; (0, 0) for none
    initial(shape, rng)                     their initial values
    weight(values_N, learned, shape, first) the layer's weight, flat or in its shape; `first` is the
                                            number of weights of the group's layers before it

npas plans which values layers read, sizes the bank to meet the budget, and scales the values to set
a weight's variance: twice the values must give twice the weight. A package registers a scheme by an
entry point of `npas.schemes`, a script by `register_scheme`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npas.sharing.generators.bases import BASES, CHANNELS
from npas.sharing.generators.codebook import CODEBOOK
from npas.sharing.generators.coefficients import CHOICES, GENERATORS
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.utils import plugins

if TYPE_CHECKING:
    from npas.sharing.layout.allocation import LayerAllocation

OWN = frozenset((*CHOICES, *GENERATORS, *UPSAMPLERS, *BASES, CHANNELS, CODEBOOK, "none"))
_found: dict[str, Any] = {}  # by name: looking up entry points takes milliseconds


def register_scheme(name: str, scheme: Any) -> None:
    """Make `generator=name` use a scheme; raise ValueError if it lacks one of the functions."""
    plugins.register("scheme", name, scheme, name in OWN)
    _found.pop(name, None)


def choices() -> tuple[str, ...]:
    """Return the names of all generators: of npas, then of others."""
    return (*CHOICES, *(name for name in plugins.names("scheme") if name not in OWN))


def is_foreign(generator: str | None) -> bool:
    """Return whether a generator is not one of npas."""
    return generator is not None and generator not in OWN


def find(name: str) -> Any:
    """Return a scheme by name; raise ValueError if it is unknown."""
    if name not in _found:
        if name not in plugins.names("scheme"):
            raise ValueError(
                f"the generator {name!r:.80} is not one of npas: install the package that brings it"
                " (by an entry point npas.schemes), or call npas.register_scheme first"
            )
        _found[name] = plugins.family("scheme", name)
    return _found[name]


def learned_shape(name: str, shape: tuple[int, ...], values: int) -> tuple[int, int]:
    """Return `learned` of a scheme; raise ValueError if it is not a valid shape."""
    found = find(name).learned(shape, values)
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(type(n) is int for n in found)
    if not is_pair or min(found) < 0 or (min(found) == 0) != (max(found) == 0):
        raise ValueError(
            f"generator={name!r}: learned must return two whole numbers, rows and columns, both 0"
            f" for none; of shape {list(shape)} and {values:,} values it returned {found!r:.80}"
        )
    rows, columns = found
    return rows, columns


def weight(values_N: Tensor, learned: Tensor | None, layer: LayerAllocation) -> Tensor:
    """Return the layer's flat weight."""
    assert layer.upsampler is not None
    made: Tensor = find(layer.upsampler).weight(values_N, learned, layer.shape, layer.first)
    return made.reshape(-1)


def _first_weight(values_N: Tensor, learned: Tensor | None, layer: LayerAllocation) -> Tensor:
    """Return the flat weight. Raises ValueError, naming the scheme, if it makes none."""
    named = f"generator={layer.upsampler!r}: the weight of {layer.name}"
    try:
        made = weight(values_N, learned, layer)
    except Exception as error:  # whatever another package's code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{named} cannot be made ({reason})") from error
    if made.dtype != values_N.dtype or made.requires_grad != values_N.requires_grad:
        raise ValueError(
            f"{named} must have the dtype of its values, {values_N.dtype}, and their gradients"
        )
    return made


def start(
    values_N: Tensor, layer: LayerAllocation, rng: torch.Generator
) -> tuple[Tensor | None, float]:
    """Return a layer's initial own parameters (None if it has none), and its weight's mean square.

    Raises ValueError for an invalid weight: of another size, not finite, all zero, not in
    proportion to the values, or one that does not depend on all of them.
    """
    assert layer.upsampler is not None
    named = f"generator={layer.upsampler!r}"
    drawn: Tensor | None = None
    if layer.learned[0]:
        drawn = find(layer.upsampler).initial(layer.learned, rng)
        if not isinstance(drawn, Tensor) or drawn.shape != layer.learned:
            raise ValueError(f"{named}: initial must return a tensor of shape {layer.learned}")
        drawn = drawn.detach()
    with torch.no_grad():
        made = _first_weight(values_N, drawn, layer)
        if made.numel() != layer.size or not made.isfinite().all() or not made.any():
            raise ValueError(
                f"{named}: the weight of {layer.name} must be {layer.size:,} finite values that do"
                f" not start at zero, not {made.numel():,} such as {made[:3].tolist()}"
            )
        if not torch.allclose(weight(2 * values_N, drawn, layer), 2 * made, rtol=1e-3):
            raise ValueError(
                f"{named}: the weight of twice the values must be twice the weight, and that of"
                f" {layer.name} is not: npas scales values to give a weight its layer's spread"
            )
    # Own parameters that start at zero would hide which values are read: take random ones.
    random = torch.Generator().manual_seed(0)
    own = None if drawn is None else torch.randn(layer.learned, generator=random)
    with torch.enable_grad():
        leaf_N = values_N.clone().requires_grad_()
        total = _first_weight(leaf_N, own, layer) @ torch.randn(layer.size, generator=random)
        (gradient_N,) = torch.autograd.grad(total, leaf_N)
    if unread := int((gradient_N == 0).sum()):
        raise ValueError(
            f"{named}: the weight of {layer.name} leaves {unread:,} of the {len(values_N):,} values"
            " that it is given unread, which could not train: it must be made of every one"
        )
    return drawn, float(made.double().square().mean())
