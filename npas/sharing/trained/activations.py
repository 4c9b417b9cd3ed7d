"""Second moments of layers' inputs, by which a fit weights its errors.

The mean squared error of a layer's outputs over its inputs x is tr(D C D^T) with D = W - generated
and C = E[x x^T], which is |D C^(1/2)|^2 (Basis Sharing, Wang et al., ICLR 2025, section 3.2).
`roots` returns C^(1/2) of each layer (`Root`). For an embedding, C is diagonal: how often each row
is read. Shapes: weights R x N, C is N x N, M inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.sharing.layers import Layer
from npas.sharing.trained.distillation import tensors
from npas.utils.checks import one_line, require
from npas.utils.progress import track

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Arguments of a network's call: one tensor, a sequence, or a mapping of keywords."""
DAMPING = 0.01
"""Added to C's diagonal, relative to the diagonal's mean, so that no direction has weight zero."""


@torch.no_grad()
def call(model: nn.Module, batch: Batch, name: str) -> Any:
    """Call a network in eval mode; raise ValueError, which names the batch, if that fails."""
    try:
        with evaluating(model):
            require("it", batch, (Tensor, Sequence, Mapping), "a tensor, a tuple or a dict")
            if (given := tensors(batch).values()) and not any(own.numel() for own in given):
                raise ValueError("it is empty")
            if isinstance(batch, Mapping):
                return model(**batch)
            return model(batch) if isinstance(batch, Tensor) else model(*batch)
    except Exception as error:  # whatever a forward raises
        raise ValueError(
            f"{name} cannot be run through the network ({type(error).__name__}: {one_line(error)}):"
            " give a tensor, a tuple of arguments or a dict of them by name"
        ) from error


def refuse_batches(batches: object, init: str, templates: object) -> None:
    """Raise ValueError for invalid batches, and for batches that no fit uses."""
    is_list = isinstance(batches, (list, tuple)) and len(batches) > 0
    if batches is not None and (not is_list or init != "fit" or templates is not None):
        raise ValueError(
            "batches must be a list of one or more batches, and only init='fit' with a budget uses"
            " them: leave them out"
        )


@dataclass(frozen=True)
class Root:
    """C^(1/2), N x N, and its inverse; for an embedding one number per row, R, for both."""

    factor: Tensor
    inverse: Tensor

    def weigh(self, weight_RN: Tensor) -> Tensor:
        """Return weight C^(1/2)."""
        by_row = self.factor.dim() == 1
        return self.factor[:, None] * weight_RN if by_row else weight_RN @ self.factor

    def undo(self, left_RK: Tensor, right_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of a weight, given those of `weigh(weight)`."""
        if self.factor.dim() == 1:
            return self.inverse[:, None] * left_RK, right_KN
        return left_RK, right_KN @ self.inverse


@torch.no_grad()
def roots(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]) -> dict[str, Root]:
    """Return the roots of layers' second moments by name, measured in eval mode.

    Covers linear layers, embeddings and convolutions without groups, as far as the batches reach
    them. Raises ValueError for inputs that are not finite, and if no layer is reached.
    """
    sums: dict[str, Tensor] = {}
    text_BL: list[Tensor] = []  # True for tokens, False for padding; empty without attention_mask

    def add(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not arguments:  # called with keywords only
            return
        inputs = arguments[0].detach()
        if text_BL and inputs.shape[:2] == text_BL[0].shape:
            inputs = inputs[text_BL[0]]
        if isinstance(module, nn.Embedding):
            found = inputs.reshape(-1).bincount(minlength=module.num_embeddings)
        else:
            seen_MN = _seen(module, inputs).double()
            found = seen_MN.T @ seen_MN
        sums[name] = sums.get(name, 0) + found.cpu()

    hooks = []
    for layer in layers:
        readers = [own for own, key in layer.owners if key == "weight" and _is_seen(own)]
        for own in readers:  # for an embedding tied to a head: only the embedding
            if isinstance(own, nn.Embedding) == isinstance(readers[0], nn.Embedding):
                seeing = functools.partial(add, layer.spec.name)
                hooks.append(own.register_forward_pre_hook(seeing))
    try:
        for i, batch in enumerate(track(batches, "measuring activations")):
            mask = tensors(batch).get("attention_mask")
            text_BL[:] = [] if mask is None else [torch.atleast_2d(mask).flatten(1) > 0]
            call(model, batch, f"batches[{i}]")
    finally:
        for hook in hooks:
            hook.remove()
    if hooks and not sums:
        raise ValueError("the batches reach no layer: pass the network before torch.compile")
    return {name: _root(name, total) for name, total in sums.items() if total.any()}


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return all floating-point outputs of one or more dimensions as one vector, perhaps empty."""
    found = [own for own in tensors(call(model, batch, "batches[0]")).values() if own.dim()]
    found = [own for own in found if own.is_floating_point() and own.layout is torch.strided]
    return torch.cat([torch.zeros(0).double(), *(own.reshape(-1).double().cpu() for own in found)])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode; restore each module's mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _is_seen(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.groups == 1
    return isinstance(module, (nn.Linear, nn.Embedding))


def _seen(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a layer's inputs (patches for a convolution) as a matrix, M x N."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    inputs = inputs if inputs.dim() == 4 else inputs[None]
    assert not isinstance(module.padding, str)
    patches_BNM = F.unfold(
        inputs, module.kernel_size, module.dilation, module.padding, module.stride
    )
    return patches_BNM.transpose(1, 2).reshape(-1, patches_BNM.shape[1])


def _root(name: str, total: Tensor) -> Root:
    if not total.isfinite().all():
        raise ValueError(f"the batches give {name} inputs that are not finite: leave them out")
    if total.dim() == 1:  # counts of an embedding's rows; +1, so that no row has weight zero
        factor_R = (total.double() + 1).sqrt()
        return Root(factor_R, 1 / factor_R)
    total_NN = total / total.diagonal().mean()
    total_NN.diagonal().add_(DAMPING)
    values_N, vectors_NN = torch.linalg.eigh(total_NN)
    root_N = values_N.clamp(min=DAMPING / 2).sqrt()
    return Root((vectors_NN * root_N) @ vectors_NN.T, (vectors_NN / root_N) @ vectors_NN.T)
