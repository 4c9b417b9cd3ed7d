"""Mix templates of a bank into weights, and accumulate their gradients without bank-sized copies.

Slicing one large parameter makes autograd write a zero-filled, bank-sized gradient for every layer.
Here the node of every layer adds to one buffer instead. The bank's gradient is returned once per
backward pass by an entry node, so DDP, hooks and `autograd.grad` see an ordinary gradient.

`BankReader` reads one bank (P) in one forward pass. A `Block` is the L layers that read the same K
templates of N values. Their gradients are computed in one pass over templates and buffer, in pieces
that fit the cache. One autograd node serves several blocks.

Shapes: L layers of a block, K templates, N values per template, P values of a bank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from npas.sharing.generators.rows import RowsBlock
from npas.sharing.torch_private import backward_pass, is_shared_storage, will_execute

MODIFIED = (
    "a bank or its coefficients were modified in place between forward and backward, so the"
    " gradients would be wrong: step the optimizer after backward"
)
PIECE = 1 << 18
"""Values of a template that a CPU reads at a time; fewer for a block, so that it fits the cache."""
WORTH_KEEPING = 1 << 20
"""Smallest tensor, in bytes, whose memory is kept; smaller ones are cheap to allocate."""


class BufferPool:
    """Reuse the memory of large, short-lived tensors across steps, on CPUs only.

    The C library returns large freed blocks to the system and maps them again, page by page, at the
    next step. For generated weights and bank gradients that takes longer than computing them. A
    GPU's caching allocator keeps them already.
    """

    def __init__(self) -> None:
        self._storages: dict[tuple[object, int], torch.UntypedStorage] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty pool."""
        return BufferPool, ()

    def empty(self, key: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialized tensor of `shape`, with the dtype and device of `like`.

        One storage is kept per `key` and size. It is reused once no tensor refers to it.
        """
        size = math.prod(shape) * like.element_size()
        if not like.is_cpu or size < WORTH_KEEPING:
            return like.new_empty(shape)
        # Removed while it is inspected, so that only one of two threads gets it.
        storage = self._storages.pop((key, size), None)
        if storage is None or is_shared_storage(storage):
            tensor = like.new_empty(shape)
        else:
            tensor = like.new_empty(0).set_(storage).view(tuple(shape))
        self._storages[key, size] = tensor.untyped_storage()
        return tensor

    def clear(self) -> None:
        """Free the kept memory."""
        self._storages.clear()


class BankReader:
    """Mix one bank's templates in one forward pass, and sum their gradients in one buffer."""

    def __init__(self, bank_P: Tensor, pool: BufferPool) -> None:
        self._bank_P = bank_P
        self._buffer = _GradientBuffer(bank_P, pool)
        self._entry = _Entry.apply(bank_P, self._buffer)
        self._values: dict[torch.dtype, Tensor] = {bank_P.dtype: bank_P.detach()}

    def mix(
        self,
        made: Sequence[Tensor],
        blocks: Sequence[AnyBlock],
        alphas: Sequence[Tensor],
        read: Iterable[object] = (),
    ) -> list[Tensor]:
        """Return the weights `made`, sum_k alpha_lk T_k of each layer, attached to autograd.

        `read` are the layers' keys in order of use, complete by the time of backward, which adds
        gradients in the reverse order. Backward raises RuntimeError if the bank or the coefficients
        were modified in place since forward.
        """
        return list(
            _Mix.apply(self._bank_P, self._entry, made, self._buffer, blocks, read, *alphas)
        )

    @torch.no_grad()
    def weights(
        self, blocks: Sequence[AnyBlock], alphas: Sequence[Tensor], dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the weights of the blocks' layers in their shapes, without gradients.

        The blocks name each layer's matrix in `alphas` and its row. Templates are cast to `dtype`
        before they are mixed.
        """
        values_P = self._rounded(dtype)
        return [w for b in blocks for w in b.weights(values_P, alphas, self._buffer.pool)]

    def _rounded(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._values:
            self._values[dtype] = self._bank_P.detach().to(dtype)
        return self._values[dtype]


@dataclass(frozen=True)
class Block:
    """Layers that read the same templates: `size` values at each of `positions`.

    By layer, `keys` name the memory in the pool, `rows` are (matrix, row) of the coefficients, and
    `shapes` are the shapes of the weights.
    """

    keys: tuple[object, ...]
    positions: tuple[int, ...]
    size: int
    rows: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    def weights(self, values_P: Tensor, alphas: Sequence[Tensor], pool: BufferPool) -> list[Tensor]:
        """Return the layers' weights in their shapes.

        A CPU computes one matrix product per layer, so that each weight has its own memory, which
        is reused soon. A GPU computes a single product, which saves kernel launches.
        """
        rows = [alphas[m][row : row + 1].to(values_P.dtype) for m, row in self.rows]
        if not values_P.is_cpu:
            flat = (torch.cat(rows) @ _templates(values_P, self.positions, self.size)).unbind(0)
            return [w_N.view(shape) for w_N, shape in zip(flat, self.shapes, strict=True)]
        weights = [pool.empty(key, (1, self.size), values_P) for key in self.keys]
        for part in _pieces(self.size, values_P):
            templates_KN = _templates(values_P, self.positions, self.size, part)
            for weight_1N, alpha_1K in zip(weights, rows, strict=True):
                torch.mm(alpha_1K, templates_KN, out=weight_1N[:, part])
        return [w_1N.view(shape) for w_1N, shape in zip(weights, self.shapes, strict=True)]

    def gather(
        self,
        gradients_N: Sequence[Tensor],
        alpha_LK: Tensor,
        bank_P: Tensor,
        buffer_P: Tensor | None,
        wanted: bool,
    ) -> Tensor:
        """Add alpha^T G to the buffer unless it is None; return G T^T, or zeros unless `wanted`."""
        positions, size, regions = self.positions, self.size, list[Tensor]()
        if buffer_P is not None and _side_by_side(positions, size):  # one matrix
            regions = [buffer_P[positions[0] : positions[-1] + size].view(len(positions), size)]
        elif buffer_P is not None:
            regions = [buffer_P[p : p + size][None] for p in positions]
        gradient_LK = torch.zeros_like(alpha_LK)
        pieces = _pieces(size, bank_P, len(gradients_N))
        for part in pieces:
            parts = [g_N if len(pieces) == 1 else g_N[part] for g_N in gradients_N]
            stacked_LN = parts[0][None] if len(parts) == 1 else torch.stack(parts)
            stacked_LN = stacked_LN.to(bank_P.dtype)
            if wanted:
                gradient_LK.addmm_(stacked_LN, _templates(bank_P, positions, size, part).T)
            row = 0
            for region_RN in regions:
                alpha_LR = alpha_LK[:, row : row + len(region_RN)]
                row += len(region_RN)
                region_RN = region_RN if len(pieces) == 1 else region_RN[:, part]
                if len(stacked_LN) == 1:  # faster than a product with one row
                    region_RN.addr_(alpha_LR[0], stacked_LN[0])
                else:
                    region_RN.addmm_(alpha_LR.T, stacked_LN)
        return gradient_LK

    def differentiable(
        self, gradients_N: Sequence[Tensor], alpha_LK: Tensor, bank_P: Tensor, needs_bank: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return G T^T and, if needed, the bank's gradient, both differentiable."""
        gradients_LN = torch.stack(list(gradients_N)).to(bank_P.dtype)
        gradient_LK = gradients_LN @ _templates(bank_P, self.positions, self.size).T
        if not needs_bank:
            return gradient_LK, None
        at = torch.tensor(self.positions, device=bank_P.device)[:, None]
        places_KN = at + torch.arange(self.size, device=bank_P.device)
        gradients_KN = alpha_LK.T @ gradients_LN
        gradient_P = torch.zeros_like(bank_P)
        return gradient_LK, gradient_P.index_add(0, places_KN.reshape(-1), gradients_KN.reshape(-1))


AnyBlock = Block | RowsBlock


class _GradientBuffer:
    """The buffers that a bank's gradient is summed in, one per running backward pass."""

    def __init__(self, bank_P: Tensor, pool: BufferPool) -> None:
        self._shape = bank_P.shape
        self._like = bank_P.detach()
        self.pool = pool
        self._gradients: dict[int, Tensor] = {}

    def gradient(self) -> Tensor:
        """Return the buffer of the running backward pass, initially zeros."""
        running = backward_pass()
        if running not in self._gradients:
            buffer = self.pool.empty("gradient", self._shape, self._like).zero_()
            self._gradients[running] = buffer
        return self._gradients[running]

    def take(self) -> Tensor | None:
        """Remove and return the running pass's buffer; None if no layer wrote to it."""
        return self._gradients.pop(backward_pass(), None)


def mix(bank_P: Tensor, alpha_K: Tensor, positions: Sequence[int], size: int) -> Tensor:
    """Return sum_k alpha_k T_k by plain operations, for compilers and function transforms."""
    return alpha_K @ _templates(bank_P, positions, size).to(alpha_K.dtype)


def _side_by_side(positions: Sequence[int], size: int) -> bool:
    return list(positions) == [positions[0] + k * size for k in range(len(positions))]


def _templates(
    bank_P: Tensor, positions: Sequence[int], size: int, part: slice | None = None
) -> Tensor:
    """Return the templates, or a part of each, as a K x N matrix: a view if they are contiguous."""
    part = part or slice(0, size)
    if _side_by_side(positions, size):
        whole_KN = bank_P[positions[0] : positions[-1] + size].view(len(positions), size)
        return whole_KN if part.stop - part.start == size else whole_KN[:, part]
    return torch.stack([bank_P[p + part.start : p + part.stop] for p in positions])


def _pieces(size: int, like: Tensor, layers: int = 1) -> list[slice]:
    """Return slices of a template that fit a CPU's cache; on a GPU, one slice."""
    piece = max(PIECE // layers, PIECE // 4) if like.is_cpu else size
    return [slice(start, min(start + piece, size)) for start in range(0, size, piece)]


class _Entry(Function):
    """The node between a bank and its layers, whose backward runs after all of theirs."""

    @staticmethod
    def forward(ctx: Any, bank_P: Tensor, buffer: _GradientBuffer) -> Tensor:
        ctx.buffer = buffer
        ctx.set_materialize_grads(False)
        return bank_P.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.buffer.take(), None


class _Mix(Function):
    """The autograd node of the weights of some blocks.

    The context holds the inputs and their versions instead of saving them. Activation checkpointing
    counts saved tensors, and the count must not depend on whether a weight was generated inside or
    before the checkpoint.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bank_P: Tensor,
        entry: Tensor,
        made: Sequence[Tensor],
        buffer: _GradientBuffer,
        blocks: Sequence[AnyBlock],
        read: Iterable[object],
        *alphas: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.inputs = bank_P, *alphas
        ctx.versions = versions(bank_P, *alphas)
        ctx.buffer, ctx.blocks, ctx.read = buffer, blocks, read
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        bank_P, *alphas = ctx.inputs
        no_others = (None,) * 5
        if all(gradient is None for gradient in gradients):
            return (None, *no_others, *(None for _ in alphas))
        if versions(bank_P, *alphas) != ctx.versions:
            raise RuntimeError(MODIFIED)
        # If the entry node does not run, nothing would free the buffer.
        needs_bank = ctx.needs_input_grad[0] and will_execute(ctx.next_functions[1][0])
        needed = ctx.needs_input_grad[6:]
        found = [torch.zeros_like(a) if n else None for a, n in zip(alphas, needed, strict=True)]
        gradient_P = None  # the entry node returns it
        left = iter(gradients)
        pairs = [(block, [(next(left), *row) for row in block.rows]) for block in ctx.blocks]
        used = {key: place for place, key in enumerate(ctx.read)} if len(pairs) > 1 else {}
        pairs.sort(key=lambda pair: -min(used.get(key, len(used)) for key in pair[0].keys))
        for block, own in pairs:
            given = [(g.reshape(-1), m, row) for g, m, row in own if g is not None]
            if not given:
                continue
            flat = [g for g, _, _ in given]
            rows = [alphas[m][row : row + 1] for _, m, row in given]
            alpha_LK = (rows[0] if len(rows) == 1 else torch.cat(rows)).to(bank_P.dtype)
            if torch.is_grad_enabled():  # create_graph: differentiable, without the buffer
                gradient_LK, part_P = block.differentiable(flat, alpha_LK, bank_P, needs_bank)
                if part_P is not None:
                    gradient_P = part_P if gradient_P is None else gradient_P + part_P
            else:
                buffer_P = ctx.buffer.gradient() if needs_bank else None
                wanted = any(found[m] is not None for _, m, _ in given)
                gradient_LK = block.gather(flat, alpha_LK, bank_P, buffer_P, wanted)
            for j, (_, m, row) in enumerate(given):
                if found[m] is not None:
                    found[m][row] = gradient_LK[j]
        return (gradient_P, *no_others, *found)


def versions(*tensors: Tensor) -> tuple[int, ...]:
    """Return the tensors' version counters; 0 for inference tensors, which have none."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
