"""Prune output filters: masks behind the norms that read them, whose filters can be taken out.

    mask_filters(model, {"features.0": [("features.1", "features.3", 0)], ...})
    prune_filters(model, 0.5)                                    # of each layer the smaller half
    prune_filters(model, 0.5, feature_ranks(model, lambda: model(images)))
    shrink(model)                                                # a plain, smaller network

A network is masked before it is shared or after. Each prunable conv has readers: the norm behind
it, the layer that reads this norm's outputs, and the channel of the norm that is the conv's first.
A pruned filter's channels are exactly zero behind all of its norms, in any mode, so that to take
the filter out changes no output. Masks are buffers, True for what is kept; no pruned filter comes
back. Weights may be generated: nothing here writes to one.

Legend: B images, F filters of a conv, C channels of a norm.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.activations import evaluating
from npas.sharing.install import is_shared, materialize

Readers = Mapping[str, Sequence[tuple[str, str, int]]]
Amount = float | Mapping[str, float]

MASK = "kept"  # the buffer of a norm
RANKED = 1 << 22  # values whose ranks are computed together


def mask_filters(model: nn.Module, readers: Readers) -> nn.Module:
    """Make filters of a network prunable, in place, and return it; all are kept as yet.

    ValueError where a conv has none, or a reader does not fit it.
    """
    if "_npas_readers" in model.__dict__:
        raise ValueError("the network has masks already: prune_filters prunes more of it")
    if not readers:
        raise ValueError("the network has no filters that can be pruned")
    modules: dict[str, Any] = dict(model.named_modules())
    for conv, own in readers.items():
        if not own:
            raise ValueError(f"nothing reads {conv}: leave it out")
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
    """Return a norm's outputs with zeros for pruned filters, whatever they were."""
    kept_C = norm.get_buffer(MASK)
    kept = kept_C.view(-1, *[1] * (output.dim() - 2))
    return torch.where(kept, output, output.new_zeros(()))


def has_masks(model: nn.Module) -> bool:
    """Return whether filters of this network can be pruned."""
    return "_npas_readers" in model.__dict__


def readers_of(model: nn.Module) -> dict[str, list[tuple[str, str, int]]]:
    """Return what a masked network's convs are read by; ValueError if it has no masks."""
    if not has_masks(model):
        raise ValueError("the network has no masks: call npas.sharing.mask_filters first")
    found: dict[str, list[tuple[str, str, int]]] = model.__dict__["_npas_readers"]
    return found


def kept_filters(model: nn.Module) -> dict[str, Tensor]:
    """Return of every prunable conv which filters are kept, F each."""
    found = {}
    for conv, ((norm, _, first), *_) in readers_of(model).items():
        filters: Any = model.get_submodule(conv).out_channels
        found[conv] = model.get_buffer(f"{norm}.{MASK}")[first : first + filters]
    return found


def counts(model: nn.Module, amount: Amount, part: float = 1.0) -> dict[str, int]:
    """Return how many filters each conv keeps when this amount is pruned, or a part of it.

    One amount for all, or by pattern of a conv's name; the first that matches counts, and what none
    matches stays whole. Fractions of filters are pruned, too. ValueError for a pattern that matches
    nothing and for a layer that would be empty.
    """
    kept = {conv: len(mask_F) for conv, mask_F in kept_filters(model).items()}
    patterns = dict(amount) if isinstance(amount, Mapping) else {"*": amount}
    for pattern, share in patterns.items():
        if not fnmatch.filter(kept, pattern):
            raise ValueError(f"no layer that can be pruned is {pattern!r}: there are {_some(kept)}")
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
    """Return the L1 norm of every filter, F each (Li et al., ICLR 2017, section 3.1)."""
    weights: dict[str, Any] = {c: model.get_submodule(c).weight for c in readers_of(model)}
    return {conv: w.detach().flatten(1).abs().double().sum(1) for conv, w in weights.items()}


@torch.no_grad()
def feature_ranks(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Return the ranks of the feature maps that `run` makes, summed over images, F each.

    HRank (Lin et al., CVPR 2020, section 3): `run` passes some batches through the network, which
    is in eval mode meanwhile. The maps are what comes out of ReLU behind the norm that reads the
    filters first. Filters whose maps have high rank matter.
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
    """Add the ranks of a batch's maps; of numbers that are not finite, as if they were 0."""
    maps_BFHW = output[:, own].float().relu().nan_to_num(0.0, 0.0, 0.0)
    if maps_BFHW.dim() < 4:
        raise ValueError(f"the outputs of {conv} are no maps, so that they have no rank")
    chunk = max(1, RANKED // maps_BFHW[0].numel())
    for part_BFHW in maps_BFHW.split(chunk):
        found_F = torch.linalg.matrix_rank(part_BFHW).double().sum(0)
        ranks[conv] = ranks[conv] + found_F if conv in ranks else found_F


def prune_filters(
    model: nn.Module, amount: Amount, scores: Mapping[str, Tensor] | None = None
) -> dict[str, list[int]]:
    """Prune the filters of the lowest scores, by default magnitudes; return what each conv keeps.

    Of equals the first is pruned first. ValueError as of `counts`.
    """
    return keep(model, choose(model, counts(model, amount), scores or magnitudes(model)))


def choose(
    model: nn.Module, count: Mapping[str, int], scores: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Return so many filters of each conv with the highest scores, of those that are kept still."""
    found = {}
    for conv, mask_F in kept_filters(model).items():
        scores_F = scores[conv].to(mask_F.device).nan_to_num(0.0).masked_fill(~mask_F, -math.inf)
        order_F = scores_F.argsort(stable=True)[-min(count[conv], int(mask_F.sum())) :]
        found[conv] = sorted(order_F.tolist())
    return found


@torch.no_grad()
def keep(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Keep these filters of each conv alone, and return them; ValueError if there are none."""
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
    """Write zeros into norms where filters are pruned: the same outputs without masks."""
    for norm in _norms(readers_of(model)):
        module = model.get_submodule(norm)
        for tensor in module.parameters():
            tensor[~module.get_buffer(MASK)] = 0
    return model


@torch.no_grad()
def shrink(model: nn.Module) -> nn.Module:
    """Take the pruned filters out, in place, and return the plain dense network; same outputs."""
    readers, kept = readers_of(model), kept_filters(model)
    if is_shared(model):
        materialize(model)
    state = model.state_dict()
    left_C = {norm: state.pop(f"{norm}.{MASK}") for norm in _norms(readers)}
    for conv, mask_F in kept.items():
        for name in (f"{conv}.weight", f"{conv}.bias"):
            if name in state:
                state[name] = state[name][mask_F]
    for layer, norm in {layer: norm for own in readers.values() for norm, layer, _ in own}.items():
        state[f"{layer}.weight"] = state[f"{layer}.weight"][:, left_C[norm]]
    for norm, kept_C in left_C.items():
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
    """Give a dense network the tensors of a smaller one, shapes and all, in place; return it.

    `state` is the state dict of a network of this architecture that `shrink`, or npas-export, made.
    ValueError, before anything changes, if its names differ, or a tensor is larger.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        name = min(own.keys() ^ state.keys())
        raise ValueError(f"the tensors are another architecture's: only one has {name!r}")
    for name, tensor in own.items():
        there, here = list(state[name].shape), list(tensor.shape)
        if len(there) != len(here) or any(a > b for a, b in zip(there, here, strict=True)):
            raise ValueError(f"{name} is {there}, which does not come from {here} by pruning")
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                new = state[start + leaf].to(parameter, copy=True)
                module._parameters[leaf] = nn.Parameter(new, parameter.requires_grad)
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
