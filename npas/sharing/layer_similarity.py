"""Compare the layers of a group by what they mix: similarity, reward, ties.

Layers that mix the same templates have the same weight as far as their coefficients agree, so a
trained network shows in them which of its layers do the same (Savarese & Maire, ICLR 2019, section
3.2: implicit recurrence). L is the layers that are compared, K their templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.sharing.audit import follow, refuse_unloadable
from npas.sharing.coefficients import FIXED, GENERATORS, ROWS
from npas.sharing.install import shared_weights
from npas.sharing.layers import SCALES, shared_value
from npas.sharing.reading import Reading

UNBOUND = ("wavg", "search_wavg", FIXED)
"""Whose coefficients can make up for another scale: they are the parameters themselves."""
ROUNDING = 1e-12
"""What a cosine, in fp64, of equal rows may fall short of one."""


@dataclass(frozen=True)
class Similarity:
    """A group's layer similarity matrix: abs(cosine) of coefficients, NaN between layers that
    do not mix the same templates.
    """

    group: str
    layers: tuple[str, ...]
    matrix_LL: Tensor  # float64, on the CPU

    def to_dict(self) -> dict[str, object]:
        """Return plain data: rounded to six digits, None for what cannot be compared."""
        rows = [
            [None if value != value else round(value, 6) for value in row]
            for row in self.matrix_LL.tolist()
        ]
        return {"group": self.group, "layers": list(self.layers), "matrix": rows}


@torch.no_grad()
def similarity(model: nn.Module) -> list[Similarity]:
    """Return the layer similarity matrix of every group in which layers can be compared.

    ValueError for a network that is not shared, or that a shared layer is gone from.
    """
    shared = follow(shared_weights(model))
    reading, sets, found = shared.reading, _comparable(shared.reading), []
    for g, group in enumerate(shared.allocation.groups):
        own = [members for members in sets if reading.places[members[0]][0] == g]
        layers = sorted(i for members in own for i in members)
        if not layers:
            continue
        matrix_LL = torch.full((len(layers), len(layers)), float("nan"), dtype=torch.float64)
        for members in own:
            places = torch.tensor([layers.index(i) for i in members])
            matrix_LL[places[:, None], places] = _cosines(model, reading, members).abs()
        names = tuple(reading.places[i][1].name for i in layers)
        found.append(Similarity(group.name, names, matrix_LL))
    return found


def recurrence_reward(model: nn.Module) -> Tensor:
    """Return the mean cosine of coefficients over all pairs of layers that can be compared.

    With unit rows u_i = alpha_i / |alpha_i| of the sets S of layers that mix the same templates:

        R = sum_S sum_{i<j in S} u_i . u_j  /  sum_S |S| (|S| - 1) / 2

    The recurrence regularizer takes lambda R off the loss. R lies between -1 and 1, whatever the
    number of layers. It is the cosine and not its absolute value, which the similarity matrix
    shows: layers of opposite coefficients cannot be folded, and from orthogonal ones the absolute
    value would lead either way by chance. Differentiable; ValueError where nothing can be compared.
    """
    reading = shared_weights(model).reading
    total, pairs = [], 0
    for members in _comparable(reading):
        unit_LK = F.normalize(_coefficients(model, reading, members), dim=1)
        # The square of a sum is the sum over all pairs, each layer with itself among them.
        total.append((unit_LK.sum(0).square().sum() - unit_LK.square().sum()) / 2)
        pairs += len(members) * (len(members) - 1) // 2
    if not pairs:
        raise ValueError(
            "no two layers mix the same templates by coefficients of their own, so that none can"
            " grow alike: share with templates=k, and groups of several layers of one shape"
        )
    return torch.stack(total).sum() / pairs


@torch.no_grad()
def tie(model: nn.Module, threshold: float) -> list[list[str]]:
    """Set the coefficients of layers that agree equal, in place; return who is tied, by name.

    Layers that mix the same templates into weights of one shape are tied where the cosine of each
    two of them is at least `threshold`; the closest are tied first. All get their mean, so lengths
    are averaged too. Layers of opposite coefficients do not agree. Those whose weights are
    identical anyway are named as tied as well.

    Raises ValueError for a threshold that is not above 0, up to 1, and for a network that cannot be
    folded: a shared layer is gone, a bank is pruned, a part is wrapped, no layers could agree.
    """
    if not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(
            f"threshold={threshold!r} is no cosine to agree by: give one above 0, up to 1"
        )
    shared = follow(shared_weights(model))
    shared.refuse_written()
    refuse_unloadable(shared, "npas.fold")
    reading = shared.reading
    found: dict[int, list[int]] = {}
    for i, twin in enumerate(reading.twins):
        found.setdefault(twin, []).append(i)
    tied = [members for members in found.values() if len(members) > 1]
    comparable = _comparable(reading, alike=True)
    generator = shared.allocation.scheme.generator
    if generator not in GENERATORS and not tied and not comparable:
        raise ValueError(
            f"generator={generator!r} gives layers no coefficients that could agree, so that"
            " nothing folds: share with generator='wavg'"
        )
    for members in comparable:
        for cluster in _clusters(_cosines(model, reading, members), threshold):
            chosen = [members[place] for place in cluster]
            _average(model, reading, chosen)
            tied.append(chosen)
    return [[reading.places[i][1].name for i in members] for members in sorted(tied)]


def _comparable(reading: Reading, alike: bool = False) -> list[list[int]]:
    """Return sets of two or more layers that mix the same templates with coefficients of their own.

    With `alike` also into weights of the same shape, size and source: equal coefficients are then
    equal weights.
    """
    sets: dict[object, list[int]] = {}
    for i, (g, layer) in enumerate(reading.places):
        has_own = layer.learned[0] or (alike and layer.rank)
        if i not in reading.rows or not reading.rows[i].names or has_own:
            continue
        key: tuple[object, ...] = (g, layer.mixing, layer.templates)
        if alike:
            key += (layer.shape, layer.template_size, layer.source, i in reading.low)
            if layer.mixing not in UNBOUND:
                key += (layer.scale,)
        sets.setdefault(key, []).append(i)
    return [members for members in sets.values() if len(members) > 1]


def _coefficients(model: nn.Module, reading: Reading, members: Sequence[int]) -> Tensor:
    """Return alpha_LK of these layers, which share a generator and K; in fp32 at least."""
    rows = reading.rows[members[0]]
    alpha_LK = rows.coefficients(lambda name: shared_value(model, name))
    if list(members) != rows.layers:  # picked one by one: an index tensor would make a GPU wait
        alpha_LK = torch.stack([alpha_LK[rows.layers.index(i)] for i in members])
    return alpha_LK.to(torch.promote_types(alpha_LK.dtype, torch.float32))


def _cosines(model: nn.Module, reading: Reading, members: Sequence[int]) -> Tensor:
    unit_LK = F.normalize(_coefficients(model, reading, members).double(), dim=1)
    return (unit_LK @ unit_LK.T).cpu()


def _clusters(cosine_LL: Tensor, threshold: float) -> list[list[int]]:
    """Join places, the closest first, as long as each two of a cluster stay above the threshold."""
    agree_LL = cosine_LL >= threshold - ROUNDING
    cluster = {place: [place] for place in range(len(cosine_LL))}
    pairs = [(i, j) for i, j in agree_LL.nonzero().tolist() if i < j]
    for i, j in sorted(pairs, key=lambda pair: -float(cosine_LL[pair])):
        a, b = cluster[i], cluster[j]
        if a is not b and bool(agree_LL[a][:, b].all()):
            a.extend(b)
            cluster.update(dict.fromkeys(b, a))
    distinct = {id(found): sorted(found) for found in cluster.values() if len(found) > 1}
    return list(distinct.values())


def _average(model: nn.Module, reading: Reading, members: Sequence[int]) -> None:
    """Give layers the mean of their rows, which makes the mean of their coefficients theirs.

    What is averaged is coefficients times the layer's fixed scale, so that weights come out equal.
    """
    rows = reading.rows[members[0]]
    for kind in ROWS:
        if kind in rows.names:
            parameter = getattr(model, rows.names[kind])
            places = [rows.layers.index(i) for i in members]
            scale_L = model.get_buffer(SCALES)[[reading.places[i][1].scale for i in members]]
            scale_L1 = scale_L.double()[:, None]
            mean_K = (parameter[places].double() * scale_L1).mean(0)
            parameter[places] = (mean_K / scale_L1).to(parameter.dtype)
