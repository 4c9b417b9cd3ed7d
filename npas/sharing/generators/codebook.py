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

import copy
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
    """What has happened to a network's indices that their versions do not show.

    `round` rises when writes through `.data` and collectives of `torch.distributed` may have
    changed them, `loads` when a state dict was loaded.
    """

    def __init__(self) -> None:
        self.round = self.loads = 0


@dataclass(frozen=True)
class _Known:
    """Indices that have been seen, M x 1: the tensor itself, a copy of its values, its tables."""

    tensor: Tensor
    state: tuple[int | None, int] | None  # version, round
    loads: int
    values_M: Tensor
    made: dict[type, Any] = field(default_factory=dict)


class IndexTables:
    """What reading and gathering need of a layer's indices into its bank.

    If these are another tensor or another version, as DDP makes one at each forward, their values
    are compared, and only new ones need new tables.
    """

    def __init__(self, layer: LayerAllocation, trust: Trust) -> None:
        self._layer, self._trust = layer, trust
        self._known: _Known | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as empty tables."""
        return IndexTables, (self._layer, self._trust)

    def __deepcopy__(self, memo: dict[int, Any]) -> IndexTables:
        """Copy without tables; the copy still knows its indices."""
        twin = IndexTables(self._layer, copy.deepcopy(self._trust, memo))
        if (known := self._known) is not None:
            tensor = copy.deepcopy(known.tensor, memo)
            twin._known = replace(known, tensor=tensor, state=None, made={})
        return twin

    def check(self, indices_M1: Tensor) -> _Known:
        """Return what is known of the indices.

        Raises ValueError if the tensor's values were changed in place and not by `load_state_dict`
        or a collective: averages of buffers truncate integers.
        """
        known, trust = self._known, self._trust
        version = None if indices_M1.is_inference() else indices_M1._version
        state, is_own = (version, trust.round), known is not None and known.tensor is indices_M1
        if known is None or not is_own or version is None or known.state != state:
            if indices_M1.is_meta:
                return _Known(indices_M1, state, trust.loads, indices_M1)
            with torch.no_grad():
                values_M = indices_M1.detach().to("cpu", copy=True).view(-1)
            made: dict[type, Any] = {}
            if known is not None:
                one, other = known.tensor, indices_M1
                if torch.equal(known.values_M, values_M):
                    alike = (one.device, one.dtype) == (other.device, other.dtype)
                    made = known.made if alike else {}
                elif is_own and known.loads == trust.loads and not _has_collectives():
                    raise ValueError(
                        f"the indices of {self._layer.name} into its codebook were changed in"
                        " place, as by an average of all buffers, which truncates them: average"
                        " parameters alone, and load indices by load_state_dict"
                    )
            known = self._known = _Known(indices_M1, state, trust.loads, values_M, made)
        return known

    def get(self, kind: type[Reads | Readers], indices_M1: Tensor) -> Any:
        """Return the table of one kind. Raises ValueError for invalid indices."""
        known = self.check(indices_M1)
        if kind not in known.made:
            bank, row = self._layer.template_size, self._layer.source[1]
            if not known.made:
                refuse_indices(
                    known.values_M, -(-bank // row), "a layer's indices into its codebook"
                )
            with torch.inference_mode(False), torch.no_grad():
                places_M, signs_M1 = _places(known.values_M.clone().long())
                known.made[kind] = kind.of(bank, row, places_M, signs_M1, indices_M1.device)
        return known.made[kind]


def _has_collectives() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
    tables: IndexTables = field(compare=False)
    indices_M1: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, layer: LayerAllocation, block: tuple[Any, ...], tables: IndexTables
    ) -> CodebookBlock:
        """Return a layer's block of the fields of `RowsBlock`, without indices."""
        keys, size, rows, shapes = block
        return cls(keys, size, rows, shapes, layer.source[1], tables)

    def bind(self, indices_M1: Tensor) -> CodebookBlock:
        """Return the block with indices."""
        return replace(self, indices_M1=indices_M1)

    def read(self, values_P: Tensor, scale: Tensor, empty: Callable[[int, int], Tensor]) -> Tensor:
        assert self.indices_M1 is not None
        weight_MC = empty(len(self.indices_M1), self.row)
        if not weight_MC.is_meta:
            reads = self.tables.get(Reads, self.indices_M1)
            reads.fill(values_P, scale, weight_MC)
        return weight_MC.view(-1)[: self.size]

    def add(self, buffer_P: Tensor, gradient_N: Tensor, scale: Tensor) -> None:
        assert self.indices_M1 is not None
        if rest := -self.size % self.row:
            gradient_N = F.pad(gradient_N, (0, rest))
        if not buffer_P.is_meta:
            readers = self.tables.get(Readers, self.indices_M1)
            readers.add(buffer_P, gradient_N.view(-1, self.row), scale)

    def plain(self, values_P: Tensor) -> Tensor:
        assert self.indices_M1 is not None
        indices_M = self.indices_M1.view(-1)
        return codebook_weight(values_P, indices_M, len(values_P), self.row, self.size)
