"""The codebook generator: a layer's weight consists of bank rows that were chosen for it.

Vector quantization: the flat weight is cut into rows of C values, and each is a row of the bank, or
its negative, times the layer's scale. `indices` name the rows: i is row i, -1 - i its negative.
They are stored with the network and do not train; each counts as one parameter. `init="fit"`
chooses them by trained weights (see `npas.sharing.trained.codebooks`), where hashed layers read
rows at random (`hashing`). Deep Compression (Han et al., ICLR 2016) shares single values in this
way, Stock et al. (ICLR 2020) rows.

Shapes: P values of the bank, C values per row, M rows of a weight; the last may be cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npas.sharing.generators.rows import Readers, Reads, signed_rows

if TYPE_CHECKING:
    from npas.sharing.layout.allocation import LayerAllocation
    from npas.sharing.runtime.bank import BufferPool

CODEBOOK = "codebook"


def codebook_weight(values_P: Tensor, indices_M: Tensor, bank: int, row: int, size: int) -> Tensor:
    """Return a layer's flat weight by plain operations, for compilers and function transforms."""
    return signed_rows(values_P, bank, row, *_places(indices_M)).reshape(-1)[:size]


def initial_indices(layer: LayerAllocation) -> Tensor:
    """Return indices, M x 1, that read all rows equally often, for a layer that is not fitted."""
    row = layer.source[1]
    count = -(-layer.template_size // row)
    return (torch.arange(layer.learned[0], dtype=torch.int32) % count)[:, None]


def _places(indices_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bank row of each row of a weight, M, and its sign, M x 1."""
    negative_M = indices_M < 0
    return torch.where(negative_M, -1 - indices_M, indices_M), 1 - 2 * negative_M.int()[:, None]


class _Tables:
    """What reading and gathering need of a layer's indices, until those change.

    DDP copies buffers at each forward, which raises their version: then the values are compared.
    """

    def __init__(self) -> None:
        self._found: dict[type, tuple[tuple[object, int, int | None], Tensor, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as empty tables."""
        return _Tables, ()

    def get(self, kind: type[Reads | Readers], bank: int, row: int, indices_M: Tensor) -> Any:
        """Return the table of one kind for whole rows of a weight."""
        version = None if indices_M.is_inference() else indices_M._version
        place = indices_M.device, len(indices_M), bank
        state = (place, indices_M.data_ptr(), version)
        known = self._found.get(kind)
        if known is not None and version is not None and known[0] == state:
            return known[2]
        with torch.inference_mode(False), torch.no_grad():
            if known is not None and known[0][0] == place and torch.equal(known[1], indices_M):
                made = known[2]
            else:
                places_M, signs_M1 = _places(indices_M.detach().to("cpu", torch.int64))
                made = kind.of(bank, row, places_M, signs_M1, indices_M.device)
            self._found[kind] = state, indices_M.detach().clone(), made
        return made


@dataclass(frozen=True)
class CodebookBlock:
    """A layer of `size` weights in rows of `row` values. It has the interface of `Block`.

    Its coefficient is a fixed scale without gradient. A pass binds the layer's indices.
    """

    keys: tuple[object, ...]
    size: int
    row: int
    rows: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]
    indices_M: Tensor | None = field(default=None, compare=False)
    tables: _Tables = field(default_factory=_Tables, compare=False)

    def bind(self, indices_M1: Tensor) -> CodebookBlock:
        """Return the block with indices."""
        return replace(self, indices_M=indices_M1.view(-1))

    def weights(self, values_P: Tensor, alphas: Sequence[Tensor], pool: BufferPool) -> list[Tensor]:
        """Return the layer's weight in its shape, in a list."""
        assert self.indices_M is not None
        ((m, row),) = self.rows
        scale = alphas[m][row].to(values_P.dtype)
        weight_MC = pool.empty(self.keys[0], (len(self.indices_M), self.row), values_P)
        reads = self.tables.get(Reads, len(values_P), self.row, self.indices_M)
        reads.fill(values_P, scale, weight_MC)
        return [weight_MC.view(-1)[: self.size].view(self.shapes[0])]

    def gather(
        self,
        gradients_N: Sequence[Tensor],
        alpha_LK: Tensor,
        bank_P: Tensor,
        buffer_P: Tensor | None,
        wanted: bool,
    ) -> Tensor:
        """Add the gradient to the rows of the buffer that were read; return zeros."""
        if buffer_P is not None:
            assert self.indices_M is not None
            given_N, scale = gradients_N[0].to(bank_P.dtype), alpha_LK[0]
            whole, rest = divmod(self.size, self.row)
            if whole:
                readers = self.tables.get(Readers, len(bank_P), self.row, self.indices_M[:whole])
                readers.add(buffer_P, given_N[: whole * self.row].view(whole, self.row), scale)
            if rest:  # a cut row
                places_1, signs_11 = _places(self.indices_M[whole:])
                starts_1 = (places_1 * self.row).clamp(max=len(bank_P) - self.row)
                places_N = starts_1 + torch.arange(rest, device=starts_1.device)
                part_N = given_N[whole * self.row :] * (signs_11[0] * scale)
                buffer_P.index_add_(0, places_N, part_N)
        return torch.zeros_like(alpha_LK)

    def differentiable(
        self, gradients_N: Sequence[Tensor], alpha_LK: Tensor, bank_P: Tensor, needs_bank: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return zeros and, if needed, the bank's gradient, both differentiable."""
        if not needs_bank:
            return torch.zeros_like(alpha_LK), None
        assert self.indices_M is not None
        values_P = torch.zeros_like(bank_P, requires_grad=True)
        weight_N = codebook_weight(values_P, self.indices_M, len(bank_P), self.row, self.size)
        given_N = gradients_N[0].to(bank_P.dtype) * alpha_LK[0]
        (part_P,) = torch.autograd.grad(weight_N, values_P, given_N, create_graph=True)
        return torch.zeros_like(alpha_LK), part_P
