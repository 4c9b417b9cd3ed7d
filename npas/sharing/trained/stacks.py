"""Fit shared bases to trained weights: `place` turns `Unit`s of layers into groups and values.

Shapes: L layers, as matrices R x N; K vectors of length N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from npas.sharing.layers import (
    SCALES,
    Layer,
    LayerSpec,
    bank_name,
    generator_name,
    matrix_form,
    upsampler_name,
)
from npas.sharing.layout.allocation import GroupAllocation, LayerAllocation
from npas.sharing.trained.activations import Root

AT_ONCE = 1 << 22
"""Values of a stack of layers that one matrix product computes with."""
TURNS = 12
"""Power iterations for a truncated last vector."""


Placed = tuple[list[GroupAllocation], dict[str, Tensor]]
"""Groups, and the values of their shared tensors by name."""


@dataclass
class Unit:
    """Layers that share one basis, with the errors and costs of each number K of vectors.

    The last entry of `errors` and `costs` is the unshared weights. `taken` is the chosen K. `cut`
    is the length of a truncated last vector and the number of its mixtures by layer. `root` weighs
    the errors of a layer with its own basis.
    """

    layers: list[Layer]
    kind: str  # own, rows, columns or templates
    errors: Tensor
    costs: Tensor
    taken: int = 0
    cut: tuple[int, list[int]] = (0, [])
    root: Root | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether the layers remain ordinary parameters."""
        return self.taken == len(self.costs) - 1

    @property
    def may_be_cut(self) -> bool:
        """Return whether a truncated vector can be added."""
        return not self.is_whole and self.kind != "templates"

    @property
    def form(self) -> tuple[int, int]:
        """Return (R, N) of each layer, N the length of a vector."""
        form = matrix_form(self.layers[0].spec.shape)
        return form[::-1] if self.kind == "columns" else form

    def best(self, price: float) -> tuple[int, float]:
        """Return the K with the least error + price * cost, and that sum."""
        total = self.errors + price * self.costs
        k = int(total[1:].argmin()) + 1
        return k, float(total[k])


def place(units: Sequence[Unit]) -> Placed:
    """Return a group per unit and one of all whole layers, and the tensors' values by name."""
    groups: list[GroupAllocation] = []
    values: dict[str, Tensor] = {}
    scales = [1.0]
    index = 0
    for unit in (unit for unit in units if not unit.is_whole):
        made = _own(unit) if unit.kind == "own" else _stack(unit)
        first = unit.layers[0].spec
        name = f"{unit.kind} {'x'.join(map(str, first.shape))}"
        name = first.name if unit.kind == "own" else name
        planned = []
        for place, (layer, scale) in enumerate(zip(made.layers, made.scales, strict=True)):
            planned.append(replace(layer, scale=len(scales)))
            scales.append(scale)
            if made.mixtures:
                values[upsampler_name(index + place)] = made.mixtures[place].view(layer.learned)
        if made.coefficients is not None:
            values[generator_name("coefficients", len(groups), unit.taken)] = made.coefficients
        values[bank_name(len(groups))] = made.bank
        groups.append(GroupAllocation(name, len(made.bank), tuple(planned)))
        index += len(planned)
    whole: dict[object, list[LayerAllocation]] = {}  # by dtype and device
    for dense in (layer for unit in units if unit.is_whole for layer in unit.layers):
        plain = LayerAllocation(dense.spec.name, dense.spec.shape, dense.spec.kind)
        whole.setdefault((dense.parameter.dtype, dense.parameter.device), []).append(plain)
    for number, own in enumerate(whole.values()):
        groups.append(GroupAllocation(f"whole {number}" if number else "whole", 0, tuple(own)))
    values[SCALES] = torch.tensor(scales, dtype=torch.float64)
    return groups, values


@dataclass
class _Made:
    """A unit's layer plans and scales, and its bank and mixtures or coefficients."""

    bank: Tensor
    layers: list[LayerAllocation]
    scales: list[float]
    mixtures: list[Tensor] = field(default_factory=list)
    coefficients: Tensor | None = None


def _own(unit: Unit) -> _Made:
    """Return a layer's best approximation of rank K: K of its rows are the basis."""
    (layer,), k = unit.layers, unit.taken
    weight_RN = matrix(layer)
    rows, values = weight_RN.shape
    weighed_RN = weight_RN if unit.root is None else unit.root.weigh(weight_RN)
    if rows < values:
        left_RK = torch.linalg.eigh(weighed_RN @ weighed_RN.T)[1].flip(1)[:, :k]
        right_KN = left_RK.T @ weighed_RN
    else:
        right_KN = torch.linalg.eigh(weighed_RN.T @ weighed_RN)[1].flip(1)[:, :k].T
        left_RK = weighed_RN @ right_KN.T
    if unit.root is not None:
        left_RK, right_KN = unit.root.undo(left_RK, right_KN)
    order = list(range(rows))
    for i, pivot in enumerate(torch.linalg.lu_factor_ex(left_RK)[1].tolist()):
        order[i], order[pivot - 1] = order[pivot - 1], order[i]
    kept, rest = order[:k], sorted(order[k:])
    basis_KN = left_RK[kept] @ right_KN
    mixture_KR = torch.linalg.lstsq(left_RK[kept].T, left_RK[rest].T, driver="gelsd").solution
    bank, mixture = basis_KN.reshape(-1), mixture_KR.reshape(-1)
    learned = k, rows - k
    length, (count, *_) = unit.cut[0], unit.cut[1] or [0]
    if length:
        wrong = weight_RN[rest[:count], :length] - (mixture_KR.T @ basis_KN)[:count, :length]
        vector, mixtures = _rank_one(wrong, _rms(weight_RN))
        bank, mixture = torch.cat([bank, vector]), torch.cat([mixture, mixtures])
        learned = 1, len(mixture)
    plan = _basis(layer.spec, "rows", len(bank), learned)
    return _Made(bank, [replace(plan, kept=tuple(kept))], [1.0], [mixture])


def _stack(unit: Unit) -> _Made:
    """Return layers that share a basis of rows or columns, or templates of their own size."""
    k, by_columns = unit.taken, unit.kind == "columns"
    count, size = len(unit.layers), unit.layers[0].spec.size
    norms = [norm(layer) for layer in unit.layers]
    spread = math.sqrt(sum(norm**2 for norm in norms) / count)  # of the bank
    scales = [norm / spread for norm in norms]
    if unit.kind == "templates":
        vectors_LK = torch.linalg.eigh(products(unit.layers))[1].flip(1)[:, :k]
        bank_KN = torch.zeros(k, size, dtype=torch.float64)
        for layer, alpha_K in zip(unit.layers, vectors_LK, strict=True):
            bank_KN.add_(alpha_K[:, None] * scaled(layer).reshape(1, -1))
        even = math.sqrt(k / count)  # coefficients start with norms near one
        positions = tuple(size * i for i in range(k))
        made = []
        for layer in unit.layers:
            spec = layer.spec
            plan = LayerAllocation(spec.name, spec.shape, spec.kind, positions, size)
            made.append(replace(plan, mixing="wavg"))
        return _Made(
            bank_KN.mul_(even * spread).reshape(-1), made, scales, coefficients=vectors_LK / even
        )
    _, values = unit.form
    basis_KN = torch.linalg.eigh(gram(unit.layers, by_columns))[1].flip(1)[:, :k].T
    length, counts = unit.cut[0], unit.cut[1] or [0] * count
    mixtures, wrong = [], []
    for layer, rows in zip(unit.layers, counts, strict=True):
        weight_RN = scaled(layer).T if by_columns else scaled(layer)
        left_RK = weight_RN @ basis_KN.T
        mixtures.append((left_RK.T / math.sqrt(values)).reshape(-1))
        wrong.append((weight_RN - left_RK @ basis_KN)[:rows, :length])
    bank = (basis_KN * (math.sqrt(values) * spread)).reshape(-1)
    if length:
        vector, more = _rank_one(torch.cat(wrong) * spread, spread)
        bank = torch.cat([bank, vector])
        parts = more.split(counts)
        mixtures = [torch.cat(pair) for pair in zip(mixtures, parts, strict=True)]
    planned = []
    for layer, mixture, rows in zip(unit.layers, mixtures, counts, strict=True):
        learned = (1, len(mixture)) if rows else (k, len(mixture) // k)
        read = k * values + (length if rows else 0)
        planned.append(_basis(layer.spec, unit.kind, read, learned))
    return _Made(bank, planned, scales, mixtures)


def _basis(spec: LayerSpec, kind: str, read: int, learned: tuple[int, int]) -> LayerAllocation:
    return LayerAllocation(
        spec.name, spec.shape, spec.kind, (0,), read,
        upsampler=kind, source=(1, read), learned=learned,
    )  # fmt: skip


def _rank_one(wrong: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """Return a vector of root mean square `spread` and its mixtures, near the best of rank one."""
    vector = wrong[int(wrong.square().sum(1).argmax())].clone()
    for _ in range(TURNS):
        vector = wrong.T @ (wrong @ (vector / vector.norm().clamp(min=1e-300)))
    vector = vector / vector.norm().clamp(min=1e-300)
    length = math.sqrt(len(vector)) * (spread or 1.0)
    return vector * length, wrong @ vector / length


def matrix(layer: Layer) -> Tensor:
    """Return a copy of the weight as a matrix, out x rest, in float64 on the CPU."""
    weight = layer.parameter.detach().to("cpu", torch.float64, copy=True)
    return weight.reshape(matrix_form(layer.spec.shape))


def _rms(weight: Tensor) -> float:
    return float(weight.square().mean().sqrt())


def norm(layer: Layer) -> float:
    """Return the root mean square of the layer's weight, or 1 if it is zero."""
    return _rms(matrix(layer)) or 1.0


def scaled(layer: Layer) -> Tensor:
    """Return the weight as a matrix, scaled to a root mean square of one."""
    weight = matrix(layer)
    return weight.div_(_rms(weight) or 1.0)


def gram(layers: Sequence[Layer], columns: bool) -> Tensor:
    """Return the sum of W^T W of the scaled weights, or of W W^T with `columns`; N x N."""
    forms = (scaled(layer).T if columns else scaled(layer) for layer in layers)
    return torch.stack([form.T @ form for form in forms]).sum(0)


def products(layers: Sequence[Layer]) -> Tensor:
    """Return the inner products of the scaled weights, L x L."""
    found = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    norms = torch.tensor([norm(layer) for layer in layers], dtype=torch.float64)
    step = max(1, AT_ONCE // len(layers))
    flat = [layer.parameter.detach().reshape(-1) for layer in layers]
    for start in range(0, layers[0].spec.size, step):
        part = torch.stack([w[start : start + step].to("cpu", torch.float64) for w in flat])
        found.addmm_(part, part.T)
    return found / norms[:, None] / norms
