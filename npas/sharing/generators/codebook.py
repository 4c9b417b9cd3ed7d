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

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npas.sharing.generators.rows import Readers, Reads, RowsBlock, signed_rows

if TYPE_CHECKING:
    from npas.sharing.layout.allocation import LayerAllocation

CODEBOOK = "codebook"


def codebook_weight(values_P: Tensor, indices_M: Tensor, bank: int, row: int, size: int) -> Tensor:
    """Return a layer's flat weight by plain operations, for compilers and function transforms."""
    return signed_rows(values_P, bank, row, *_places(indices_M)).reshape(-1)[:size]


def initial_indices(layer: LayerAllocation) -> Tensor:
    """Return indices, M x 1, of all rows in turn, for a layer that is not fitted."""
    row = layer.source[1]
    count = -(-layer.template_size // row)
    return (torch.arange(layer.learned[0], dtype=torch.int32) % count)[:, None]


def _places(indices_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bank row of each row of a weight, M, and its sign, M x 1."""
    negative_M = indices_M < 0
    return torch.where(negative_M, -1 - indices_M, indices_M), 1 - 2 * negative_M.int()[:, None]


class Trust:
    """A number that rises when indices may have changed without a new version.

    Writes through `.data` and collectives of `torch.distributed` do not raise versions.
    """

    def __init__(self) -> None:
        self.round = 0


@dataclass(frozen=True)
class _Known:
    """The indices that tables were made of, M x 1: the tensor itself and a copy of its values."""

    tensor: Tensor
    state: tuple[int, int | None, int]  # bank, version, round
    values_M: Tensor
    made: dict[type, Any] = field(default_factory=dict)


class _Tables:
    """What reading and gathering need of a layer's indices.

    If these are another tensor or another version, as DDP makes one at each forward, their values
    are compared, and only new ones need new tables.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._known: _Known | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as empty tables."""
        return _Tables, (self._trust,)

    def get(self, kind: type[Reads | Readers], bank: int, row: int, indices_M1: Tensor) -> Any:
        """Return the table of one kind. Raises ValueError for invalid indices."""
        version = None if indices_M1.is_inference() else indices_M1._version
        state, known = (bank, version, self._trust.round), self._known
        same = known is not None and known.tensor is indices_M1 and known.state == state
        if known is None or version is None or not same:
            with torch.no_grad():
                values_M = indices_M1.detach().to("cpu", copy=True).view(-1)
            made: dict[type, Any] = {}
            if known is not None and known.state[0] == bank:
                kinds = {(t.device, t.dtype) for t in (known.tensor, indices_M1)}
                same = len(kinds) == 1
                made = known.made if same and torch.equal(known.values_M, values_M) else {}
            if not made:
                refuse_indices(values_M, -(-bank // row), "a layer's indices into its codebook")
            known = self._known = _Known(indices_M1, state, values_M, made)
        if kind not in known.made:
            with torch.inference_mode(False), torch.no_grad():
                places_M, signs_M1 = _places(known.values_M.clone().long())
                known.made[kind] = kind.of(bank, row, places_M, signs_M1, indices_M1.device)
        return known.made[kind]


def refuse_indices(indices: Tensor, rows: int, named: str) -> None:
    """Raise ValueError unless the tensor, as `named`, has indices of `rows` rows."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"{named} must be integers, not {indices.dtype}: load the network again")
    if indices.numel() and not -rows <= int(indices.min()) <= int(indices.max()) < rows:
        raise ValueError(
            f"{named} must be from {-rows} to {rows - 1}, and are from {int(indices.min())} to"
            f" {int(indices.max())}: the file is damaged, or of another network"
        )


@dataclass(frozen=True)
class CodebookBlock(RowsBlock):
    """A layer in rows of `row` values. A pass binds the layer's indices."""

    row: int
    tables: _Tables = field(compare=False)
    indices_M1: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, layer: LayerAllocation, block: tuple[Any, ...], trust: Trust) -> CodebookBlock:
        """Return a layer's block of the fields of `RowsBlock`, without indices."""
        keys, size, rows, shapes = block
        return cls(keys, size, rows, shapes, layer.source[1], _Tables(trust))

    def bind(self, indices_M1: Tensor) -> CodebookBlock:
        """Return the block with indices."""
        return replace(self, indices_M1=indices_M1)

    def read(self, values_P: Tensor, scale: Tensor, empty: Callable[[int, int], Tensor]) -> Tensor:
        assert self.indices_M1 is not None
        weight_MC = empty(len(self.indices_M1), self.row)
        if not weight_MC.is_meta:
            reads = self.tables.get(Reads, len(values_P), self.row, self.indices_M1)
            reads.fill(values_P, scale, weight_MC)
        return weight_MC.view(-1)[: self.size]

    def add(self, buffer_P: Tensor, gradient_N: Tensor, scale: Tensor) -> None:
        assert self.indices_M1 is not None
        if rest := -self.size % self.row:
            gradient_N = F.pad(gradient_N, (0, rest))
        if not buffer_P.is_meta:
            readers = self.tables.get(Readers, len(buffer_P), self.row, self.indices_M1)
            readers.add(buffer_P, gradient_N.view(-1, self.row), scale)

    def plain(self, values_P: Tensor) -> Tensor:
        assert self.indices_M1 is not None
        indices_M = self.indices_M1.view(-1)
        return codebook_weight(values_P, indices_M, len(values_P), self.row, self.size)
