"""Fold a shared network whose layers have come to agree: ties, loops, fewer layers.

    folding = fold(model, threshold=0.99)        # in place; folding says what became of it
    save_folded(model, folding, directory)
    again = load_folded(directory, dense_model)

(Savarese & Maire, ICLR 2019, sections 3.2 and 4.3 and appendix A.) Layers whose coefficients agree
get equal ones and so one weight; runs of modules that are then the same become loops. A group whose
distinct weights take no more parameters than its bank and coefficients gets plain parameters back;
the others keep on sharing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing import audit, storage
from npas.sharing.activations import Batch, call, evaluating
from npas.sharing.allocation import Allocation, GroupAllocation
from npas.sharing.budget import BudgetReport, count_parameters
from npas.sharing.coefficients import ROWS
from npas.sharing.install import (
    install,
    is_shared,
    materialize,
    require_unshared,
    restore,
    shared_weights,
)
from npas.sharing.layer_similarity import tie
from npas.sharing.layers import (
    SCALES,
    bank_name,
    find_tensors,
    generator_name,
    generator_names,
    shared_names,
    upsampler_name,
)
from npas.sharing.loops import (
    Loop,
    Repeat,
    apply_repeats,
    block_rows,
    fold_repeats,
    is_large,
    list_blocks,
    refuse_loops,
)
from npas.sharing.low_rank import factor_names
from npas.utils.json_data import decode

FOLDING_FILE = "folding.json"


@dataclass(frozen=True)
class Folding:
    """What `fold` made of a network.

    `layers` counts the places that hold a weight of two or more dimensions; the body of a loop
    counts once. `weights` counts the different ones among them.
    """

    tied: list[list[str]]  # names of layers that have one weight, as in the network before
    repeats: list[Repeat]
    blocks: list[Repeat]  # every block of the containers that share, looped or not, to be drawn
    plain: list[str]  # groups that got plain parameters back
    allocation: Allocation | None  # of the groups that go on sharing
    layers_before: int
    layers: int
    weights: int
    parameters_before: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `load_folded` reads."""
        kept = self.allocation.to_dict() if self.allocation is not None else None
        return asdict(replace(self, allocation=None)) | {"allocation": kept}


@dataclass(frozen=True)
class _Stored(Folding):
    """The fields of `folding.json`."""

    allocation: Any  # whose own reader checks it


def fold(model: nn.Module, threshold: float, example: Batch | None = None) -> Folding:
    """Fold a shared network in place, and return what became of it.

    Layers are tied where the cosine of each two is at least `threshold` (`layer_similarity.tie`).
    The folded network's outputs equal the tied network's to rounding. Loops are
    made of the children of plain `nn.Sequential`s, which the network must call as a whole. Given an
    `example`, a tensor to call the network with, arguments in order or by name, they are made of
    those of `nn.ModuleList`s, too, and only where its outputs stay the same then. Layers that are
    tied elsewhere are one parameter in several places. The iterations of a loop keep norms, biases
    and statistics of their own.

    Raises ValueError, with the network left as it was, for one that is not shared, folded already
    or without layers that could agree, a threshold that is no cosine and an example that the
    network cannot be called with.
    """
    refuse_loops(model)
    if example is not None:
        try:
            _outputs(model, example)
        except Exception as error:  # whatever a forward raises
            raise ValueError(
                f"the network cannot be called with the example ({type(error).__name__}: {error}):"
                " give a tensor, a tuple of arguments or a dict of them by name"
            ) from error
    return fold_tied(model, tie(model, threshold), example)


@torch.no_grad()
def fold_tied(model: nn.Module, tied: list[list[str]], example: Batch | None = None) -> Folding:
    """Fold a shared network whose layers `layer_similarity.tie` has tied, in place."""
    refuse_loops(model)
    shared = audit.follow(shared_weights(model))
    plan, parameters_before = shared.allocation, count_parameters(model)
    values = {}
    for name in shared_names(model):
        tensor = getattr(model, name)
        values[name] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    kept = _kept_groups(plan, tied)
    materialize(model)
    layers_before = _count_layers(model)[0]
    _tie_parameters(model, tied)
    weights = dict(model.named_parameters(remove_duplicate=False))  # by their names before
    rows = block_rows(model, [layer.name for layer in plan.layers])
    repeats = _fold_repeats(model, example)
    layers, distinct = _count_layers(model)
    allocation = _allocate(model, plan, kept, weights) if kept else None
    if allocation is not None:
        install(model, allocation, shared.recompute)
        _fill(model, allocation, plan, kept, values)
    return Folding(
        tied=tied,
        repeats=repeats,
        blocks=list_blocks(rows, repeats),
        plain=[group.name for g, group in enumerate(plan.groups) if g not in kept and group.bank],
        allocation=allocation,
        layers_before=layers_before,
        layers=layers,
        weights=distinct,
        parameters_before=parameters_before,
        parameters=count_parameters(model),
    )


def save_folded(model: nn.Module, folding: Folding, directory: str | os.PathLike[str]) -> None:
    """Write a folded network as `model.safetensors`, every weight once, and `folding.json`.

    Raises ValueError where nothing could load the files, as `npas.save` does.
    """
    if is_shared(model):
        shared = audit.follow(shared_weights(model))
        audit.refuse_unloadable(shared, "save_folded")
        folding = replace(folding, allocation=shared.allocation)
    storage.write(model, Path(directory), FOLDING_FILE, folding.to_dict())


def load_folded(directory: str | os.PathLike[str], dense_model: nn.Module) -> nn.Module:
    """Make `dense_model`, the architecture as built, the network `save_folded` wrote; return it.

    Raises ValueError, with the network left as it was, where files are missing, were changed since
    they were written or do not hold together, and where the architecture is another one.
    """
    path = Path(directory) / FOLDING_FILE
    stored = storage.read(path.parent, FOLDING_FILE, "npas-fold")
    try:
        data: _Stored = decode(_Stored, stored.description)
        plan = None if data.allocation is None else Allocation.from_dict(data.allocation)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for network in (copy.deepcopy(require_unshared(dense_model)), dense_model):  # a trial first
        try:
            _tie_parameters(network, data.tied)
            apply_repeats(network, data.repeats)
        except AttributeError as error:
            raise ValueError(f"{directory} was written by another architecture: {error}") from None
        restore(network, plan, stored)
    return dense_model


def _fold_repeats(model: nn.Module, example: Batch | None) -> list[Repeat]:
    """Make what loops can be made; with an example none that change the network's outputs."""
    if example is None:
        return fold_repeats(model)
    expected = _outputs(model, example)
    for lists in (True, False):
        trial = copy.deepcopy(model)
        fold_repeats(trial, lists)
        try:
            torch.testing.assert_close(_outputs(trial, example), expected, rtol=1e-3, atol=1e-4)
        except Exception:  # a container that is used in another way can fail in any
            continue
        return fold_repeats(model, lists)
    return []


def _outputs(model: nn.Module, example: Batch) -> Any:
    with torch.no_grad(), evaluating(model):
        return call(model, example)


def _kept_groups(plan: Allocation, tied: Sequence[Sequence[str]]) -> dict[int, GroupAllocation]:
    """Return, by place, the groups that go on sharing, with one layer for each different weight."""
    again = {name for names in tied for name in names[1:]}
    kept = {}
    for g, group in enumerate(plan.groups):
        layers = tuple(layer for layer in group.layers if layer.name not in again)
        distinct = replace(group, layers=layers)
        # No fewer parameters than the weights themselves would be: then they are plain ones again.
        if group.bank and distinct.used < sum(layer.size for layer in layers):
            kept[g] = distinct
    return kept


def _tie_parameters(model: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Make one parameter of those of each list of names: the first one's.

    AttributeError where the network has no parameters of these names and of one shape.
    """
    found = {name: tensor for tensor in find_tensors(model) for name in tensor.names}
    missing = [name for names in tied for name in names if name not in found]
    if missing:
        raise AttributeError(f"the network has no {missing[0]}")
    for names in tied:
        if len({found[name].spec.shape for name in names}) != 1:
            raise AttributeError(f"the layers {names!r:.60} that are tied must have one shape")
    for first, *others in tied:
        for name in others:
            for owner, attribute in found[name].owners:
                setattr(owner, attribute, found[first].parameter)


def _count_layers(model: nn.Module) -> tuple[int, int]:
    """Count the places that hold a weight of two or more dimensions, and the different weights.

    Of a loop only the body counts.
    """
    again = {
        id(module)
        for loop in model.modules()
        if isinstance(loop, Loop)
        for module in loop.further()
    }
    large = [tensor for tensor in find_tensors(model) if is_large(tensor.parameter)]
    owners = [owner for tensor in large for owner, _ in tensor.owners]
    return sum(id(owner) not in again for owner in owners), len(large)


def _allocate(
    model: nn.Module,
    plan: Allocation,
    kept: Mapping[int, GroupAllocation],
    weights: Mapping[str, nn.Parameter],
) -> Allocation:
    """Plan the folded network: the kept groups, under the names that their weights have in it."""
    names = {id(tensor.parameter): tensor.spec.name for tensor in find_tensors(model)}
    groups, dense = tuple(kept.values()), count_parameters(model)
    unshared = dense - sum(layer.size for group in groups for layer in group.layers)
    used = unshared + sum(group.used for group in groups)
    report = BudgetReport("folded", dense, used, used)
    return Allocation(plan.scheme, report, unshared, groups).map(
        lambda layer: replace(layer, name=names[id(weights[layer.name])])
    )


def _fill(
    model: nn.Module,
    allocation: Allocation,
    plan: Allocation,
    kept: Mapping[int, GroupAllocation],
    values: Mapping[str, Tensor],
) -> None:
    """Give the folded network's banks, coefficients and upsamplers the values they had."""
    place = {layer.name: i for i, layer in enumerate(plan.layers)}
    new: dict[str, Tensor] = {SCALES: values[SCALES][: len(model.get_buffer(SCALES))]}
    index = 0
    for g, (old, group) in enumerate(kept.items()):
        new[bank_name(g)] = values[bank_name(old)]
        before = plan.groups[old]
        for key, places in group.rows.items():
            names = [before.layers[i].name for i in before.rows[key]]
            rows = [names.index(group.layers[i].name) for i in places]
            for kind, name in generator_names(model, g, key[1]).items():
                drawn = values[generator_name(kind, old, key[1])]
                new[name] = drawn[rows] if kind in ROWS else drawn
                new[name].requires_grad_(drawn.requires_grad)
        for layer in group.layers:
            if layer.learned[0]:
                new[upsampler_name(index)] = values[upsampler_name(place[layer.name])]
            if layer.rank:
                pairs = zip(factor_names(index), factor_names(place[layer.name]), strict=True)
                new |= {name: values[before] for name, before in pairs}
            index += 1
    for name, tensor in new.items():
        getattr(model, name).copy_(tensor).requires_grad_(tensor.requires_grad)
