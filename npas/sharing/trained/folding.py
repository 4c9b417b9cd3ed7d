"""Fold similar layers of a shared network into loops (Savarese & Maire, ICLR 2019, 3.2, 4.3, A).

    folding = fold(model, threshold=0.99)        # in place; returns a report
    save_folded(model, folding, directory)
    again = load_folded(directory, dense_model)

Layers of similar coefficients are tied: they get one weight. Runs of modules that are equal then
become loops. A group gets plain parameters back if its distinct weights take no more parameters
than its bank and coefficients; the others stay shared.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.budget import BudgetReport, count_parameters
from npas.sharing.generators.coefficients import ROWS
from npas.sharing.generators.low_rank import factor_names
from npas.sharing.layers import (
    SCALES,
    bank_name,
    find_tensors,
    generator_name,
    generator_names,
    shared_names,
)
from npas.sharing.layout.allocation import Allocation, GroupAllocation, learned_name
from npas.sharing.runtime import audit, storage
from npas.sharing.runtime.install import (
    install,
    is_shared,
    materialize,
    require_unshared,
    restore,
    shared_weights,
)
from npas.sharing.runtime.loops import (
    FOLDED,
    Loop,
    Repeat,
    apply_repeats,
    block_containers,
    fold_repeats,
    is_large,
    list_blocks,
    refuse_folded,
)
from npas.sharing.trained.activations import Batch, call
from npas.sharing.trained.layer_similarity import tie
from npas.utils.checks import path_of
from npas.utils.json_data import decode

FOLDING_FILE = "folding.json"


@dataclass(frozen=True)
class Folding:
    """The report of `fold`."""

    tied: list[list[str]]  # layers that share one weight, by their names before folding
    repeats: list[Repeat]
    blocks: list[Repeat]  # every block of the containers of shared layers, for the diagram
    plain: list[str]  # groups that got plain parameters back
    allocation: Allocation | None  # of the groups that stay shared
    layers_before: int
    layers: int  # modules with a weight of two or more dimensions; a loop's body counts once
    weights: int  # distinct weights of these layers
    parameters_before: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `load_folded` reads."""
        kept = self.allocation.to_dict() if self.allocation is not None else None
        return asdict(replace(self, allocation=None)) | {"allocation": kept}


@dataclass(frozen=True)
class _Stored(Folding):
    """The fields of `folding.json`."""

    allocation: Any  # checked by Allocation.from_dict


def fold(model: nn.Module, threshold: float, example: Batch | None = None) -> Folding:
    """Fold a shared network in place, and return a report.

    Layers are tied if the cosine of each pair is at least `threshold` (`layer_similarity.tie`).
    Folding changes the tied network's outputs only by rounding. Loops are made of the children of
    `nn.Sequential`s, which the network must call as a whole. With an `example` (a tensor, a
    sequence of arguments or a mapping of keywords) they are made of those of `nn.ModuleList`s, too,
    and only if the outputs for the example stay the same. Tied layers outside of loops become one
    parameter with several names.

    Raises ValueError, with the network left as it was, for a network that is not shared, folded
    already or without coefficients, an invalid threshold and an example that does not fit.
    """
    refuse_folded(model)
    if example is not None:
        call(model, example, "the example")
    return fold_tied(model, tie(model, threshold), example)


@torch.no_grad()
def fold_tied(model: nn.Module, tied: list[list[str]], example: Batch | None = None) -> Folding:
    """Fold a network in place, given the result of `layer_similarity.tie`."""
    refuse_folded(model)
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
    if tied:
        model.__dict__[FOLDED] = True
    weights = dict(model.named_parameters(remove_duplicate=False))  # by names before folding
    containers = block_containers(model, [layer.name for layer in plan.layers])
    repeats = _fold_repeats(model, example)
    layers, distinct = _count_layers(model)
    allocation = _allocate(model, plan, kept, weights) if kept else None
    if allocation is not None:
        install(model, allocation, shared.recompute)
        _fill(model, allocation, plan, kept, values)
    return Folding(
        tied=tied,
        repeats=repeats,
        blocks=list_blocks(containers, repeats),
        plain=[group.name for g, group in enumerate(plan.groups) if g not in kept and group.bank],
        allocation=allocation,
        layers_before=layers_before,
        layers=layers,
        weights=distinct,
        parameters_before=parameters_before,
        parameters=count_parameters(model),
    )


def save_folded(model: nn.Module, folding: Folding, directory: str | os.PathLike[str]) -> None:
    """Write a folded network as `model.safetensors`, tied weights once, and `folding.json`.

    Raises ValueError for a network that could not be loaded, as `npas.save` does.
    """
    if is_shared(model):
        shared = audit.follow(shared_weights(model))
        audit.refuse_unloadable(shared, "save_folded")
        folding = replace(folding, allocation=shared.allocation)
    storage.write(model, storage.make_folder(directory), FOLDING_FILE, folding.to_dict())


def load_folded(directory: str | os.PathLike[str], dense_model: nn.Module) -> nn.Module:
    """Turn the dense architecture, in place, into the network that `save_folded` wrote.

    Returns the network. Raises ValueError, with it left as it was, if files are missing, damaged,
    changed or inconsistent, or if the architecture is another one.
    """
    path = path_of(directory) / FOLDING_FILE
    stored = storage.read(path.parent, FOLDING_FILE, "npas-fold")
    try:
        data: _Stored = decode(_Stored, stored.description)
        plan = None if data.allocation is None else Allocation.from_dict(data.allocation)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for network in (copy.deepcopy(require_unshared(dense_model)), dense_model):  # try on a copy
        try:
            _tie_parameters(network, data.tied)
            apply_repeats(network, data.repeats)
        except (AttributeError, KeyError) as error:
            lacks = f"the network has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{directory} was written by another architecture: {lacks}") from None
        restore(network, plan, stored)
    if data.tied:
        dense_model.__dict__[FOLDED] = True
    return dense_model


def _fold_repeats(model: nn.Module, example: Batch | None) -> list[Repeat]:
    """Make all loops; with an example, only those that keep the network's outputs for it."""
    if example is None:
        return fold_repeats(model)
    expected = call(model, example, "the example")
    for lists in (True, False):
        trial = copy.deepcopy(model)
        fold_repeats(trial, lists)
        try:
            torch.testing.assert_close(call(trial, example, ""), expected, rtol=1e-3, atol=1e-4)
        except Exception:  # whatever a forward raises whose lists are not plain chains
            continue
        return fold_repeats(model, lists)
    return []


def _kept_groups(plan: Allocation, tied: Sequence[Sequence[str]]) -> dict[int, GroupAllocation]:
    """Return the groups that stay shared, by index, with one layer per distinct weight."""
    again = {name for names in tied for name in names[1:]}
    kept = {}
    for g, group in enumerate(plan.groups):
        layers = tuple(layer for layer in group.layers if layer.name not in again)
        distinct = replace(group, layers=layers)
        # A group that saves nothing over the weights themselves gets plain parameters back.
        if group.bank and distinct.used < sum(layer.size for layer in layers):
            kept[g] = distinct
    return kept


def _tie_parameters(model: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Replace the parameters of each list of names by the first one; KeyError if one is missing."""
    found = {name: tensor for tensor in find_tensors(model) for name in tensor.names}
    for first, *others in tied:
        for name in others:
            for owner, attribute in found[name].owners:
                setattr(owner, attribute, found[first].parameter)


def _count_layers(model: nn.Module) -> tuple[int, int]:
    """Return (modules with large weights, distinct large weights); a loop's body counts once."""
    further = {m for loop in model.modules() if isinstance(loop, Loop) for m in loop.further()}
    large = [tensor for tensor in find_tensors(model) if is_large(tensor.parameter)]
    owners = [owner for tensor in large for owner, _ in tensor.owners]
    return sum(owner not in further for owner in owners), len(large)


def _allocate(
    model: nn.Module,
    plan: Allocation,
    kept: Mapping[int, GroupAllocation],
    weights: Mapping[str, nn.Parameter],
) -> Allocation:
    """Return the allocation of the kept groups, with the layers' names in the folded network."""
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
    """Copy the values of banks, coefficients, upsamplers and corrections before folding."""
    old_index = {layer.name: i for i, layer in enumerate(plan.layers)}
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
                old_name = learned_name(old_index[layer.name], layer)
                new[learned_name(index, layer)] = values[old_name]
            if layer.rank:
                pairs = zip(factor_names(index), factor_names(old_index[layer.name]), strict=True)
                new |= {name: values[before] for name, before in pairs}
            index += 1
    for name, tensor in new.items():
        getattr(model, name).copy_(tensor).requires_grad_(tensor.requires_grad)
