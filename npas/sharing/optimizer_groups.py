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
    model: nn.Module, weight_decay: float, *, lr: float | None = None, decay_norm_bias: bool = False
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer, each trainable parameter in one of them.

    Banks and unshared matrices take `weight_decay`. Coefficients, embeddings, upsamplers and
    low-rank corrections take none; neither do norms and biases (fewer than two dimensions) unless
    `decay_norm_bias`. With `lr` every group gets that rate. A group without parameters is left out.

    Works for a dense network and for any optimizer:
    `torch.optim.AdamW(npas.param_groups(model, 0.05), lr=1e-3)`.
    """
    rate = {} if lr is None else {"lr": lr}
    exempt = no_decay_names(model)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_norm = parameter.ndim < 2 and not _SHARED.search(name)
        takes_none = name in exempt or (is_norm and not decay_norm_bias)
        (others if takes_none else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, **rate},
        {"params": others, "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]


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
        if found is None or found[1].startswith("bank_"):
            continue
        path = name[: found.start()].removesuffix("parametrizations").rstrip(".")
        if not (found[1].startswith("upsampler_") and path in released):
            names.add(name)
    return names
