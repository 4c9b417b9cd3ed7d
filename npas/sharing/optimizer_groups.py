"""Optimizer groups with and without weight decay for shared networks.

The usual rules, such as timm's and nanoGPT's, decay what has two or more dimensions. In a shared
network the weights are a bank, which is flat, and the coefficients, which are not, have rows.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from npas.sharing.layers import PREFIX
from npas.utils.keywords import renamed

_SHARED = re.compile(rf"(?:^|\.){PREFIX}(\w+?)(?:\.original\d*)?$")  # also where parametrized


@renamed(decay_norms="decay_norm_bias")
def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float | None = None,
    bank_lr: float | None = None,
    coefficient_lr: float | None = None,
    decay_norm_bias: bool = False,
    matrices: bool | None = None,
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer, each trainable parameter in one of them.

    Banks and unshared matrices take `weight_decay`. Coefficients, embeddings, upsamplers and
    low-rank corrections take none; neither do norms and biases (fewer than two dimensions) unless
    `decay_norm_bias`. With `lr` every group gets that rate, but banks `bank_lr` and all else that
    is shared `coefficient_lr`, where given, which must be above 0 (ValueError). A group without
    parameters is left out.

    Works for a dense network and for any optimizer that takes all kinds of parameters (AdamW, SGD,
    Adafactor): `torch.optim.AdamW(npas.param_groups(model, 0.05), lr=1e-3)`. torch.optim.Muon takes
    matrices alone: `matrices=True` returns those that are neither shared nor embeddings, False all
    else, for an optimizer beside it. Banks are flat, and never among them. ValueError if there is
    no such matrix.
    """
    for option, value in (("bank_lr", bank_lr), ("coefficient_lr", coefficient_lr)):
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, got {value}")
    exempt = no_decay_names(model)
    found: dict[tuple[bool, float | None], list[nn.Parameter]] = {
        (decays, rate): [] for decays in (True, False) for rate in (lr, bank_lr, coefficient_lr)
    }
    kept = None if matrices is None else _matrices(model)
    if matrices and not kept:
        raise ValueError(
            "the network has no matrix outside of its banks, which are flat: torch.optim.Muon has"
            " nothing to train; exclude layers from sharing, or see npas-train optim=muon"
        )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (kept is not None and (name in kept) != matrices):
            continue
        shared = _SHARED.search(name)
        is_norm = parameter.ndim < 2 and not shared
        takes_none = name in exempt or (is_norm and not decay_norm_bias)
        own = None if shared is None else bank_lr if is_bank(shared[1]) else coefficient_lr
        found[not takes_none, lr if own is None else own].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            **({} if rate is None else {"lr": rate}),
        }
        for (decays, rate), parameters in found.items()
        if parameters
    ]


def _matrices(model: nn.Module) -> set[str]:
    """Name the trainable parameters of two dimensions that are neither shared nor embeddings."""
    lookups = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2
        if parameter not in lookups and not _SHARED.search(name)
    }


def is_bank(name: str) -> bool:
    """Return whether a shared tensor, by its name without the prefix, is a bank."""
    return name.startswith("bank_")


def no_decay_names(model: nn.Module) -> set[str]:
    """Name the parameters that take no weight decay: all that is shared but banks.

    With `allocator="reference"` upsamplers decay, as in the released code.
    """
    released = {
        path
        for path, module in model.named_modules()
        if (shared := module.__dict__.get("_npas_shared")) is not None
        and shared.allocation.scheme.allocator == "reference"
    }
    names = set()
    for name, _ in model.named_parameters():
        found = _SHARED.search(name)
        if found is None or is_bank(found[1]):
            continue
        path = name[: found.start()].removesuffix("parametrizations").rstrip(".")
        if not (found[1].startswith("upsampler_") and path in released):
            names.add(name)
    return names
