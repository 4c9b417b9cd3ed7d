"""Turn a dense network into a shared one and back: share, plan, materialize, save, load."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from npas._budget import BudgetLike
from npas.sharing import storage
from npas.sharing.allocation import Allocation, LayerAllocation, Scheme
from npas.sharing.allocator import allocate, allocate_templates
from npas.sharing.attachment import (
    attach,
    close_passes,
    detach,
    open_passes,
    rounds_under_autocast,
)
from npas.sharing.budget import count_parameters, parse_budget
from npas.sharing.buffers import give_back_freed
from npas.sharing.generators import CHOICES, STARTS
from npas.sharing.groups import assign_groups
from npas.sharing.guards import free_methods, guard_methods
from npas.sharing.initialization import (
    assign_scales,
    initialize,
    initialize_as_released,
    measure_spread,
)
from npas.sharing.layers import Layer, find_layers, find_tensors, is_constant
from npas.sharing.loops import refuse_loops
from npas.sharing.memory import refuse_budget, refuse_plan
from npas.sharing.modes import full_precision
from npas.sharing.names import PREFIX, SCALES, bank_name
from npas.sharing.reference import allocate_reference
from npas.sharing.stored import check_tensors, check_unshared, group_shapes, read_plan
from npas.sharing.upsamplers import UPSAMPLERS
from npas.sharing.validation import LAYOUTS
from npas.sharing.weights import SharedWeights

ALLOCATION_FILE = "allocation.json"

Names = str | Iterable[str] | None
Groups = str | Mapping[str, str | int]


def share(
    model: nn.Module,
    budget: BudgetLike | None = None,
    *,
    generator: str = "wavg",
    upsampler: str = "inter",
    groups: Groups = "single",
    num_groups: int | None = None,
    max_templates: int = 8,
    templates: int | str | None = None,
    coefficients: str = "orthogonal",
    include: Names = None,
    exclude: Names = None,
    layout: str = "npas",
    seed: int = 0,
    recompute: bool = False,
) -> nn.Module:
    """Share the parameters of `model` inside a budget, in place, and return it.

    `budget` limits all trainable parameters: `0.1` or `"10%"` of the dense count, `2.0`, `"18M"`.
    `templates` fixes K instead (soft sharing), and with it the count; "layers" is as many as the
    group has layers. `generator` is avg, wavg or emb; `coefficients` start orthogonal or sparse
    (one template a layer); `upsampler` inter, repeat, mask or wavg; `groups` single, type, shape,
    random (with `num_groups`) or a mapping of name patterns to groups. `include` and `exclude` are
    glob patterns over parameter names. `layout="reference"` is the released code's (no exact
    budgets).

    Generated weights start with the spread of the dense ones, whose values are dropped: warns if
    they look trained. Weights are generated once per forward pass, and kept without gradients while
    nothing they depend on changes; writing to a bank through `.data` escapes that. With `recompute`
    they are not kept for backward but generated again, which trades time for memory; saved-tensor
    hooks around the call, such as a checkpoint's, decide instead where there are any.

    Raises ValueError, naming what to change, for a network that is shared already, a budget below
    the smallest feasible one and options that do not fit together.
    """
    refuse_budget(require_unshared(model), budget)
    allocation = plan(
        model, budget, generator=generator, upsampler=upsampler, groups=groups,
        num_groups=num_groups, max_templates=max_templates, templates=templates,
        coefficients=coefficients, include=include, exclude=exclude, layout=layout, seed=seed,
    )  # fmt: skip
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the network lies on the meta device, without values: build it on the CPU")
    if looks_trained(model):
        warnings.warn(
            "npas.share drops the network's weights, and these look trained: a shared network is"
            " trained from scratch",
            stacklevel=2,
        )
    return apply(model, allocation, seed=seed, recompute=recompute)


def plan(
    model: nn.Module,
    budget: BudgetLike | None = None,
    *,
    generator: str = "wavg",
    upsampler: str = "inter",
    groups: Groups = "single",
    num_groups: int | None = None,
    max_templates: int = 8,
    templates: int | str | None = None,
    coefficients: str = "orthogonal",
    include: Names = None,
    exclude: Names = None,
    layout: str = "npas",
    seed: int = 0,
) -> Allocation:
    """Return the allocation that `share` would make of the same arguments; changes nothing.

    But for the layers' fixed scales, which `share` measures.
    """
    layers = find_layers(require_unshared(model), include, exclude)
    _choose("generator", generator, CHOICES)
    _choose("upsampler", upsampler, UPSAMPLERS)
    _choose("layout", layout, LAYOUTS)
    _choose("coefficients", coefficients, STARTS)
    for option, count in (("max_templates", max_templates), ("templates", templates)):
        if isinstance(count, str):
            if count != "layers":
                raise ValueError(f"{option}={count!r} is unknown: give a number, or 'layers'")
        elif count is not None and count < 1:
            raise ValueError(
                f"{option}={count} is out of range: give a layer at least one template"
            )
    if (budget is None) == (templates is None):
        raise ValueError(
            "budget and templates exclude each other: templates fixes the count"
            if templates is not None
            else "nothing says how many parameters to use: give a budget (0.1, 18M) or templates"
        )
    specs = [layer.spec for layer in layers]
    group_of = assign_groups(specs, groups, num_groups, seed)
    scheme = Scheme(generator, upsampler, max_templates, layout, coefficients)
    dense = count_parameters(model)
    if templates is not None:
        return allocate_templates(specs, group_of, templates, dense, scheme)
    assert budget is not None
    request = parse_budget(budget)
    if layout == "reference":
        if generator != "wavg" or coefficients != "orthogonal":
            raise ValueError(
                "layout='reference' mixes with generator='wavg' and orthogonal coefficients only"
            )
        wrap_after_k = groups in ("type", "shape")
        return allocate_reference(specs, group_of, request, dense, scheme, wrap_after_k)
    return allocate(specs, group_of, request, dense, scheme)


def apply(
    model: nn.Module, allocation: Allocation, *, seed: int = 0, recompute: bool = False
) -> nn.Module:
    """Share a dense network as a finished allocation says, in place, and return it.

    Raises ValueError where the network is not the one that the allocation was made for, and where
    its device has no memory for it.
    """
    refuse_plan(allocation)
    allocation, deviations = assign_scales(allocation, _measure_spreads(model, allocation))
    install(model, allocation, recompute)
    give_back_freed()  # the dense weights
    with torch.device("cpu"):  # a seed means the same weights whatever the default device
        if allocation.scheme.layout == "reference":
            initialize_as_released(model, allocation, seed)
        else:
            initialize(model, allocation, deviations, seed)
    return model


def allocation(model: nn.Module) -> Allocation:
    """Return the allocation of a shared network; ValueError if it is not shared."""
    return shared_weights(model).allocation


def is_shared(model: nn.Module) -> bool:
    """Tell whether `share` made this network."""
    return "_npas_shared" in model.__dict__


def shared_weights(model: nn.Module) -> SharedWeights:
    """Return what a shared network's layers read from; ValueError if it is not shared."""
    if not is_shared(model):
        raise ValueError("the network is not shared: pass the module that npas.share returned")
    found: SharedWeights = model.__dict__["_npas_shared"]
    return found


def no_decay_names(model: nn.Module) -> set[str]:
    """Name the parameters that take no weight decay: coefficients, embeddings, upsamplers."""
    return {
        name
        for name, _ in model.named_parameters()
        if (leaf := name.rpartition(".")[2]).startswith(PREFIX)
        and not leaf.startswith(f"{PREFIX}bank_")
    }


def looks_trained(model: nn.Module) -> bool:
    """Guess from norms: moved running statistics, or weights that are no longer all equal.

    A network without norms gives no sign.
    """
    for module in model.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        mean, weight = getattr(module, "running_mean", None), getattr(module, "weight", None)
        for tensor in (mean, weight):
            if isinstance(tensor, Tensor) and not tensor.is_meta and not is_constant(tensor):
                return True
    return False


@torch.no_grad()
def materialize(model: nn.Module) -> nn.Module:
    """Turn a shared network into a plain dense one with the same outputs, in place; return it.

    Weights come from the call that the forward pass makes, so fp32 results are equal to the bit.
    Raises ValueError for a network that is not shared.
    """
    shared = shared_weights(model)
    with torch.inference_mode(False), full_precision(next(shared.sources()).device):
        dense = {
            i: nn.Parameter(
                shared.weight(i).detach().clone(),
                requires_grad=model.get_parameter(bank_name(g)).requires_grad,
            )
            for i, (g, layer) in enumerate(shared.reading.places)
            if layer.templates
        }
    for module in list(model.modules()):
        if "_npas" in module.__dict__:
            detach(module, dense)
    close_passes(model, shared)
    free_methods(model)
    for tensors in (model._parameters, model._buffers):
        for name in [name for name in tensors if name.startswith(PREFIX)]:
            del tensors[name]
    del model.__dict__["_npas_shared"]
    return model


def save(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a shared network as `model.safetensors`, every bank once, and `allocation.json`."""
    refuse_loops(model)
    storage.write(model, Path(directory), ALLOCATION_FILE, allocation(model).to_dict())


def load(
    directory: str | os.PathLike[str], dense_model: nn.Module, *, recompute: bool = False
) -> nn.Module:
    """Make `dense_model`, the architecture as built, the network that `save` wrote; return it.

    Raises ValueError, with the network left as it was, where files are missing, were changed since
    they were written or do not hold together, and where the architecture is another one. An
    `allocation.json` without its "digest" may have been edited: its plan is used if it holds
    together.
    """
    directory = Path(directory)
    stored = storage.read(directory, ALLOCATION_FILE, "npas.save")
    plan = read_plan(stored.description, directory / ALLOCATION_FILE)
    with storage.unchanged_on_failure(require_unshared(dense_model)):
        install_stored(dense_model, plan, stored, recompute)
        storage.load_weights(dense_model, stored)
    give_back_freed()
    return dense_model


def install_stored(
    model: nn.Module, plan: Allocation, stored: storage.Stored, recompute: bool = False
) -> None:
    """Share as a stored allocation says; ValueError unless it fits its tensors and the network."""
    check_tensors(plan, stored, model)
    install(model, plan, recompute)
    check_unshared(plan, stored, model)


def summary(model: nn.Module) -> str:
    """Return a shared network's table: layers, groups, templates, asked, allowed and used."""
    return allocation(model).summary()


def _measure_spreads(model: nn.Module, allocation: Allocation) -> dict[str, float]:
    tensors = {tensor.spec.name: tensor for tensor in find_tensors(require_unshared(model))}
    return {
        layer.name: measure_spread(_dense_tensor(tensors, layer).parameter)
        for layer in allocation.layers
    }


def install(model: nn.Module, allocation: Allocation, recompute: bool = False) -> None:
    """Put zero-valued shared tensors on the root and let every shared layer read them."""
    tensors = {tensor.spec.name: tensor for tensor in find_tensors(model)}
    # Whatever can be wrong is found before anything changes.
    owned = [[_dense_tensor(tensors, layer) for layer in g.layers] for g in allocation.groups]
    likes = [_one_kind(g.name, own) for g, own in zip(allocation.groups, owned, strict=True)]
    low = [i for i, layer in enumerate(chain(*owned)) if rounds_under_autocast(layer)]
    shared = SharedWeights(model, allocation, low, recompute)
    index = 0
    for g, group in enumerate(allocation.groups):
        if group.bank:
            for name, shape in group_shapes(g, group, index).items():
                model.register_parameter(name, nn.Parameter(likes[g].new_zeros(shape)))
            for place, tensor in enumerate(owned[g]):
                for owner, attribute in tensor.owners:
                    attach(owner, attribute, index + place, shared)
        index += len(group.layers)
    scales = 1 + max(layer.scale for layer in allocation.layers)
    model.register_buffer(SCALES, likes[0].new_zeros(scales))
    model.__dict__["_npas_shared"] = shared
    open_passes(model, shared)
    guard_methods(model)


def _dense_tensor(tensors: Mapping[str, Layer], layer: LayerAllocation) -> Layer:
    found = tensors.get(layer.name)
    if found is None or found.spec.shape != layer.shape:
        raise ValueError(
            f"the network has no {layer.name} of shape {list(layer.shape)}: build the architecture"
            " that the allocation was made for"
        )
    return found


def _one_kind(group: str, layers: Sequence[Layer]) -> Tensor:
    """Return a parameter that tells the bank's dtype and device; ValueError if they differ."""
    first = layers[0].parameter
    for layer in layers:
        if (layer.parameter.dtype, layer.parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"group {group!r} holds {layers[0].spec.name} ({first.dtype}, {first.device}) and"
                f" {layer.spec.name} ({layer.parameter.dtype}, {layer.parameter.device}): put them"
                " in different groups, or share before moving parts of the network"
            )
    return first.detach()


def require_unshared(model: nn.Module) -> nn.Module:
    """Return the network; ValueError if it is none, or shares anywhere."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r} is no network: pass an nn.Module")
    if any("_npas" in module.__dict__ or is_shared(module) for module in model.modules()):
        raise ValueError("the network is shared already: npas.materialize it to share it anew")
    return model


def _choose(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown: choose {', '.join(choices)}")
