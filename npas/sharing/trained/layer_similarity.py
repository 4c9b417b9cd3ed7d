"""Compare layers by their coefficients: similarity matrices, recurrence reward, ties.

Of layers that mix the same templates, those with equal coefficients have equal weights, so that
coefficients show which layers of a trained network do the same (implicit recurrence, Savarese &
Maire, ICLR 2019, section 3.2). Shapes: L layers that are compared, K templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.sharing.generators.coefficients import FIXED, GENERATORS, ROWS
from npas.sharing.layers import SCALES, shared_value
from npas.sharing.runtime.audit import follow, refuse_unloadable
from npas.sharing.runtime.install import shared_weights
from npas.sharing.runtime.reading import Reading

UNBOUND = ("wavg", "search_wavg", FIXED)
"""Generators of free coefficients, which can be rescaled to make up for another fixed scale."""
ROUNDING = 1e-12
"""The rounding error of a cosine in fp64."""


@dataclass(frozen=True)
class Similarity:
    """A group's layer similarity matrix: abs(cosine) of two layers' coefficients.

    NaN for layers that do not mix the same templates.
    """

    group: str
    layers: tuple[str, ...]
    matrix_LL: Tensor  # float64, on the CPU

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain data; values have six digits, None for NaN."""
        rows = [
            [None if value != value else round(value, 6) for value in row]
            for row in self.matrix_LL.tolist()
        ]
        return {"group": self.group, "layers": list(self.layers), "matrix": rows}


@torch.no_grad()
def similarity(model: nn.Module) -> list[Similarity]:
    """Return the similarity matrix of each group with two or more layers to compare.

    Raises ValueError for a network that is not shared, whose shared layers were removed, or whose
    generator has no coefficients per layer.
    """
    shared = follow(shared_weights(model))
    reading, sets, found = shared.reading, _comparable(shared.reading), []
    for g, group in enumerate(shared.allocation.groups):
        own = [indices for indices in sets if reading.places[indices[0]][0] == g]
        layers = sorted(i for indices in own for i in indices)
        if not layers:
            continue
        matrix_LL = torch.full((len(layers), len(layers)), float("nan"), dtype=torch.float64)
        for indices in own:
            rows = torch.tensor([layers.index(i) for i in indices])
            matrix_LL[rows[:, None], rows] = _cosines(model, reading, indices).abs()
        names = tuple(reading.places[i][1].name for i in layers)
        found.append(Similarity(group.name, names, matrix_LL))
    _refuse_without_coefficients(shared.allocation.scheme.generator, found)
    return found


def _refuse_without_coefficients(generator: str, found: Sequence[object]) -> None:
    """Raise ValueError if nothing was found, as the generator has no coefficients per layer."""
    if generator not in GENERATORS and not found:
        raise ValueError(
            f"generator={generator!r} has no coefficients per layer to compare: share with"
            " generator='wavg'"
        )


def recurrence_reward(model: nn.Module) -> Tensor:
    """Return the mean cosine of coefficients over all pairs of comparable layers, in [-1, 1].

    With u_i = alpha_i / |alpha_i| and the sets S of layers that mix the same templates:

        R = sum_S sum_{i<j in S} u_i . u_j  /  sum_S |S| (|S| - 1) / 2

    The recurrence regularizer subtracts lambda R from the loss. R is not the absolute value that
    the similarity matrix shows: layers of opposite coefficients cannot be folded. Differentiable.
    Raises ValueError if no layers can be compared.
    """
    reading = shared_weights(model).reading
    total, pairs = [], 0
    for members in _comparable(reading):
        unit_LK = F.normalize(_coefficients(model, reading, members), dim=1)
        # |sum_i u_i|^2 is the sum over all ordered pairs, including each layer with itself.
        total.append((unit_LK.sum(0).square().sum() - unit_LK.square().sum()) / 2)
        pairs += len(members) * (len(members) - 1) // 2
    if not pairs:
        raise ValueError(
            "no two layers mix the same templates with their own coefficients, so none can grow"
            " alike: share with templates=k, and groups of several layers of one shape"
        )
    return torch.stack(total).sum() / pairs


@torch.no_grad()
def tie(model: nn.Module, threshold: float) -> list[list[str]]:
    """Make the coefficients of similar layers equal, in place; return the lists of tied layers.

    Layers that mix the same templates into weights of one shape are tied if the cosine of each pair
    is at least `threshold`, the closest first. They all get the mean of their coefficients. Layers
    whose weights are always identical are returned as tied, too.

    Raises ValueError for a threshold outside of (0, 1], and for a network that cannot be folded:
    shared layers were removed, a bank is pruned, a part is wrapped, or layers have no coefficients.
    """
    if not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(
            f"threshold={threshold!r} is no cosine to tie layers by: give one above 0, up to 1"
        )
    shared = follow(shared_weights(model))
    shared.refuse_written()
    refuse_unloadable(shared, "npas.fold")
    reading = shared.reading
    found: dict[int, list[int]] = {}
    for i, twin in enumerate(reading.twins):
        found.setdefault(twin, []).append(i)
    tied = [members for members in found.values() if len(members) > 1]
    comparable = _comparable(reading, foldable=True)
    _refuse_without_coefficients(shared.allocation.scheme.generator, [*tied, *comparable])
    for members in comparable:
        for cluster in _clusters(_cosines(model, reading, members), threshold):
            chosen = [members[i] for i in cluster]
            _average(model, reading, chosen)
            tied.append(chosen)
    return [[reading.places[i][1].name for i in members] for members in sorted(tied)]


def _comparable(reading: Reading, foldable: bool = False) -> list[list[int]]:
    """Return sets (indices) of two or more layers that mix the same templates.

    With `foldable` only those that have equal weights if their coefficients are equal.
    """
    sets: dict[object, list[int]] = {}
    for i, (g, layer) in enumerate(reading.places):
        has_own = layer.learned[0] or (foldable and layer.rank)
        if i not in reading.rows or not reading.rows[i].names or has_own:
            continue
        key: tuple[object, ...] = (g, layer.mixing, layer.templates)
        if foldable:
            key += (layer.shape, layer.template_size, layer.source, i in reading.low)
            if layer.mixing not in UNBOUND:
                key += (layer.scale,)
        sets.setdefault(key, []).append(i)
    return [members for members in sets.values() if len(members) > 1]


def _coefficients(model: nn.Module, reading: Reading, members: Sequence[int]) -> Tensor:
    """Return alpha_LK of layers of one generator and K, in fp32 or fp64."""
    rows = reading.rows[members[0]]
    alpha_LK = rows.coefficients(lambda name: shared_value(model, name))
    if list(members) != rows.layers:  # one by one: an index tensor would synchronize with the GPU
        alpha_LK = torch.stack([alpha_LK[rows.layers.index(i)] for i in members])
    return alpha_LK.to(torch.promote_types(alpha_LK.dtype, torch.float32))


def _cosines(model: nn.Module, reading: Reading, members: Sequence[int]) -> Tensor:
    unit_LK = F.normalize(_coefficients(model, reading, members).double(), dim=1)
    return (unit_LK @ unit_LK.T).cpu()


def _clusters(cosine_LL: Tensor, threshold: float) -> list[list[int]]:
    """Return clusters of indices whose pairs all reach the threshold; joins the closest first."""
    agree_LL = cosine_LL >= threshold - ROUNDING
    cluster = {i: [i] for i in range(len(cosine_LL))}
    pairs = [(i, j) for i, j in agree_LL.nonzero().tolist() if i < j]
    for i, j in sorted(pairs, key=lambda pair: -float(cosine_LL[pair])):
        a, b = cluster[i], cluster[j]
        if a is not b and bool(agree_LL[a][:, b].all()):
            a.extend(b)
            cluster.update(dict.fromkeys(b, a))
    distinct = {id(found): sorted(found) for found in cluster.values() if len(found) > 1}
    return list(distinct.values())


def _average(model: nn.Module, reading: Reading, members: Sequence[int]) -> None:
    """Set the layers' coefficients (or embeddings) to their mean.

    The mean is of coefficients times the layers' fixed scales, so that the weights become equal.
    """
    rows = reading.rows[members[0]]
    for kind in ROWS:
        if kind in rows.names:
            parameter = getattr(model, rows.names[kind])
            own = [rows.layers.index(i) for i in members]
            scale_L = model.get_buffer(SCALES)[[reading.places[i][1].scale for i in members]]
            scale_L1 = scale_L.double()[:, None]
            mean_K = (parameter[own].double() * scale_L1).mean(0)
            parameter[own] = (mean_K / scale_L1).to(parameter.dtype)
