"""Read layers' templates from a bank, and gather their gradients without copying the bank.

Slicing one large parameter makes autograd write a zero-filled, bank-sized gradient for every layer.
Here every layer's node adds into one buffer instead, and the bank's gradient leaves through an
entry node: by the ordinary path, once per backward pass, so that DDP, hooks and `autograd.grad` see
it as they see any other.

Shapes: K templates, N values a template, P values a bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from npas.sharing.buffers import BufferPool


class BankReader:
    """Hand out one bank's templates for one forward pass; their gradients meet in one buffer."""

    def __init__(self, bank_P: Tensor, pool: BufferPool) -> None:
        self._bank_P = bank_P
        self._pool = pool
        self._buffer = _GradientBuffer(bank_P, pool)
        self._entry = _Entry.apply(bank_P, self._buffer)

    def mix(self, key: object, alpha_K: Tensor, positions: Sequence[int], size: int) -> Tensor:
        """Return sum_k alpha_k T_k, a tensor of `size` values; `key` names the layer's memory.

        Raises RuntimeError in backward if the bank or the coefficients were changed in place
        between forward and backward.
        """
        places, memory = (tuple(positions), size), (self._pool, key)
        return _Mix.apply(self._bank_P, self._entry, alpha_K, self._buffer, places, memory)


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
    """Mix one layer's templates by one matrix product; accumulate by one rank-one update.

    Inputs are kept on the context, with their versions, rather than saved: activation checkpointing
    counts saved tensors, and whether a weight is generated inside a checkpoint or was before must
    not change the count.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bank_P: Tensor,
        entry: Tensor,
        alpha_K: Tensor,
        buffer: _GradientBuffer,
        places: tuple[tuple[int, ...], int],
        memory: tuple[BufferPool, object],
    ) -> Tensor:
        ctx.inputs = bank_P, alpha_K
        ctx.versions = _versions(bank_P, alpha_K)
        ctx.buffer, (ctx.positions, ctx.size) = buffer, places
        ctx.set_materialize_grads(False)
        pool, key = memory
        weight_N = pool.empty(key, (ctx.size,), bank_P)
        templates_KN = _templates(bank_P, ctx.positions, ctx.size)
        torch.mm(alpha_K.to(bank_P.dtype)[None], templates_KN, out=weight_N[None])
        return weight_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor | None) -> tuple[Any, ...]:
        if gradient_N is None:
            return (None,) * 6
        bank_P, alpha_K = ctx.inputs
        if _versions(bank_P, alpha_K) != ctx.versions:
            raise RuntimeError(
                "a bank or its coefficients were modified in place between forward and backward,"
                " so the gradients would be wrong: step the optimizer after backward"
            )
        needs_bank, _, needs_alpha = ctx.needs_input_grad[:3]
        alpha_K = alpha_K.to(bank_P.dtype)
        templates_KN = _templates(bank_P, ctx.positions, ctx.size)
        gradient_alpha_K = templates_KN @ gradient_N if needs_alpha else None
        if not needs_bank:
            return None, None, gradient_alpha_K, None, None, None
        if torch.is_grad_enabled():  # create_graph: leave the buffer out, stay differentiable
            gradient_P = _scatter(bank_P, torch.outer(alpha_K, gradient_N), ctx.positions)
            return gradient_P, None, gradient_alpha_K, None, None, None
        _accumulate(ctx.buffer.gradient(), alpha_K, gradient_N, ctx.positions)
        return None, None, gradient_alpha_K, None, None, None


def _accumulate(
    buffer_P: Tensor, alpha_K: Tensor, gradient_N: Tensor, positions: Sequence[int]
) -> None:
    """Add alpha_k times the weight's gradient at every template's place."""
    size = gradient_N.numel()
    if _side_by_side(positions, size):
        region_KN = buffer_P[positions[0] : positions[-1] + size].view(-1, size)
        region_KN.addr_(alpha_K, gradient_N)
        return
    for alpha, position in zip(alpha_K, positions, strict=True):
        buffer_P[position : position + size].addcmul_(alpha, gradient_N)


def _scatter(bank_P: Tensor, gradients_KN: Tensor, positions: Sequence[int]) -> Tensor:
    """Return a bank-sized, differentiable sum of the templates' gradients at their places."""
    size = gradients_KN.shape[1]
    places_KN = torch.tensor(positions, device=bank_P.device)[:, None] + torch.arange(
        size, device=bank_P.device
    )
    return torch.zeros_like(bank_P).index_add(0, places_KN.reshape(-1), gradients_KN.reshape(-1))


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def in_function_transform() -> bool:
    """Tell whether a `torch.func` transform is running, which needs plain operations."""
    return torch._C._functorch.peek_interpreter_stack() is not None
