"""Fit a shared network to trained weights: choose groups, sizes and values (`init="fit"`).

Either the layers share a codebook (`codebooks`), or they share bases; `fit` takes what has the
smaller error. With bases, the layers of one shape share one of the following, or each has a basis
of its own:
    a basis of their rows or of their columns (Basis Sharing, Wang et al., ICLR 2025),
    templates as large as they are (Savarese & Maire, ICLR 2019).
Both are truncated SVDs of the stacked weights, each divided by its root mean square. The singular
values give the squared error of K vectors, K = 1, 2, ... (`Unit`). A Lagrange multiplier, the price
of a parameter, selects the options and every K; bisection finds the price that meets the budget.
What is left over then buys the vectors of most gain per parameter and, last, one truncated vector.
A layer whose basis would take as many parameters as its weight stays an ordinary parameter.

A basis for one layer has K (R + N - K) parameters, the degrees of freedom of a matrix of rank K: it
is K of the matrix's rows, chosen by LU with partial pivoting, which keeps mixtures small.

Given batches, errors are those of the network's outputs to first order (`activations`). A layer
that the batches do not reach counts as much per weight as the others do on average. Layers that
they reach do not share a basis.

Bases are computed in float64, one shape at a time.
Shapes: L layers with weights of R x N as matrices; K vectors or templates of N values.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from npas.sharing.budget import Budget, BudgetReport, spell_count
from npas.sharing.generators.codebook import CODEBOOK
from npas.sharing.layers import Layer, matrix_form
from npas.sharing.layout.allocation import Allocation, Scheme
from npas.sharing.runtime.audit import follow, shared_layers
from npas.sharing.runtime.errors import Errors
from npas.sharing.runtime.install import shared_weights
from npas.sharing.trained.activations import Root
from npas.sharing.trained.codebooks import Weigh, generated_errors, place_codebooks, smallest
from npas.sharing.trained.corrections import corrections
from npas.sharing.trained.stacks import Placed, Unit, gram, matrix, norm, place, products, scaled
from npas.sharing.trained.templates import exact
from npas.utils.checks import require
from npas.utils.progress import Bar, track

BASIS = "basis"
WIDEST = 8192
"""The longest vectors of a shared basis: matrices of N x N are decomposed."""


@dataclass(frozen=True)
class Fit:
    """An allocation, and the values of its shared tensors by name.

    `reached` is the part of the weights in layers that batches reached, None without batches.
    """

    allocation: Allocation
    values: dict[str, Tensor]
    reached: float | None


def fit(
    layers: Sequence[Layer],
    request: Budget,
    dense: int,
    roots: Mapping[str, Root] | None = None,
    generator: str | None = None,
    low_rank: int = 0,
) -> Fit:
    """Fit the layers of a network of `dense` trainable parameters inside the budget.

    `generator` is "codebook", "basis" or None, the one of these with the smaller error; with
    `low_rank` it is a codebook with corrections. `roots` are those of `activations.roots`. Raises
    ValueError for a budget that is too small, or not below the dense count, and for a rank that no
    layer can have.
    """
    if low_rank:
        generator = CODEBOOK
        if smallest(layers, low_rank) == smallest(layers) < math.inf:
            raise ValueError(
                f"low_rank={low_rank} corrects no layer, since corrections need two layers that"
                " share, and fewer parameters than their weights: choose a smaller one, or none"
            )
    unshared = dense - sum(layer.spec.size for layer in layers)
    allowed = request.allowed(dense)
    if allowed >= dense:
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} parameters, no fewer than the network's"
            f" {dense:,}: there is nothing to fit, train it as it is"
        )
    density, available = _density(layers, roots or {}), allowed - unshared
    found: list[tuple[float, Placed]] = []
    floors: list[float] = []
    if generator != BASIS:
        weigh = _importance(roots, density) if roots else None
        books = place_codebooks(layers, available, weigh, low_rank)
        floors.append(smallest(layers, low_rank))
        if books is not None:
            wrong = generated_errors(layers, *books)
            found.append((_weighed(layers, wrong, roots, density), books))
    if generator != CODEBOOK:
        choices = _all_choices(layers, roots, density)
        floors.append(sum(choice.least for choice in choices))
        if floors[-1] <= available:
            units = _bases(choices, available, max(allowed // 1000, len(layers)))
            order = {layer.spec.name: i for i, layer in enumerate(layers)}
            units.sort(key=lambda unit: min(order[layer.spec.name] for layer in unit.layers))
            found.append((_error(units), place(units)))
    found = [pair for pair in found if math.isfinite(pair[0])]
    if not found and min(floors) == math.inf:
        raise ValueError(
            f"{f'low_rank={low_rank}' if low_rank else f'generator={CODEBOOK!r}'} needs layers of"
            " four values or more of each dtype and device: leave"
            f" {'low_rank' if low_rank else 'generator'} out"
        )
    if not found:
        floor = unshared + int(min(floors))
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} of {dense:,} parameters, and a fit"
            f" takes at least {floor:,} parameters: ask for budget={spell_count(floor)} or more"
            f"{', or a smaller low_rank' if low_rank else ''}"
        )
    _, (groups, values) = min(found, key=lambda pair: pair[0])
    if low_rank:
        values |= corrections(layers, (groups, values), roots or {})
    used = unshared + sum(group.used for group in groups)
    assert used <= allowed, (used, allowed)
    budget = BudgetReport(request.canonical, dense, allowed, used)
    plan = Allocation(Scheme(), budget, unshared, tuple(groups))
    assert not plan.unread
    reached = None
    if roots is not None:
        seen = sum(layer.spec.size for layer in layers if layer.spec.name in roots)
        reached = seen / sum(layer.spec.size for layer in layers)
    return Fit(plan, values, reached)


@torch.no_grad()
def fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy a fit's values into a network that was shared by its allocation."""
    for name, tensor in values.items():
        own = getattr(model, name)
        assert own.shape == tensor.shape, (name, own.shape, tensor.shape)
        own.copy_(tensor)


@torch.no_grad()
def weight_errors(model: nn.Module, dense_state: Mapping[str, Tensor]) -> Errors:
    """Return the relative errors of a shared network's weights against dense ones, by name.

    Raises ValueError for a network that is not shared, and if a dense weight is missing, has
    another shape or no finite values.
    """
    require("dense_state", dense_state, Mapping, "a state dict, as model.state_dict()")
    shared = follow(shared_weights(model))
    names, errors, norms = shared_layers(shared), {}, {}  # both squared
    for i, layer in enumerate(track(shared.allocation.layers, "comparing weights")):
        own = names.get(i, [layer.name])
        given = next((dense_state[name] for name in own if name in dense_state), None)
        if not isinstance(given, Tensor) or tuple(given.shape) != layer.shape:
            raise ValueError(
                f"there is no {layer.name} of shape {list(layer.shape)} to compare with: pass"
                " weights of the same architecture"
            )
        weight = shared.weight(i) if layer.templates else model.get_parameter(layer.name)
        if weight.is_meta or given.is_meta or not given.isfinite().all():
            raise ValueError(f"{layer.name} has no finite values to compare: load trained weights")
        target = exact(given)
        errors[layer.name] = float((exact(weight) - target).square().sum())
        norms[layer.name] = float(target.square().sum())
    relative = {name: _ratio(errors[name], norms[name]) for name in errors}
    return Errors(relative, _ratio(sum(errors.values()), sum(norms.values())))


def _ratio(error: float, norm: float) -> float:
    return math.sqrt(error / norm) if norm else float(error > 0)


@dataclass
class _Choice:
    """The options to share of the layers of one shape; an option is one or more units."""

    options: list[list[Unit]]

    @property
    def least(self) -> int:
        """Return the fewest parameters of any option: one vector per unit."""
        return int(min(sum(float(u.costs[1]) for u in units) for units in self.options))

    def best(self, price: float) -> list[Unit]:
        """Return the option, with each unit's best K, of least error + price x parameters."""
        found = []
        for units in self.options:
            takes = [unit.best(price) for unit in units]
            chosen = [replace(u, taken=k) for u, (k, _) in zip(units, takes, strict=True)]
            found.append((sum(total for _, total in takes), chosen))
        return min(found, key=lambda pair: pair[0])[1]


def _density(layers: Sequence[Layer], roots: Mapping[str, Root]) -> float:
    """Return the mean, per weight, of the outputs' squared error without it; 1 if unknown."""
    known = [own for own in layers if own.spec.name in roots and roots[own.spec.name].has_gradients]
    if len(known) == len(layers):
        return 1.0  # of no use
    errors = [float(roots[own.spec.name].weigh(matrix(own)).square().sum()) for own in known]
    return sum(errors) / sum(own.spec.size for own in known) if known else 1.0


def _choices(
    alike: list[Layer], roots: Mapping[str, Root] | None, density: float, bar: Bar
) -> list[_Choice]:
    """Return the choices for the layers of one shape: one for all, or one per layer."""
    rows, values = matrix_form(alike[0].spec.shape)
    size, count = rows * values, len(alike)
    own = []
    for layer in alike:
        root = (roots or {}).get(layer.spec.name)
        weight_RN = scaled(layer) if root is None else root.weigh(scaled(layer))
        square = weight_RN @ weight_RN.T if rows < values else weight_RN.T @ weight_RN
        k = torch.arange(min(rows, values) + 1, dtype=torch.float64)
        weight = _unit_weight(layer, root, roots is not None, density, float(square.trace()))
        errors = _errors(square) * weight
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
            most = (count * size - 1) // cost  # more vectors would cost more than the weights
            if most:
                errors = _errors(gram_of())[: most + 1]
                errors *= _weight(alike) if roots is None else density
                costs = cost * torch.arange(len(errors), dtype=torch.float64)
                errors = nn.functional.pad(errors, (0, 1))  # the last entry: the weights themselves
                costs = nn.functional.pad(costs, (0, 1), value=count * size)
                options.append([Unit(alike, kind, errors, costs)])
    if len(options) == 1:
        return [_Choice([[unit]]) for unit in own]
    return [_Choice(options)]


def _importance(roots: Mapping[str, Root], density: float) -> Weigh:
    """Return a function from a layer to the factors of its squared errors, R x N."""

    def weigh(layer: Layer) -> Tensor:
        root, form = roots.get(layer.spec.name), matrix_form(layer.spec.shape)
        factor_RN = torch.ones(form, dtype=torch.float64)
        if root is not None:
            factor_RN = root.importance(*form)
        whole = float((scaled(layer).square() * factor_RN).sum())
        return factor_RN * _unit_weight(layer, root, True, density, whole)

    return weigh


def _weighed(
    layers: Sequence[Layer],
    wrong: Iterable[Tensor],
    roots: Mapping[str, Root] | None,
    density: float,
) -> float:
    """Return the squared error of all layers, in the units of `Unit.errors`, of scaled errors."""
    total = 0.0
    for layer, wrong_RN in zip(layers, wrong, strict=True):
        root, weight_RN = (roots or {}).get(layer.spec.name), scaled(layer)
        if root is not None:
            wrong_RN, weight_RN = root.weigh(wrong_RN), root.weigh(weight_RN)
        whole = float(weight_RN.square().sum())
        weight = _unit_weight(layer, root, roots is not None, density, whole)
        total += float(wrong_RN.square().sum()) * weight
    return total


def _unit_weight(
    layer: Layer, root: Root | None, has_roots: bool, density: float, square: float
) -> float:
    """Return the factor of a layer's squared errors, after scaling and weighing by its root.

    `square` is that of the whole weight.
    """
    if has_roots and (root is None or not root.has_gradients):
        return density * layer.spec.size / max(square, 1e-300)
    return _weight([layer])


def _all_choices(
    layers: Sequence[Layer], roots: Mapping[str, Root] | None, density: float
) -> list[_Choice]:
    """Return the choices for the layers of all shapes."""
    shapes: dict[object, list[Layer]] = {}
    for layer in layers:
        key = matrix_form(layer.spec.shape), layer.parameter.dtype, layer.parameter.device
        shapes.setdefault(key, []).append(layer)
    with Bar("fitting layers", len(layers)) as bar:
        return [c for alike in shapes.values() for c in _choices(alike, roots, density, bar)]


def _bases(choices: Sequence[_Choice], available: int, unspent: int) -> list[Unit]:
    """Return the units that bases spend a budget on; templates may leave `unspent` parameters."""
    units, left = _spend(choices, available)
    if left > unspent and not any(u.may_be_cut for u in units):
        # Templates cannot be truncated, so budget is left. Do without, unless that is worse.
        bases = [_Choice([o for o in c.options if o[0].kind != "templates"]) for c in choices]
        if sum(choice.least for choice in bases) <= available:
            other = _spend(bases, available)
            if _error(other[0]) <= _error(units):
                units, left = other
    _cut_short(units, left)
    return units


def _spend(choices: Sequence[_Choice], available: int) -> tuple[list[Unit], int]:
    """Return the chosen units, with their numbers of vectors, and the parameters left over."""

    def at(price: float) -> list[Unit]:
        return [unit for choice in choices for unit in choice.best(price)]

    def spent(units: Sequence[Unit]) -> int:
        return sum(int(unit.costs[unit.taken]) for unit in units)

    low, high = 1e-15, 1e15
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(at(middle)) > available else (low, middle)
    units = at(high)
    if spent(units) > available:  # no price leads to the smallest options
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


def _error(units: Sequence[Unit]) -> float:
    """Return the squared error of all layers."""
    return sum(float(unit.errors[unit.taken]) for unit in units)


def _cut_short(units: Sequence[Unit], left: int) -> None:
    """Spend what is left on one more, truncated vector, of the first unit where it fits."""
    for unit in sorted(units, key=lambda unit: -float(unit.errors[unit.taken])):
        rows, values = unit.form
        rest = rows - unit.taken if unit.kind == "own" else rows
        if not unit.may_be_cut or left < 2 or left > values + rest * len(unit.layers):
            continue
        length = max(1, min(values, left * values // (values + rest * len(unit.layers))))
        length = max(length, left - rest * len(unit.layers))
        ends = (left - length - i * rest for i in range(len(unit.layers)))
        unit.cut = length, [min(rest, max(0, end)) for end in ends]
        return


def _weight(layers: Sequence[Layer]) -> float:
    """Return the factor that turns squared errors of scaled weights into those of weights."""
    return sum(norm(layer) ** 2 for layer in layers) / len(layers)


def _errors(square: Tensor) -> Tensor:
    """Return the squared errors of the best K = 0, 1, ... vectors, given a Gram matrix."""
    squares = torch.linalg.eigvalsh(square).flip(0).clamp(min=0)
    explained = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0)])
    errors = (squares.sum() - explained).clamp(min=0)
    errors[-1] = 0.0
    return errors
