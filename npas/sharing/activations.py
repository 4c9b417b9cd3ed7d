"""Measure what a network's layers see, so that a fit can weigh errors by it, and what it returns.

The error of a layer's outputs is |(W - generated) x|, whose mean square over the inputs x is
tr((W - generated) C (W - generated)^T) with C = E[x x^T]: an error of the weights times C's square
root (as in Basis Sharing, Wang et al., ICLR 2025, section 3.2). Of an embedding it is the rows that
are seen more or less often.
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

from npas.sharing.distillation import logits
from npas.sharing.layers import Layer
from npas.utils.progress import track

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""What to call a network with: one tensor, arguments in order, or by their names."""
DAMPING = 0.01
"""What is added to the diagonal of C, in units of its mean: unseen directions keep some worth."""


def call(model: nn.Module, batch: Batch) -> Any:
    """Return a network's outputs for a batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch) if isinstance(batch, Tensor) else model(*batch)


def refuse_batches(batches: object, init: str, templates: object) -> None:
    """ValueError for batches that are none, or would weigh nothing."""
    is_list = isinstance(batches, (list, tuple)) and len(batches) > 0
    if batches is not None and (not is_list or init != "fit" or templates is not None):
        raise ValueError(
            "batches must be a list of one or more, and weigh what init='fit' does inside a budget:"
            " leave them out elsewhere"
        )


@dataclass(frozen=True)
class Root:
    """What errors of a weight, R x N, are multiplied with: C's root on the right, or by row.

    With the inverse of either.
    """

    factor: Tensor
    inverse: Tensor

    def weigh(self, weight_RN: Tensor) -> Tensor:
        """Return the weight times this."""
        by_row = self.factor.dim() == 1
        return self.factor[:, None] * weight_RN if by_row else weight_RN @ self.factor

    def undo(self, left_RK: Tensor, right_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors of a weight from those of a weighed one."""
        if self.factor.dim() == 1:
            return self.inverse[:, None] * left_RK, right_KN
        return left_RK, right_KN @ self.inverse


@torch.no_grad()
def roots(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]) -> dict[str, Root]:
    """Return what errors are multiplied with, by the layers' names.

    Of linear layers, embeddings and convolutions without groups; other layers have none, and
    neither have those that the batches do not reach. In eval mode. ValueError if inputs are not
    finite, or no layer is reached.
    """
    sums: dict[str, Tensor] = {}
    text_BL: list[Tensor] = []  # what is no padding, where a batch tells by its `attention_mask`

    def add(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not arguments:  # called by name
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
        for own in readers:  # of an embedding that is tied to a head, the embedding
            if isinstance(own, nn.Embedding) == isinstance(readers[0], nn.Embedding):
                seeing = functools.partial(add, layer.spec.name)
                hooks.append(own.register_forward_pre_hook(seeing))
    try:
        with evaluating(model):
            for batch in track(batches, "looking at batches"):
                mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                text_BL[:] = [] if mask is None else [mask.reshape(len(mask), -1) > 0]
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if hooks and not sums:
        raise ValueError("the batches reach no layer: give the network before torch.compile")
    return {name: _root(name, total) for name, total in sums.items() if total.any()}


@torch.no_grad()
def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return all floating outputs of a batch as one vector; in eval mode."""
    with evaluating(model):
        found = logits(call(model, batch))
    return torch.cat([tensor.reshape(-1).double().cpu() for tensor in found.values()])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold every module in eval mode, and give each its own mode back."""
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
    """Return what a layer's rows are multiplied with, M x N."""
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
    if total.dim() == 1:  # how often: as if each had been seen once more
        factor_R = (total.double() + 1).sqrt()
        return Root(factor_R, 1 / factor_R)
    total_NN = total / total.diagonal().mean()
    total_NN.diagonal().add_(DAMPING)
    squares_N, turned_NN = torch.linalg.eigh(total_NN)
    root_N = squares_N.clamp(min=DAMPING / 2).sqrt()
    return Root((turned_NN * root_N) @ turned_NN.T, (turned_NN / root_N) @ turned_NN.T)
