"""Prune the output filters of convolutions by masks, then remove them.

    mask_filters(model, {"features.0": [("features.1", "features.3", 0)], ...})
    prune_filters(model, 0.5)                                    # half of each layer, by L1 norm
    prune_filters(model, 0.5, feature_ranks(model, lambda: model(images)))
    shrink(model)                                                # a plain, smaller network

Each prunable conv has readers (norm, layer, first): the norm after the conv, the layer that reads
the norm's outputs, and the norm's channel that is the conv's first filter. Masks are buffers of the
norms, True for kept channels; they set a pruned filter's channels to exactly zero after the norm,
so that `shrink` changes no output. Pruned filters stay pruned. Networks may be masked before or
after sharing, since no weight is written to.

Legend: B images, F filters of a conv, C channels of a norm.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.runtime.install import is_shared, materialize
from npas.sharing.trained.activations import evaluating

Readers = Mapping[str, Sequence[tuple[str, str, int]]]
Amount = float | Mapping[str, float]

MASK = "kept"  # the name of a norm's buffer
RANKED = 1 << 22  # values per call of matrix_rank


def mask_filters(model: nn.Module, readers: Readers) -> nn.Module:
    """Add masks that keep all filters, in place, and return the network.

    Raises ValueError for a conv without readers, and for readers that do not fit their conv.
    """
    if "_npas_readers" in model.__dict__:
        raise ValueError("the network has masks already: prune_filters prunes more of it")
    if not readers:
        raise ValueError("the network has no filters that can be pruned")
    modules: dict[str, Any] = dict(model.named_modules())
    for conv, own in readers.items():
        if not own:
            raise ValueError(f"nothing reads {conv}: leave it out")
        if any(not isinstance(read, tuple) or len(read) != 3 for read in own):
            raise ValueError(
                f"the readers of {conv} must be tuples (norm, layer, first channel), not {own!r}"
            )
        for name in (conv, *(name for read in own for name in read[:2])):
            if name not in modules:
                raise ValueError(f"the network has no module {name!r}")
        for norm, layer, first in own:
            channels = getattr(modules[norm], "num_features", 0)
            last = first + getattr(modules[conv], "out_channels", channels + 1)
            reads = getattr(modules[layer], "weight", torch.empty(0, 0)).shape[1]
            if not (0 <= first < last <= channels == reads and modules[norm].affine):
                raise ValueError(f"{norm} and {layer} do not read {conv} from channel {first} on")
    for norm in _norms(readers):
        mask = torch.ones_like(modules[norm].weight, dtype=torch.bool)
        modules[norm].register_buffer(MASK, mask)
        modules[norm].register_forward_hook(_mask)
    model.__dict__["_npas_readers"] = {conv: [*own] for conv, own in readers.items()}
    return model


def _mask(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Return a norm's outputs with zeros for pruned filters, also where they are not finite."""
    kept = norm.get_buffer(MASK).view(-1, *[1] * (output.dim() - 2))
    return torch.where(kept, output, output.new_zeros(()))


def has_masks(model: nn.Module) -> bool:
    """Return whether the network has masks."""
    return "_npas_readers" in model.__dict__


def readers_of(model: nn.Module) -> dict[str, list[tuple[str, str, int]]]:
    """Return the readers of a masked network's convs; raise ValueError if it has no masks."""
    if not has_masks(model):
        raise ValueError("the network has no masks: call npas.sharing.mask_filters first")
    found: dict[str, list[tuple[str, str, int]]] = model.__dict__["_npas_readers"]
    return found


def kept_filters(model: nn.Module) -> dict[str, Tensor]:
    """Return the mask of each prunable conv's filters, F, by name."""
    found = {}
    for conv, ((norm, _, first), *_) in readers_of(model).items():
        filters: Any = model.get_submodule(conv).out_channels
        found[conv] = model.get_buffer(f"{norm}.{MASK}")[first : first + filters]
    return found


def counts(model: nn.Module, amount: Amount, part: float = 1.0) -> dict[str, int]:
    """Return how many filters each conv keeps if the share `amount` x `part` is pruned.

    `amount` is one share for all convs, or maps glob patterns of convs' names to shares (the first
    match counts; unmatched convs are not pruned). Kept filters are rounded down. Raises ValueError
    for a pattern that matches nothing and for a layer without filters left.
    """
    kept = {conv: len(mask_F) for conv, mask_F in kept_filters(model).items()}
    patterns = dict(amount) if isinstance(amount, Mapping) else {"*": amount}
    for pattern, share in patterns.items():
        if not fnmatch.filter(kept, pattern):
            raise ValueError(f"no prunable layer matches {pattern!r}: there are {_some(kept)}")
        if not 0 <= share < 1:
            raise ValueError(f"an amount must be at least 0 and below 1, got {share}")
    found = {}
    for conv, filters in kept.items():
        share = next((s for p, s in patterns.items() if fnmatch.fnmatchcase(conv, p)), 0.0)
        found[conv] = math.floor(filters * (1 - share * part) + 1e-9)
        if found[conv] == 0:
            raise ValueError(f"an amount of {share} leaves none of the {filters} filters of {conv}")
    if found == kept and part == 1:
        raise ValueError("an amount of 0 prunes nothing: prune more, or do not prune")
    return found


def _some(names: Mapping[str, object]) -> str:
    first = [*names][:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")


@torch.no_grad()
def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """Return the L1 norms of each conv's filters, F (Li et al., ICLR 2017, section 3.1)."""
    weights: dict[str, Any] = {c: model.get_submodule(c).weight for c in readers_of(model)}
    return {conv: w.detach().flatten(1).abs().double().sum(1) for conv, w in weights.items()}


@torch.no_grad()
def feature_ranks(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Return the ranks of each conv's feature maps, F, summed over images.

    HRank (Lin et al., CVPR 2020, section 3) prunes filters of low rank. `run` must call the network
    with some batches; it is in eval mode meanwhile. Maps are taken after the conv's first norm, and
    after ReLU.
    """
    ranks: dict[str, Tensor] = {}
    hooks = []
    for conv, mask_F in kept_filters(model).items():
        norm, _, first = readers_of(model)[conv][0]
        add = partial(_add_ranks, ranks, conv, slice(first, first + len(mask_F)))
        hooks.append(model.get_submodule(norm).register_forward_hook(add))
    try:
        with evaluating(model):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if len(ranks) < len(hooks):
        raise ValueError("no batch was passed through the network: there are no ranks")
    return ranks


def _add_ranks(
    ranks: dict[str, Tensor], conv: str, own: slice, norm: Any, args: Any, output: Tensor
) -> None:
    """Add the ranks of a batch's maps; values that are not finite count as 0."""
    maps_BFHW = output[:, own].float().relu().nan_to_num(0.0, 0.0, 0.0)
    if maps_BFHW.dim() < 4:
        raise ValueError(f"the outputs of {conv} are not B x C x H x W, so they have no rank")
    chunk = max(1, RANKED // maps_BFHW[0].numel())
    for part_BFHW in maps_BFHW.split(chunk):
        found_F = torch.linalg.matrix_rank(part_BFHW).double().sum(0)
        ranks[conv] = ranks[conv] + found_F if conv in ranks else found_F


def prune_filters(
    model: nn.Module, amount: Amount, scores: Mapping[str, Tensor] | None = None
) -> dict[str, list[int]]:
    """Prune the filters with the lowest scores (default: L1 norms); return each conv's kept ones.

    Of equal scores the first is pruned first. Raises ValueError as `counts` does.
    """
    return keep(model, choose(model, counts(model, amount), scores or magnitudes(model)))


def choose(
    model: nn.Module, count: Mapping[str, int], scores: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Return the `count` kept filters of each conv with the highest scores."""
    found = {}
    for conv, mask_F in kept_filters(model).items():
        scores_F = scores[conv].to(mask_F.device).nan_to_num(0.0).masked_fill(~mask_F, -math.inf)
        order_F = scores_F.argsort(stable=True)[-min(count[conv], int(mask_F.sum())) :]
        found[conv] = sorted(order_F.tolist())
    return found


@torch.no_grad()
def keep(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Prune all but these filters; return each conv's kept ones. Raises ValueError if none is."""
    for conv, mask_F in kept_filters(model).items():
        new_F = torch.zeros_like(mask_F)
        new_F[[*kept[conv]]] = True
        if not (new_F & mask_F).any():
            raise ValueError(f"no filter of {conv} would be left")
        for norm, _, first in readers_of(model)[conv]:
            model.get_buffer(f"{norm}.{MASK}")[first : first + len(mask_F)] &= new_F
    return {
        conv: mask_F.nonzero().flatten().tolist() for conv, mask_F in kept_filters(model).items()
    }


@torch.no_grad()
def silence(model: nn.Module) -> nn.Module:
    """Set pruned channels of norms' parameters to zero, so that outputs need no masks."""
    for norm in _norms(readers_of(model)):
        module = model.get_submodule(norm)
        for tensor in module.parameters():
            tensor[~module.get_buffer(MASK)] = 0
    return model


@torch.no_grad()
def shrink(model: nn.Module) -> nn.Module:
    """Remove the pruned filters, in place; return the dense network, with the same outputs."""
    readers, kept = readers_of(model), kept_filters(model)
    if is_shared(model):
        materialize(model)
    state = model.state_dict()
    masks = {norm: state.pop(f"{norm}.{MASK}") for norm in _norms(readers)}  # C each
    for conv, mask_F in kept.items():
        for name in (f"{conv}.weight", f"{conv}.bias"):
            if name in state:
                state[name] = state[name][mask_F]
    for layer, norm in {layer: norm for own in readers.values() for norm, layer, _ in own}.items():
        state[f"{layer}.weight"] = state[f"{layer}.weight"][:, masks[norm]]
    for norm, kept_C in masks.items():
        module = model.get_submodule(norm)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if f"{norm}.{leaf}" in state:
                state[f"{norm}.{leaf}"] = state[f"{norm}.{leaf}"][kept_C]
        del module._buffers[MASK]
        for key, hook in list(module._forward_hooks.items()):
            if hook is _mask:
                del module._forward_hooks[key]
    del model.__dict__["_npas_readers"]
    return resize(model, state)


def resize(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load the state dict of a shrunk network of this architecture, in place; return the network.

    Tensors take the shapes of `state` (from `shrink` or npas-export). Raises ValueError, before
    anything changes, if names differ or a tensor is larger than the network's.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        name = min(own.keys() ^ state.keys())
        raise ValueError(f"the tensors are another architecture's: only one has {name!r}")
    for name, tensor in own.items():
        new, old = list(state[name].shape), list(tensor.shape)
        if len(new) != len(old) or any(a > b for a, b in zip(new, old, strict=True)):
            raise ValueError(f"{name} has shape {new}, which is not a pruned {old}")
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                values = state[start + leaf].to(parameter, copy=True)
                module._parameters[leaf] = nn.Parameter(values, parameter.requires_grad)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and start + leaf in state:
                module._buffers[leaf] = state[start + leaf].to(buffer, copy=True)
        if isinstance(module, nn.Conv2d):
            module.out_channels = len(module.weight)
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_features = len(module.weight)
    return model


def _norms(readers: Readers) -> list[str]:
    return list(dict.fromkeys(norm for own in readers.values() for norm, _, _ in own))
