"""Read layers' templates from a bank, and gather their gradients without copying the bank.

Slicing one large parameter makes autograd write a zero-filled, bank-sized gradient for every layer.
Here every layer's node adds into one buffer instead, and the bank's gradient leaves through an
entry node: by the ordinary path, once per backward pass, so that DDP, hooks and `autograd.grad` see
it as they see any other.

Layers that read the same templates, a block, mix together: their gradients are gathered in one pass
over templates and buffer, a piece at a time that stays in the cache.

Shapes: L layers of a block, K templates, N values a template, P values a bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from npas.sharing.buffers import BufferPool

MODIFIED = (
    "a bank or its coefficients were modified in place between forward and backward, so the"
    " gradients would be wrong: step the optimizer after backward"
)
PIECE = 1 << 17
"""Values a layer that are gathered at a time on a CPU: a block's pieces fit its cache."""


class BankReader:
    """Hand out one bank's templates for one forward pass; their gradients meet in one buffer."""

    def __init__(self, bank_P: Tensor, pool: BufferPool) -> None:
        self._bank_P = bank_P
        self._pool = pool
        self._buffer = _GradientBuffer(bank_P, pool)
        self._entry = _Entry.apply(bank_P, self._buffer)

    def mix(
        self, keys: Sequence[object], alpha_LK: Tensor, positions: Sequence[int], size: int
    ) -> list[Tensor]:
        """Return sum_k alpha_lk T_k for each layer of a block, tensors of `size` values.

        `keys` name the layers' memory. Raises RuntimeError in backward if the bank or the
        coefficients were changed in place between forward and backward.
        """
        places, memory = (tuple(positions), size), (self._pool, tuple(keys))
        return list(_Mix.apply(self._bank_P, self._entry, alpha_LK, self._buffer, places, memory))


class _GradientBuffer:
    """Hold a bank's gradient while a backward pass gathers it, apart for every running pass."""

    def __init__(self, bank_P: Tensor, pool: BufferPool) -> None:
        self._shape = bank_P.shape
        self._like = bank_P.detach()
        self._pool = pool
        self._gradients: dict[int, Tensor] = {}

    def gradient(self) -> Tensor:
        """Return the running backward pass's buffer, zeros at first."""
        backward_pass = torch._C._current_graph_task_id()
        if backward_pass not in self._gradients:
            buffer = self._pool.empty("gradient", self._shape, self._like).zero_()
            self._gradients[backward_pass] = buffer
        return self._gradients[backward_pass]

    def take(self) -> Tensor | None:
        """Give the running pass's buffer away; None if no layer wrote to it."""
        return self._gradients.pop(torch._C._current_graph_task_id(), None)


def mix(bank_P: Tensor, alpha_K: Tensor, positions: Sequence[int], size: int) -> Tensor:
    """Return sum_k alpha_k T_k by plain operations, for compilers and function transforms."""
    templates_KN = _templates(bank_P, positions, size)
    return alpha_K @ templates_KN


def _side_by_side(positions: Sequence[int], size: int) -> bool:
    return all(p == positions[0] + k * size for k, p in enumerate(positions))


def _templates(bank_P: Tensor, positions: Sequence[int], size: int) -> Tensor:
    """Return the templates as a matrix K x N: a view where they lie side by side."""
    if _side_by_side(positions, size):
        return bank_P[positions[0] : positions[-1] + size].view(len(positions), size)
    return torch.stack([bank_P[p : p + size] for p in positions])


class _Entry(Function):
    """Stand between the bank and its layers; its backward runs after all of theirs."""

    @staticmethod
    def forward(ctx: Any, bank_P: Tensor, buffer: _GradientBuffer) -> Tensor:
        ctx.buffer = buffer
        ctx.set_materialize_grads(False)
        return bank_P.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.buffer.take(), None


class _Mix(Function):
    """Mix the layers of one block, each by one matrix product.

    Inputs are kept on the context, with their versions, rather than saved: activation checkpointing
    counts saved tensors, and whether a weight is generated inside a checkpoint or was before must
    not change the count.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bank_P: Tensor,
        entry: Tensor,
        alpha_LK: Tensor,
        buffer: _GradientBuffer,
        places: tuple[tuple[int, ...], int],
        memory: tuple[BufferPool, tuple[object, ...]],
    ) -> tuple[Tensor, ...]:
        ctx.inputs = bank_P, alpha_LK
        ctx.versions = versions(bank_P, alpha_LK)
        ctx.buffer, (ctx.positions, ctx.size) = buffer, places
        ctx.set_materialize_grads(False)
        templates_KN = _templates(bank_P, ctx.positions, ctx.size)
        pool, keys = memory
        weights = tuple(pool.empty(key, (ctx.size,), bank_P) for key in keys)
        for weight_N, alpha_1K in zip(weights, alpha_LK.to(bank_P.dtype).split(1), strict=True):
            torch.mm(alpha_1K, templates_KN, out=weight_N[None])
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients_N: Tensor | None) -> tuple[Any, ...]:
        bank_P, alpha_LK = ctx.inputs
        given = {i: g for i, g in enumerate(gradients_N) if g is not None}
        if not given:
            return (None,) * 6
        if versions(bank_P, alpha_LK) != ctx.versions:
            raise RuntimeError(MODIFIED)
        needs_bank = ctx.needs_input_grad[0]
        gradients = list(given.values())
        alpha_MK = torch.stack([alpha_LK[i] for i in given]).to(bank_P.dtype)
        templates_KN = _templates(bank_P, ctx.positions, ctx.size)
        if torch.is_grad_enabled():  # create_graph: leave the buffer out, stay differentiable
            gradients_MN = torch.stack(gradients)
            gradient_MK = gradients_MN @ templates_KN.T
            gradient_P = _scatter(bank_P, alpha_MK.T @ gradients_MN, ctx.positions)
        else:
            gradient_P = None  # it leaves through the entry node
            regions = _regions(ctx.buffer.gradient(), ctx.positions, ctx.size) if needs_bank else []
            gradient_MK = _gather(gradients, alpha_MK, templates_KN, regions)
        # Rows are picked without an index tensor, which a GPU would have to wait for.
        rows = dict(zip(given, gradient_MK.to(alpha_LK.dtype), strict=True))
        gradient_LK = torch.stack(
            [rows[i] if i in rows else torch.zeros_like(row) for i, row in enumerate(alpha_LK)]
        )
        return gradient_P if needs_bank else None, None, gradient_LK, None, None, None


def _regions(buffer_P: Tensor, positions: Sequence[int], size: int) -> list[Tensor]:
    """Return the places of the templates in the buffer: one matrix, or one each if they overlap."""
    if _side_by_side(positions, size):
        return [buffer_P[positions[0] : positions[-1] + size].view(len(positions), size)]
    return [buffer_P[p : p + size][None] for p in positions]


def _gather(
    gradients_N: Sequence[Tensor],
    alpha_LK: Tensor,
    templates_KN: Tensor,
    regions: Sequence[Tensor],
) -> Tensor:
    """Add alpha^T G to the regions and return G T^T, the gradient of alpha_LK."""
    size = templates_KN.shape[1]
    if len(gradients_N) == 1:
        row = 0
        for region_RN in regions:
            region_RN.addr_(alpha_LK[0, row : row + len(region_RN)], gradients_N[0])
            row += len(region_RN)
        return (templates_KN @ gradients_N[0])[None]
    gradient_LK = torch.zeros_like(alpha_LK)
    piece = PIECE if templates_KN.is_cpu else size
    for start in range(0, size, piece):
        part = slice(start, start + piece)
        stacked_LN = torch.stack([gradient_N[part] for gradient_N in gradients_N])
        gradient_LK.addmm_(stacked_LN, templates_KN[:, part].T)
        row = 0
        for region_RN in regions:
            alpha_LR = alpha_LK[:, row : row + len(region_RN)]
            region_RN[:, part].addmm_(alpha_LR.T, stacked_LN)
            row += len(region_RN)
    return gradient_LK


def _scatter(bank_P: Tensor, gradients_KN: Tensor, positions: Sequence[int]) -> Tensor:
    """Return a bank-sized, differentiable sum of the templates' gradients at their places."""
    size = gradients_KN.shape[1]
    places_KN = torch.tensor(positions, device=bank_P.device)[:, None] + torch.arange(
        size, device=bank_P.device
    )
    return torch.zeros_like(bank_P).index_add(0, places_KN.reshape(-1), gradients_KN.reshape(-1))


def versions(*tensors: Tensor) -> tuple[int, ...]:
    """Return what tells whether tensors were changed in place; inference tensors cannot tell."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def in_function_transform() -> bool:
    """Tell whether a `torch.func` transform is running, which needs plain operations."""
    return torch._C._functorch.peek_interpreter_stack() is not None
