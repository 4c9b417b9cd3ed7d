"""`Allocation`: which layers read what from which bank, as plain data with exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from npas.sharing.blocks import place_of, spell_names
from npas.sharing.budget import BudgetReport
from npas.sharing.generators import schemes
from npas.sharing.generators.bases import BASES, CHANNELS, TILES, extent
from npas.sharing.generators.codebook import CODEBOOK
from npas.sharing.generators.coefficients import GENERATORS
from npas.sharing.generators.hashing import HASH
from npas.sharing.layers import LayerSpec, indices_name, matrix_form, upsampler_name
from npas.utils.json_data import decode, shown
from npas.utils.printing import Grid, Shown, columns

FORMAT_VERSION = 1
ALLOCATORS = ("npas", "reference")
Cells = tuple[str, ...]
LEFT_OUT = {"first": 0, "kept": (), "upsample_templates": 1}
"""Fields that are stored only if they differ from these defaults."""


@dataclass(frozen=True)
class Scheme:
    """The options that an allocation was made with."""

    generator: str = "wavg"
    upsampler: str = "inter"
    max_templates: int = 8
    allocator: str = "npas"
    coefficient_init: str = "orthogonal"
    low_rank: int = 0
    upsample_templates: int = 1


@dataclass(frozen=True)
class LayerAllocation(LayerSpec):
    """How the weight of one layer is made.

    - `templates`: the bank positions where its K templates of `template_size` values start; empty
      for an ordinary parameter.
    - `mixing`: none (one template, no coefficients), avg, wavg, emb or fixed.
    - `upsampler`: None if templates have the weight's size. Otherwise `source` is the matrix form
      of a template and `learned` the shape of the upsampler's weights. With rows, columns or tiles
      (a shared basis, see `bases`) these are mixtures, `source` is the shape of a tile, and `kept`
      lists the rows or columns that are basis vectors. With channels `learned` is K x output
      channels; a template is a span of K templates.
      With codebook `source` is 1 x the values of a row and `learned` the number of indices x 1.
    - `first`: the weights of the layers before it, for hash and registered schemes.
    - `scale`: the index of its fixed scale in the network's scales.
    - `rank`: the rank of a low-rank correction added to the generated weight; 0 for none.
    """

    templates: tuple[int, ...] = ()
    template_size: int = 0
    mixing: str = "none"
    upsampler: str | None = None
    source: tuple[int, int] = (0, 0)
    learned: tuple[int, int] = (0, 0)
    scale: int = 0
    rank: int = 0
    kept: tuple[int, ...] = ()
    first: int = 0

    @property
    def correction(self) -> int:
        """Count the parameters of the low-rank correction: rows x r and r x columns."""
        return self.rank * sum(matrix_form(self.shape))

    @property
    def matrix(self) -> tuple[int, int]:
        """Return the matrix form that `inter` resizes to: one row for a one-row source."""
        return (1, self.size) if self.source[0] == 1 else matrix_form(self.shape)

    @property
    def how(self) -> str:
        """Return a short description of how the weight is made."""
        if not self.templates:
            return "ordinary parameter"
        if self.upsampler == "inter":
            how = f"inter from {self.source[0]}x{self.source[1]}"
        elif self.upsampler in BASES:
            how = f"{extent(self)[2]} vectors by {self.upsampler}"
            if self.upsampler == TILES:
                how += f" of {self.source[0]}x{self.source[1]}"
        elif self.upsampler == CHANNELS:
            how = f"{self.learned[0]} templates by channel"
        elif self.upsampler == CODEBOOK:
            how = f"rows of {self.source[1]} from a codebook"
        elif self.upsampler == HASH:
            how = "hashed rows"
        else:
            how = self.upsampler or ("one template" if self.mixing == "none" else self.mixing)
        return f"{how} + rank {self.rank}" if self.rank else how

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """Return the half-open ranges of the bank that the layer reads."""
        return [(start, start + self.template_size) for start in self.templates]


def learned_name(index: int, layer: LayerAllocation) -> str:
    """Return the name of the tensor of shape `learned` of the layer at this index."""
    return indices_name(index) if layer.upsampler == CODEBOOK else upsampler_name(index)


@dataclass(frozen=True)
class GroupAllocation:
    """Layers that share one bank of `bank` values; 0 if they are ordinary parameters."""

    name: str
    bank: int
    layers: tuple[LayerAllocation, ...]

    @property
    def rows(self) -> dict[tuple[str, int], list[int]]:
        """Return the indices in the group of the layers that share a generator and K."""
        rows: dict[tuple[str, int], list[int]] = {}
        for place, layer in enumerate(self.layers):
            if layer.mixing != "none":
                rows.setdefault((layer.mixing, len(layer.templates)), []).append(place)
        return rows

    @property
    def coefficients(self) -> int:
        """Count the parameters of the group's generators."""
        rows = self.rows.items()
        return sum(GENERATORS[mixing].count([k] * len(own)) for (mixing, k), own in rows)

    @property
    def upsamplers(self) -> int:
        """Count what is a layer's own: of upsamplers, mixtures of basis vectors and channels."""
        return sum(math.prod(la.learned) for la in self.layers if la.upsampler != CODEBOOK)

    @property
    def indices(self) -> int:
        """Count the indices of rows in codebooks, each of which counts as a parameter."""
        return sum(la.learned[0] for la in self.layers if la.upsampler == CODEBOOK)

    @property
    def corrections(self) -> int:
        """Count the parameters of low-rank corrections."""
        return sum(layer.correction for layer in self.layers)

    @property
    def ordinary(self) -> int:
        """Count the weights of layers that are ordinary parameters."""
        return sum(layer.size for layer in self.layers if not layer.templates)

    @property
    def used(self) -> int:
        """Count all parameters of the group."""
        own = self.upsamplers + self.indices + self.corrections
        return self.bank + self.coefficients + own + self.ordinary

    @property
    def unread(self) -> int:
        """Count the bank values that no layer reads; 0 except for the reference allocator."""
        end = covered = 0
        for low, high in sorted(i for layer in self.layers for i in layer.intervals):
            covered += max(0, high - max(low, end))
            end = max(end, high)
        return self.bank - covered


@dataclass(frozen=True)
class Allocation:
    """The plan of a shared network: groups, banks, template positions and exact counts."""

    scheme: Scheme
    budget: BudgetReport
    unshared: int
    groups: tuple[GroupAllocation, ...]

    @property
    def layers(self) -> tuple[LayerAllocation, ...]:
        """Return the layers of all groups."""
        return tuple(layer for group in self.groups for layer in group.layers)

    @property
    def scales(self) -> int:
        """Count the fixed scales."""
        return 1 + max(layer.scale for layer in self.layers)

    @property
    def split(self) -> dict[str, int]:
        """Return the number of parameters by use; the sum is `budget.used`."""
        corrections = sum(group.corrections for group in self.groups)
        indices = sum(group.indices for group in self.groups)
        return {
            "bank": sum(group.bank for group in self.groups),
            "coefficients": sum(group.coefficients for group in self.groups),
            "upsamplers": sum(group.upsamplers for group in self.groups),
            "unshared": self.unshared + sum(group.ordinary for group in self.groups),
            **({"low_rank": corrections} if corrections else {}),
            **({"indices": indices} if indices else {}),
        }

    @property
    def unread(self) -> int:
        """Count the bank values that no layer reads."""
        return sum(group.unread for group in self.groups)

    def map(self, change: Callable[[LayerAllocation], LayerAllocation]) -> Allocation:
        """Return the allocation with `change` applied to each layer."""
        groups = (replace(g, layers=tuple(map(change, g.layers))) for g in self.groups)
        return replace(self, groups=tuple(groups))

    def table(self) -> str:
        """Return the plan as text: a line per layer, the groups' banks and the totals."""
        rows: list[Cells] = [("layer", "shape", "weights", "group", "K", "reads", "how")]
        for group in self.groups:
            for layer in group.layers:
                reads = ", ".join(f"{low:,}" for low in layer.templates[:2])
                reads += " ..." if len(layer.templates) > 2 else ""
                *cells, how = _cells(layer, group.name)
                rows.append((layer.name, *cells, reads, how))
        banks = ", ".join(f"{group.name} {group.bank:,}" for group in self.groups if group.bank)
        lines = [*columns(rows, right={2, 4}), "", f"banks    {banks or 'none'}"]
        return "\n".join([*lines, *self._totals()])

    def summary(self) -> Shown:
        """Return a short table: a line per kind of layer, a line per group, and the totals."""
        alike: dict[Cells, list[str]] = {}
        for group in self.groups:
            for layer in group.layers:
                key = place_of(layer.name), *_cells(layer, group.name)
                alike.setdefault(key, []).append(layer.name)
        rows: list[Cells] = [("layers", "", "shape", "weights each", "group", "K", "how")]
        for (_, *cells), names in alike.items():
            rows.append((spell_names(names), f"x {len(names)}" if len(names) > 1 else "", *cells))
        banks = [("group", "layers", "weights", "bank", "bank / weights")]
        for group in self.groups:
            weights = sum(layer.size for layer in group.layers)
            share = f"{100 * group.bank / weights:.1f}%" if group.bank else "-"
            bank = f"{group.bank:,}" if group.bank else "none"
            banks.append((group.name, str(len(group.layers)), f"{weights:,}", bank, share))
        totals = "\n".join(self._totals())
        return Shown(Grid(rows, {1, 3, 5}), Grid(banks, {1, 2, 3, 4}), totals)

    def _totals(self) -> list[str]:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.split.items())
        budget = self.budget
        lines = [
            f"split    {parts}",
            f"budget   asked {budget.asked}, dense {budget.dense:,}, allowed {budget.allowed:,},"
            f" used {budget.used:,} ({100 * budget.utilization:.2f}% of allowed)",
        ]
        over = budget.used - budget.allowed
        if over > 0 and self.scheme.allocator != "reference":  # its budgets bound banks only
            lines.append(
                f"over     {over:,} parameters more than the budget allows: the network was changed"
                " after it was shared"
            )
        lines += [
            f"no hash  group {group.name} reads plain templates: hashed rows need a bank less near"
            f" to its layers' {sum(layer.size for layer in group.layers):,} weights"
            for group in self.groups
            if self.scheme.generator == HASH and group.bank and group.layers[0].upsampler != HASH
        ]
        if self.unread:
            lines.append(f"unread   {self.unread:,} bank parameters that no layer reads")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data, which `from_dict` reads."""
        return {
            "format": FORMAT_VERSION,
            "scheme": _plain(self.scheme),
            "budget": self.budget.to_dict(),
            "split": self.split,
            "unread": self.unread,
            "groups": [
                {"name": group.name, "bank": group.bank, "layers": len(group.layers)}
                for group in self.groups
            ],
            "layers": [
                _plain(layer) | {"group": group.name}
                for group in self.groups
                for layer in group.layers
            ],
            "unshared": self.unshared,
        }

    @classmethod
    def from_dict(cls, data: object) -> Allocation:
        """Return the allocation that `to_dict` wrote.

        Raises ValueError, naming the field, for another format, wrong types and wrong counts.
        """
        version = data.get("format") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or version != FORMAT_VERSION:
            raise ValueError(
                f"the allocation has format {shown(version)}, this version reads"
                f" {FORMAT_VERSION}: use the npas version that wrote it"
            )
        stored: _Stored = decode(_Stored, data, optional=LEFT_OUT)
        members: dict[str, list[LayerAllocation]] = {group.name: [] for group in stored.groups}
        for entry in stored.layers:
            if entry.group not in members:
                raise ValueError(f"layer {shown(entry.name)} is in no group of the file's")
            values = {key.name: getattr(entry, key.name) for key in fields(LayerAllocation)}
            members[entry.group].append(LayerAllocation(**values))
        groups = (GroupAllocation(g.name, g.bank, tuple(members[g.name])) for g in stored.groups)
        found = cls(stored.scheme, stored.budget, stored.unshared, tuple(groups))
        _check(found, data)
        return found


@dataclass(frozen=True)
class _StoredGroup:
    name: str
    bank: int
    layers: int


@dataclass(frozen=True)
class _StoredLayer(LayerAllocation):
    group: str = ""


@dataclass(frozen=True)
class _Stored:
    """The fields of a stored allocation, as `Allocation.to_dict` returns them."""

    format: int
    scheme: Scheme
    budget: BudgetReport
    split: dict[str, int]
    unread: int
    groups: list[_StoredGroup]
    layers: list[_StoredLayer]
    unshared: int


def _check(plan: Allocation, data: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, if the data's counts are wrong or a scheme is another."""
    if schemes.is_foreign(generator := plan.scheme.generator):
        schemes.find(generator)
        for layer in (layer for layer in plan.layers if layer.upsampler == generator):
            if schemes.learned_shape(generator, layer.shape, layer.template_size) != layer.learned:
                raise ValueError(f"layer {layer.name}: generator={generator!r} is another version")
    used = plan.unshared + sum(group.used for group in plan.groups)
    dense = plan.unshared + sum(layer.size for layer in plan.layers)
    budget = BudgetReport(plan.budget.asked, dense, plan.budget.allowed, used)
    counted = replace(plan, budget=budget).to_dict()
    for field in ("budget", "split", "unread", "groups"):
        if counted[field] != data[field]:
            raise ValueError(
                f"{field} must be {counted[field]}, which its layers add up to, not"
                f" {shown(data[field])}"
            )


def _plain(part: Scheme | LayerAllocation) -> dict[str, Any]:
    """Return a layer or a scheme as a dict, without later fields that have their defaults."""
    data = asdict(part)
    for name, plain in LEFT_OUT.items():
        if data.get(name) == plain and not data.get("first"):
            del data[name]
    return data


def _cells(layer: LayerAllocation, group: str) -> Cells:
    """Return a layer's cells for both tables: shape, weights, group, K, how."""
    shape, count = "x".join(map(str, layer.shape)), str(len(layer.templates) or "-")
    return shape, f"{layer.size:,}", group, count, layer.how
