"""Optimizer parameter groups with and without weight decay for shared networks.

The usual rule (timm, nanoGPT) decays parameters of two or more dimensions. It is wrong for shared
networks: banks hold the weights but are flat, and coefficients are matrices.
"""

import re
from typing import Any

from torch import nn

from npas.sharing.layers import PREFIX, require_network
from npas.utils.checks import require, within

_SHARED = re.compile(rf"(?:^|\.){PREFIX}(\w+)$")


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
    """Return optimizer parameter groups that hold each trainable parameter once.

        torch.optim.AdamW(npas.param_groups(model, 0.05), lr=1e-3)

    Banks and unshared matrices get `weight_decay`. Coefficients, embeddings, upsamplers and
    low-rank corrections get none; neither do norms and biases (fewer than two dimensions) unless
    `decay_norm_bias`. `lr` sets the learning rate of every group; `bank_lr` and `coefficient_lr`
    override it for banks and for all other shared parameters. Empty groups are left out.

    Works for dense networks, too. For torch.optim.Muon, which takes only matrices, `matrices=True`
    returns the matrices that are neither shared nor embeddings, and `matrices=False` the rest, for
    a second optimizer.

    Raises ValueError for a rate that is not finite and above 0, a `weight_decay` that is not finite
    or below 0, and if `matrices=True` finds none.
    """
    for option, value in (("lr", lr), ("bank_lr", bank_lr), ("coefficient_lr", coefficient_lr)):
        if value is not None:
            within(option, value, "(0, inf)")
    within("weight_decay", weight_decay, "[0, inf)")
    require("decay_norm_bias", decay_norm_bias, bool, "True or False")
    require("matrices", matrices or False, bool, "True, False or None")
    exempt = no_decay_names(model)
    found: dict[tuple[bool, float | None], list[nn.Parameter]] = {
        (decays, rate): [] for decays in (True, False) for rate in (lr, bank_lr, coefficient_lr)
    }
    kept = None if matrices is None else _matrices(model)
    if matrices and not kept:
        raise ValueError(
            "the network has no unshared matrix, and torch.optim.Muon cannot train flat banks:"
            " exclude layers from sharing, or see npas-train optim=muon"
        )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (kept is not None and (name in kept) != matrices):
            continue
        shared = _SHARED.search(name)
        is_norm = parameter.ndim < 2 and not shared
        takes_none = name in exempt or (is_norm and not decay_norm_bias)
        is_bank = shared is not None and shared[1].startswith("bank_")
        own = None if shared is None else bank_lr if is_bank else coefficient_lr
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
    """Return the names of the trainable matrices that are neither shared nor embeddings."""
    lookups = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2
        if parameter not in lookups and not _SHARED.search(name)
    }


def no_decay_names(model: nn.Module) -> set[str]:
    """Return the names of the shared parameters without weight decay: all but banks.

    With `allocator="reference"` upsamplers get weight decay, as in the released code.
    """
    released = {
        path
        for path, module in require_network(model).named_modules()
        if (shared := module.__dict__.get("_npas_shared")) is not None
        and shared.allocation.scheme.allocator == "reference"
    }
    names = set()
    for name, _ in model.named_parameters():
        found = _SHARED.search(name)
        if found is None or found[1].startswith("bank_"):
            continue
        if not (found[1].startswith("upsampler_") and name[: found.start()] in released):
            names.add(name)
    return names
