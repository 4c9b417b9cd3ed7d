"""Which layer reads what: pure data, made before any tensor, exact to the parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from npas.sharing.bases import BASES, extent
from npas.sharing.budget import BudgetReport
from npas.sharing.coefficients import GENERATORS
from npas.sharing.validation import check_allocation
from npas.utils.json_data import decode, shown

FORMAT_VERSION = 1
INDEX = r"(?<![^.])\d+(?![^.])"
"""A number between two dots of a name: the place of a block among its likes."""


@dataclass(frozen=True)
class Scheme:
    """The rules an allocation follows."""

    generator: str = "wavg"
    upsampler: str = "inter"
    max_templates: int = 8
    allocator: str = "npas"
    coefficient_init: str = "orthogonal"


@dataclass(frozen=True)
class LayerAllocation:
    """How one layer gets its weight.

    `templates` are the positions in the bank where its K templates start, each `template_size`
    values long; none for an ordinary parameter. `mixing` is `none` (one template, no
    coefficients), `avg`, `wavg` or `emb`. An upsampled layer has one template (in a search
    for groups K) not of its weight's size: `source` is its matrix form, `learned` the shape of the
    upsampler's own weights. `upsampler` rows or columns is a shared basis (see `bases`): `learned`
    is the mixtures' shape, `kept` names the rows or columns that are vectors of the basis.
    `scale` is the place of the layer's fixed scale in the network's list of scales.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    templates: tuple[int, ...] = ()
    template_size: int = 0
    mixing: str = "none"
    upsampler: str | None = None
    source: tuple[int, int] = (0, 0)
    learned: tuple[int, int] = (0, 0)
    scale: int = 0
    kept: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Return the matrix that `inter` resizes to: one row for a one-row source."""
        return (1, self.size) if self.source[0] == 1 else self.form

    @property
    def form(self) -> tuple[int, int]:
        """Return the weight's matrix form: out x rest."""
        return matrix_form(self.shape)

    @property
    def how(self) -> str:
        """Return in a few words how the weight is made."""
        if not self.templates:
            return "ordinary parameter"
        if self.upsampler == "inter":
            return f"inter from {self.source[0]}x{self.source[1]}"
        if self.upsampler in BASES:
            return f"{extent(self)[2]} vectors by {self.upsampler}"
        if self.upsampler:
            return self.upsampler
        return "one template" if self.mixing == "none" else self.mixing

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """Return the half-open ranges of the bank that the layer reads."""
        return [(start, start + self.template_size) for start in self.templates]


def matrix_form(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows x rest of a tensor: out x rest, and N x D for a position table of 1 x N x D."""
    rows = next((length for length in shape if length > 1), 1)
    return rows, math.prod(shape) // rows


@dataclass(frozen=True)
class GroupAllocation:
    """The layers that share one bank of `bank` values; 0 where they are ordinary."""

    name: str
    bank: int
    layers: tuple[LayerAllocation, ...]

    @property
    def coefficients(self) -> int:
        """Count the parameters of the group's generators."""
        mixed: dict[str, list[int]] = {}
        for layer in self.layers:
            if layer.mixing != "none":
                mixed.setdefault(layer.mixing, []).append(len(layer.templates))
        return sum(GENERATORS[mixing].count(templates) for mixing, templates in mixed.items())

    @property
    def upsamplers(self) -> int:
        """Count the parameters of the group's upsamplers."""
        return sum(math.prod(layer.learned) for layer in self.layers)

    @property
    def ordinary(self) -> int:
        """Count the weights of layers that stay ordinary parameters."""
        return sum(layer.size for layer in self.layers if not layer.templates)

    @property
    def used(self) -> int:
        """Count every trainable parameter of the group."""
        return self.bank + self.coefficients + self.upsamplers + self.ordinary

    @property
    def unread(self) -> int:
        """Count the bank values that no layer reads: 0 but for the reference layout."""
        end = covered = 0
        for low, high in sorted(i for layer in self.layers for i in layer.intervals):
            covered += max(0, high - max(low, end))
            end = max(end, high)
        return self.bank - covered


@dataclass(frozen=True)
class Allocation:
    """The whole plan: groups, banks, template positions and exact counts."""

    scheme: Scheme
    budget: BudgetReport
    unshared: int
    groups: tuple[GroupAllocation, ...]

    @property
    def layers(self) -> tuple[LayerAllocation, ...]:
        """Return the layers of all groups."""
        return tuple(layer for group in self.groups for layer in group.layers)

    @property
    def split(self) -> dict[str, int]:
        """Return the used parameters by what they are; the parts sum to `budget.used`."""
        return {
            "bank": sum(group.bank for group in self.groups),
            "coefficients": sum(group.coefficients for group in self.groups),
            "upsamplers": sum(group.upsamplers for group in self.groups),
            "unshared": self.unshared + sum(group.ordinary for group in self.groups),
        }

    @property
    def unread(self) -> int:
        """Count the bank values that no layer reads."""
        return sum(group.unread for group in self.groups)

    def table(self) -> str:
        """Return the plan as text: a line a layer, then the groups' banks and the totals."""
        rows = [("layer", "shape", "weights", "group", "K", "reads", "how")]
        rows += [
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.size:,}",
                group.name,
                str(len(layer.templates) or "-"),
                ", ".join(f"{low:,}" for low in layer.templates[:2])
                + (" ..." if len(layer.templates) > 2 else ""),
                layer.how,
            )
            for group in self.groups
            for layer in group.layers
        ]
        banks = ", ".join(f"{group.name} {group.bank:,}" for group in self.groups if group.bank)
        lines = [*_columns(rows, right={2, 4}), "", f"banks    {banks or 'none'}"]
        return "\n".join([*lines, *self._totals()])

    def summary(self) -> str:
        """Return the plan in short: a line for all layers alike, a line a group, the totals."""
        alike: dict[tuple[str, ...], list[LayerAllocation]] = {}
        for group in self.groups:
            for layer in group.layers:
                pattern = re.sub(INDEX, "#", layer.name)
                key = pattern, str(layer.shape), group.name, str(len(layer.templates)), layer.how
                alike.setdefault(key, []).append(layer)
        rows = [("layers", "", "shape", "weights each", "group", "K", "how")]
        rows += [
            (
                _fold([layer.name for layer in layers]),
                f"x {len(layers)}" if len(layers) > 1 else "",
                "x".join(map(str, layers[0].shape)),
                f"{layers[0].size:,}",
                group_name,
                str(len(layers[0].templates) or "-"),
                how,
            )
            for (_, _, group_name, _, how), layers in alike.items()
        ]
        banks = [("group", "layers", "weights", "bank", "bank / weights")]
        for group in self.groups:
            weights = sum(layer.size for layer in group.layers)
            share = f"{100 * group.bank / weights:.1f}%" if group.bank else "-"
            bank = f"{group.bank:,}" if group.bank else "none"
            banks.append((group.name, str(len(group.layers)), f"{weights:,}", bank, share))
        lines = [*_columns(rows, right={1, 3, 5}), "", *_columns(banks, right={1, 2, 3, 4})]
        return "\n".join([*lines, "", *self._totals()])

    def _totals(self) -> list[str]:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.split.items())
        budget = self.budget
        lines = [
            f"split    {parts}",
            f"budget   asked {budget.asked}, dense {budget.dense:,}, allowed {budget.allowed:,},"
            f" used {budget.used:,} ({100 * budget.utilization:.2f}% of allowed)",
        ]
        over = budget.used - budget.allowed
        if over > 0 and self.scheme.allocator != "reference":  # whose budgets are of banks alone
            lines.append(
                f"over     {over:,} parameters more than the budget allows: the network was changed"
                " after it was shared"
            )
        if self.unread:
            lines.append(f"unread   {self.unread:,} bank parameters that no layer reads")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able data; `from_dict` reads it back."""
        layers = [
            {key: value for key, value in asdict(layer).items() if key != "kept" or value}
            | {"group": group.name}
            for group in self.groups
            for layer in group.layers
        ]
        return {
            "format": FORMAT_VERSION,
            "scheme": asdict(self.scheme),
            "budget": self.budget.to_dict(),
            "split": self.split,
            "unread": self.unread,
            "groups": [
                {"name": group.name, "bank": group.bank, "layers": len(group.layers)}
                for group in self.groups
            ],
            "layers": layers,
            "unshared": self.unshared,
        }

    @classmethod
    def from_dict(cls, data: object) -> Allocation:
        """Read what `to_dict` wrote.

        ValueError, naming the field, for another format and for a plan that does not hold together:
        unknown names, positions outside of their bank, counts that do not add up.
        """
        version = data.get("format") if isinstance(data, Mapping) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the allocation has format {shown(version)}, this version reads"
                f" {FORMAT_VERSION}: use the npas version that wrote it"
            )
        assert isinstance(data, Mapping)
        if isinstance(scheme := data.get("scheme"), Mapping):  # as earlier versions named it
            names = {"layout": "allocator", "coefficients": "coefficient_init"}
            data = {**data, "scheme": {names.get(key, key): scheme[key] for key in scheme}}
        stored: _Stored = decode(_Stored, data, optional=("coefficient_init", "kept"))
        members: dict[str, list[LayerAllocation]] = {group.name: [] for group in stored.groups}
        for entry in stored.layers:
            if entry.group not in members:
                raise ValueError(f"layer {shown(entry.name)} is in no group of the file's")
            values = {key.name: getattr(entry, key.name) for key in fields(LayerAllocation)}
            members[entry.group].append(LayerAllocation(**values))
        if [group.layers for group in stored.groups] != [len(own) for own in members.values()]:
            raise ValueError("groups must say how many layers each has, by a name of its own")
        groups = tuple(
            GroupAllocation(group.name, group.bank, tuple(members[group.name]))
            for group in stored.groups
        )
        kept = stored.budget
        budget = BudgetReport(kept.asked, kept.dense, kept.allowed, kept.used)
        found = cls(stored.scheme, budget, stored.unshared, groups)
        check_allocation(found, stored.split, stored.unread, kept.utilization)
        return found


@dataclass(frozen=True)
class Errors:
    """How far generated weights are from given ones: |W - generated| / |W|.

    `layers` has each layer of the plan, `all` is the same of all together.
    """

    layers: dict[str, float]
    all: float

    def table(self) -> str:
        """Return the errors as text, a line for all together and one for each layer."""
        width = max(map(len, self.layers), default=0)
        lines = [f"  {name.ljust(width)}  {error:.4f}" for name, error in self.layers.items()]
        return "\n".join([f"fit      {self}", *lines])

    def __str__(self) -> str:
        worst = max(self.layers, key=self.layers.__getitem__, default="")
        at_most = f" (at most {self.layers[worst]:.3g}: {worst})" if worst else ""
        return f"relative error {self.all:.3g} of {len(self.layers)} layers{at_most}"


@dataclass(frozen=True)
class _StoredBudget:
    asked: str
    dense: int
    allowed: int
    used: int
    utilization: float


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
    budget: _StoredBudget
    split: dict[str, int]
    unread: int
    groups: list[_StoredGroup]
    layers: list[_StoredLayer]
    unshared: int


def _columns(rows: Sequence[tuple[str, ...]], right: Collection[int]) -> list[str]:
    """Align rows of cells; the columns in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _fold(names: Sequence[str]) -> str:
    """Write names that differ in their indices as one: `blocks.{0-11}.fc.weight`."""
    columns = zip(*(map(int, re.findall(INDEX, name)) for name in names), strict=True)
    indices = iter([_spell(sorted(set(column))) for column in columns])
    return re.sub(INDEX, lambda _: next(indices), names[0])


def _spell(numbers: Sequence[int]) -> str:
    """Write sorted numbers as a number, a range or a list."""
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
