"""Fit a shared network to trained weights: choose who shares what, how much of it, and the values.

Layers of one shape either share, by truncated SVD of the stack of their weights, each divided by
its root mean square,
    a basis of their rows or of their columns (Basis Sharing, Wang et al., ICLR 2025), or
    templates as large as they are (Savarese & Maire, ICLR 2019),
or each has a basis of its own, which is also what a layer gets whose shape stands alone. For every
one of these the singular values tell the squared error of K vectors, K = 1, 2, ..., and what they
cost. A price a parameter, the same for all, decides between them and sets every K (the price is
found by bisection); what the last jump leaves over goes to the vectors worth most a parameter, and
the rest, less than one vector, to one that is cut short. A layer whose basis would take as many
parameters as the weight stays an ordinary parameter.

Where the layout is given, K templates for all layers of a group (`fill_templates`), the best values
are the singular vectors of the layers' weights.

A weight of rank K of one layer alone has K (R + N - K) degrees of freedom, and so many parameters:
K rows of it are the basis, chosen by LU with partial pivoting, so that no mixture grows large.

Given what layers see (`activations`), it is errors of their outputs that count, relative to the
outputs and by the number of weights. Layers of which it is known then have a basis each.

Everything is computed in float64, a shape at a time.

Shapes: L layers, of R x N values as matrices; K vectors, or templates of N values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from npas.sharing.activations import Root
from npas.sharing.allocation import Allocation, Scheme
from npas.sharing.audit import follow, shared_layers
from npas.sharing.budget import Budget, BudgetReport, spell_count
from npas.sharing.errors import Errors
from npas.sharing.install import shared_weights
from npas.sharing.layers import SCALES, Layer, bank_name, matrix_form
from npas.sharing.stacks import Unit, gram, norm, place, products, scaled
from npas.utils.progress import Bar, track

WIDEST = 8192
"""The longest rows or columns that layers share a basis of: N x N numbers are decomposed."""


@dataclass(frozen=True)
class Fit:
    """A plan made of trained weights, and the values that belong to it, by the tensors' names."""

    allocation: Allocation
    values: dict[str, Tensor]


def fit(
    layers: Sequence[Layer], request: Budget, dense: int, roots: Mapping[str, Root] | None = None
) -> Fit:
    """Plan a network of `dense` trainable parameters inside the budget, and find its values.

    `roots` are those of what layers see, from `activations.roots`. ValueError where the budget is
    below what this takes (one vector a layer), or not below the dense count.
    """
    unshared = dense - sum(layer.spec.size for layer in layers)
    allowed = request.allowed(dense)
    shapes: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        shapes.setdefault(matrix_form(layer.spec.shape), []).append(layer)
    if allowed >= dense:
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} parameters, which is not fewer than the"
            f" {dense:,} of the network: there is nothing to fit, train it as it is"
        )
    with Bar("fitting layers", len(layers)) as bar:
        choices = [c for alike in shapes.values() for c in _choices(alike, roots, bar)]
    floor = unshared + sum(choice.least for choice in choices)
    if allowed < floor:
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} of {dense:,} parameters, and a fit"
            f" takes at least {floor:,} parameters: ask for budget={spell_count(floor)} or more"
        )
    available = allowed - unshared
    units, left = _spend(choices, available)
    if left > max(allowed // 1000, len(layers)) and not any(u.may_be_cut for u in units):
        # Templates cannot be cut short: do without, unless they are the better way even so.
        bases = [_Choice([o for o in c.options if o[0].kind != "templates"]) for c in choices]
        if sum(choice.least for choice in bases) <= available:
            other = _spend(bases, available)
            if _wrong(other[0]) <= _wrong(units):
                units, left = other
    _cut_short(units, left)
    order = {layer.spec.name: i for i, layer in enumerate(layers)}
    units.sort(key=lambda unit: min(order[layer.spec.name] for layer in unit.layers))
    groups, values = place(units)
    used = unshared + sum(group.used for group in groups)
    assert used <= allowed, (used, allowed)
    budget = BudgetReport(request.canonical, dense, allowed, used)
    found = Allocation(Scheme(), budget, unshared, tuple(groups))
    assert not found.unread
    return Fit(found, values)


@torch.no_grad()
def fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a network that was just shared as the plan says the values that belong to it."""
    for name, tensor in values.items():
        own = getattr(model, name)
        assert own.shape == tensor.shape, (name, own.shape, tensor.shape)
        own.copy_(tensor)


@torch.no_grad()
def fill_templates(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network whose groups mix K templates each the values nearest to trained weights.

    Free coefficients of more layers than templates become singular vectors; all others stay, and
    only the bank is chosen.
    """
    shared, first = shared_weights(model), 0
    scales = model.get_buffer(SCALES).double().cpu()
    for g, group in enumerate(shared.allocation.groups):
        count = len(group.layers)
        if group.bank:
            rows = shared.reading.rows[first]
            scale_L1 = scales[[layer.scale for layer in group.layers]][:, None]
            bank = model.get_parameter(bank_name(g))
            bank_KN = bank.detach().double().cpu().view(rows.templates, -1)
            weight_LN = torch.stack([_exact(state[layer.name]) for layer in group.layers])
            if rows.mixing == "wavg" and rows.templates < count:
                alpha_LK, bank_KN = _singular(weight_LN, bank_KN)
                model.get_parameter(rows.names["coefficients"]).copy_(alpha_LK / scale_L1)
            else:
                alpha_LK = rows.coefficients(lambda name: getattr(model, name)).double().cpu()
                alpha_LK = alpha_LK * scale_L1
                bank_KN += torch.linalg.pinv(alpha_LK) @ (weight_LN - alpha_LK @ bank_KN)
            bank.copy_(bank_KN.reshape(-1))
        first += count


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64).reshape(-1)


def _singular(weight_LN: Tensor, bank_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients and templates of the truncated SVD; rows have norms near one.

    A template that nothing needs keeps its values, with coefficients of zero.
    """
    count, k = len(weight_LN), len(bank_KN)
    squares, vectors_LL = torch.linalg.eigh(weight_LN @ weight_LN.T)
    singular_K, vectors_LK = squares.flip(0)[:k].clamp(min=0).sqrt(), vectors_LL.flip(1)[:, :k]
    length = float(squares.clamp(min=0).sum() / count) ** 0.5  # of a weight, on average
    needed_K = singular_K > 1e-6 * singular_K[0]
    alpha_LK = torch.where(needed_K, vectors_LK * singular_K / length, 0.0)
    templates_KN = vectors_LK.T @ weight_LN * (length / singular_K.clamp(min=1e-300))[:, None]
    return alpha_LK, torch.where(needed_K[:, None], templates_KN, bank_KN)


@torch.no_grad()
def weight_errors(model: nn.Module, dense_state: Mapping[str, Tensor]) -> Errors:
    """Compare what a shared network generates with dense weights of the same names.

    ValueError for a network that is not shared, and where a weight is missing or of another shape.
    """
    shared = follow(shared_weights(model))
    names, wrong, whole = shared_layers(shared), {}, {}
    for i, layer in enumerate(track(shared.allocation.layers, "comparing weights")):
        own = names.get(i, [layer.name])
        given = next((dense_state[name] for name in own if name in dense_state), None)
        if given is None or tuple(given.shape) != layer.shape:
            raise ValueError(
                f"there is no {layer.name} of shape {list(layer.shape)} to compare with: take"
                " weights of the same architecture"
            )
        made = shared.weight(i) if layer.templates else model.get_parameter(layer.name)
        found = made.detach().to("cpu", torch.float64)
        target = given.detach().to("cpu", torch.float64)
        wrong[layer.name] = float((found - target).square().sum())
        whole[layer.name] = float(target.square().sum())
    errors = {name: _ratio(wrong[name], whole[name]) for name in wrong}
    return Errors(errors, _ratio(sum(wrong.values()), sum(whole.values())))


def _ratio(wrong: float, whole: float) -> float:
    return math.sqrt(wrong / whole) if whole else float(wrong > 0)


@dataclass
class _Choice:
    """The ways in which the layers of one shape may share."""

    options: list[list[Unit]]

    @property
    def least(self) -> int:
        """Return the fewest parameters that any way takes."""
        return int(min(sum(float(u.costs[1]) for u in units) for units in self.options))

    def best(self, price: float) -> list[Unit]:
        """Return the best way at a price a parameter, K taken."""
        found = []
        for units in self.options:
            takes = [unit.best(price) for unit in units]
            chosen = [replace(u, taken=k) for u, (k, _) in zip(units, takes, strict=True)]
            found.append((sum(total for _, total in takes), chosen))
        return min(found, key=lambda pair: pair[0])[1]


def _choices(alike: list[Layer], roots: Mapping[str, Root] | None, bar: Bar) -> list[_Choice]:
    """Return the ways to share of layers of one shape, each with a basis of its own first."""
    rows, values = matrix_form(alike[0].spec.shape)
    size, count = rows * values, len(alike)
    own = []
    for layer in alike:
        matrix, root = scaled(layer), (roots or {}).get(layer.spec.name)
        if root is not None:
            matrix = root.weigh(matrix)
        square = matrix @ matrix.T if rows < values else matrix.T @ matrix
        k = torch.arange(min(rows, values) + 1, dtype=torch.float64)
        worth = _worth([layer]) if roots is None else size / max(float(square.trace()), 1e-300)
        errors = _left(square) * worth
        own.append(Unit([layer], "own", errors, k * (rows + values - k), root=root))
        bar.advance()
    options = [own]
    if count > 1 and not any(unit.root for unit in own):
        stacks: dict[str, tuple[Callable[[], Tensor], int]] = {}
        if values <= WIDEST:
            stacks["rows"] = (lambda: gram(alike, columns=False)), values + count * rows
        if rows <= WIDEST:
            stacks["columns"] = (lambda: gram(alike, columns=True)), rows + count * values
        stacks["templates"] = (lambda: products(alike)), size + count
        for kind, (gram_of, cost) in stacks.items():
            most = (count * size - 1) // cost  # as many vectors as cost less than the weights
            if most:
                worth = _worth(alike) if roots is None else 1.0
                errors = _left(gram_of())[: most + 1] * worth
                costs = cost * torch.arange(len(errors), dtype=torch.float64)
                whole = torch.tensor([0.0]), torch.tensor([float(count * size)])
                both = [torch.cat(pair) for pair in zip((errors, costs), whole, strict=True)]
                options.append([Unit(alike, kind, both[0], both[1])])
    if len(options) == 1:
        return [_Choice([[unit]]) for unit in own]
    return [_Choice(options)]


def _spend(choices: Sequence[_Choice], available: int) -> tuple[list[Unit], int]:
    """Choose ways and numbers of vectors; return them and the parameters that stay over."""

    def at(price: float) -> list[Unit]:
        return [unit for choice in choices for unit in choice.best(price)]

    def spent(units: Sequence[Unit]) -> int:
        return sum(int(unit.costs[unit.taken]) for unit in units)

    low, high = 1e-15, 1e15
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(at(middle)) > available else (low, middle)
    units = at(high)
    if spent(units) > available:  # the way that takes the fewest is none that a price leads to
        cheapest = [
            min(c.options, key=lambda units: sum(float(u.costs[1]) for u in units)) for c in choices
        ]
        units = [replace(unit, taken=1) for option in cheapest for unit in option]
    left = available - spent(units)
    while True:
        best, chosen = 0.0, None
        for unit in units:
            if unit.is_whole:
                continue
            k = unit.taken
            cost = float(unit.costs[k + 1] - unit.costs[k])
            gain = float(unit.errors[k] - unit.errors[k + 1])
            if cost <= left and (chosen is None or gain / max(cost, 0.5) > best):
                best, chosen = gain / max(cost, 0.5), unit
        if chosen is None:
            return units, left
        left -= int(chosen.costs[chosen.taken + 1] - chosen.costs[chosen.taken])
        chosen.taken += 1


def _wrong(units: Sequence[Unit]) -> float:
    """Return the squared error of all layers."""
    return sum(float(unit.errors[unit.taken]) for unit in units)


def _cut_short(units: Sequence[Unit], left: int) -> None:
    """Spend what is left on one vector more that is cut short, where that is possible."""
    for unit in sorted(units, key=lambda unit: -float(unit.errors[unit.taken])):
        rows, values = unit.form
        rest = rows - unit.taken if unit.kind == "own" else rows
        if not unit.may_be_cut or left < 2 or left > values + rest * len(unit.layers):
            continue
        length = max(1, min(values, left * values // (values + rest * len(unit.layers))))
        length = max(length, left - rest * len(unit.layers))
        mixtures = [
            min(rest, max(0, left - length - place * rest)) for place in range(len(unit.layers))
        ]
        unit.cut = length, mixtures
        return


def _worth(layers: Sequence[Layer]) -> float:
    """Return what a squared error of scaled weights is worth, to compare shapes by."""
    return sum(norm(layer) ** 2 for layer in layers) / len(layers)


def _left(square: Tensor) -> Tensor:
    """Return the squared error by the number of vectors: what is left of all squares."""
    squares = torch.linalg.eigvalsh(square).flip(0).clamp(min=0)
    explained = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0)])
    left = (squares.sum() - explained).clamp(min=0)
    left[-1] = 0.0
    return left
