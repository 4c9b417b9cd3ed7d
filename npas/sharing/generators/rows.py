"""Read rows of a bank in any order and with signs, and add up their gradients.

Used by hashed layers (`hashing`) and codebooks (`codebook`). If C does not divide the bank, its
last row ends at the bank's end and overlaps the row before.

Shapes: P values of the bank, C values per row, R whole rows of the bank, M rows that are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from npas.sharing.runtime.bank import BufferPool

PIECE = 8192
"""Rows that are read at a time, which fit a CPU's cache."""
SPARSE = 8
"""In backward a layer that reads less than 1 / SPARSE of the rows adds to those rows only."""


def signed_rows(
    values_P: Tensor, bank: int, row: int, places_M: Tensor, signs_M1: Tensor
) -> Tensor:
    """Return the rows at the places times the signs, M x C, by plain operations for tracers.

    `bank` is P, which is constant for a tracer.
    """
    whole = bank // row
    rows_RC = values_P[: whole * row].view(whole, row)
    if bank % row:
        rows_RC = torch.cat([rows_RC, values_P[-row:][None]])
    return rows_RC.index_select(0, places_M) * signs_M1.to(values_P.dtype)


@dataclass(frozen=True)
class Reads:
    """Which rows are read, by pieces: slices of M, bank rows, and uses of an overlapping last row.

    Uses of the last row are not among the bank rows.
    """

    row: int
    signs_M1: Tensor
    pieces: list[tuple[slice, Tensor, Tensor]]

    @classmethod
    def of(
        cls, bank: int, row: int, places_M: Tensor, signs_M1: Tensor, device: torch.device
    ) -> Reads:
        """Return the pieces of rows at these places; the tensors are on the CPU."""
        whole, found = bank // row, []
        for begin in range(0, len(places_M), PIECE):
            piece = slice(begin, begin + PIECE)
            last = (places_M[piece] == whole).nonzero().flatten()
            named = places_M[piece].clamp(max=whole - 1).int()
            found.append((piece, named.to(device), last.to(device)))
        return cls(row, signs_M1.to(torch.int8).to(device), found)

    def fill(self, values_P: Tensor, scale: Tensor, out_MC: Tensor) -> None:
        """Write the rows, times signs and the scale, to `out_MC`, without gradients."""
        row = self.row
        whole = len(values_P) // row
        rows_RC, shares_M1 = values_P[: whole * row].view(whole, row), self.signs_M1 * scale
        for piece, places, last in self.pieces:
            part_MC = out_MC[piece]
            torch.index_select(rows_RC, 0, places, out=part_MC)
            if len(last):
                part_MC.index_copy_(0, last, values_P[-row:].expand(len(last), row))
            part_MC.mul_(shares_M1[piece])


@dataclass(frozen=True)
class _Part:
    """A part of the bank: its rows, and who reads them.

    `rows` are indices or, if most rows are read, the slice of values that they fill. `begins` are
    the indices in `places` of each row's first reader, as `embedding_bag` needs them.
    """

    rows: slice | Tensor
    places: Tensor
    begins: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Readers:
    """The readers of each row of the bank: each row gathers its readers' gradients.

    That is faster than scattering them.
    """

    row: int
    parts: list[_Part]

    @classmethod
    def of(
        cls, bank: int, row: int, places_M: Tensor, signs_M1: Tensor, device: torch.device
    ) -> Readers:
        """Return the readers of rows at these places; the tensors are on the CPU."""
        whole, count, parts = bank // row, len(places_M), []
        each_R1 = torch.arange(whole + 1, device=places_M.device)
        is_dense = count * SPARSE >= whole
        order_M = (places_M if is_dense else (places_M == whole).int()).sort(stable=True).indices
        sorted_M = places_M[order_M]
        rows = each_R1[:-1] if is_dense else sorted_M[sorted_M < whole]
        begins = each_R1[: len(rows) + 1].int()
        if is_dense:
            begins = torch.searchsorted(sorted_M, each_R1).int()
        signs_M, order_M = signs_M1.flatten().to(torch.int8)[order_M].to(device), order_M.int()
        for at in range(0, len(rows), PIECE):
            part = begins[at : at + PIECE + 1]
            read = slice(int(part[0]), int(part[-1]))
            filled = slice(at * row, (at + len(part) - 1) * row)
            named = filled if is_dense else rows[at : at + PIECE].to(device)
            own = order_M[read].to(device), (part[:-1] - part[0]).to(device), signs_M[read]
            parts.append(_Part(named, *own))
        last = slice(int(begins[-1]), count)
        if last.start < count:
            own = order_M[last].to(device), begins.new_zeros(1).to(device), signs_M[last]
            parts.append(_Part(slice(bank - row, bank), *own))
        return cls(row, parts)

    def add(self, buffer_P: Tensor, given_MC: Tensor, scale: Tensor) -> None:
        """Add the gradients of the rows that were read, M x C, to a buffer in place."""
        whole = len(buffer_P) // self.row
        for part in self.parts:
            sums_RC = F.embedding_bag(
                part.places, given_MC, part.begins,
                mode="sum", per_sample_weights=part.signs * scale,
            )  # fmt: skip
            if isinstance(part.rows, Tensor):
                rows_RC = buffer_P[: whole * self.row].view(whole, self.row)
                rows_RC.index_add_(0, part.rows, sums_RC)
            else:
                buffer_P[part.rows] += sums_RC.view(-1)


@dataclass(frozen=True)
class RowsBlock(ABC):
    """A layer of `size` weights that are bank rows times a fixed scale, without gradient.

    It has the interface of `Block`.
    """

    keys: tuple[object, ...]
    size: int
    rows: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    @abstractmethod
    def read(self, values_P: Tensor, scale: Tensor, empty: Callable[[int, int], Tensor]) -> Tensor:
        """Return the flat weight without gradients, in memory that `empty` allocates."""

    @abstractmethod
    def add(self, buffer_P: Tensor, gradient_N: Tensor, scale: Tensor) -> None:
        """Add the flat weight's gradient to the rows of the buffer that were read."""

    @abstractmethod
    def plain(self, values_P: Tensor) -> Tensor:
        """Return the flat weight without its scale, by plain operations."""

    def weights(self, values_P: Tensor, alphas: Sequence[Tensor], pool: BufferPool) -> list[Tensor]:
        """Return the layer's weight in its shape, in a list."""
        ((m, row),) = self.rows

        def empty(*shape: int) -> Tensor:
            return pool.empty(self.keys[0], shape, values_P)

        weight_N = self.read(values_P, alphas[m][row].to(values_P.dtype), empty)
        return [weight_N.view(self.shapes[0])]

    def gather(
        self,
        gradients_N: Sequence[Tensor],
        alpha_LK: Tensor,
        bank_P: Tensor,
        buffer_P: Tensor | None,
        wanted: bool,
    ) -> Tensor:
        """Add the gradient to the rows of the buffer, if any; return zeros."""
        if buffer_P is not None:
            self.add(buffer_P, gradients_N[0].to(bank_P.dtype), alpha_LK[0])
        return torch.zeros_like(alpha_LK)

    def differentiable(
        self, gradients_N: Sequence[Tensor], alpha_LK: Tensor, bank_P: Tensor, needs_bank: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return zeros and, if needed, the bank's gradient, both differentiable."""
        if not needs_bank:
            return torch.zeros_like(alpha_LK), None
        values_P = torch.zeros_like(bank_P, requires_grad=True)
        given_N = gradients_N[0].to(bank_P.dtype) * alpha_LK[0]
        (part_P,) = torch.autograd.grad(self.plain(values_P), values_P, given_N, create_graph=True)
        return torch.zeros_like(alpha_LK), part_P
