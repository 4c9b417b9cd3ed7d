"""Measure how far a student's outputs are from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(student: Any, teacher: Any, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), in nats (Hinton et al. 2015).

    Logits are tensors whose last dimension is the one of the softmax; the mean is taken over all
    other dimensions. Of several outputs (tuples, dicts, transformers' ModelOutput) the mean over
    those with logits, which both have. The factor T^2 keeps gradients as large as those of the
    labels whatever T is. ValueError if shapes or names differ, or T is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    ours, theirs = logits(student), logits(teacher)
    if missing := sorted(ours.keys() - theirs.keys()):
        raise ValueError(f"the teacher has no output {missing[0]!r}, which the student has")
    losses = []
    for name, own in ours.items():
        if own.shape != theirs[name].shape:
            raise ValueError(
                f"the teacher's output has shape {_spelled(theirs[name])}, the student's"
                f" {_spelled(own)}: they must know the same classes or words"
            )
        log_own, log_their = (
            F.log_softmax(values.float() / temperature, -1) for values in (own, theirs[name])
        )
        # kl_div takes 0 * log 0 as 0, but not where both are -inf: masked places.
        log_own, log_their = (values.clamp(min=-1e4) for values in (log_own, log_their))
        each = F.kl_div(log_own, log_their, reduction="none", log_target=True).sum(-1)
        losses.append(each.mean())
    return temperature**2 * torch.stack(losses).mean()


def logits(outputs: Any) -> dict[str, Tensor]:
    """Return a network's outputs that are floating tensors of at least two dimensions, by name.

    ValueError if there is none.
    """
    if isinstance(outputs, Mapping):
        named = dict(outputs.items())
    elif isinstance(outputs, (tuple, list)):
        named = {str(i): value for i, value in enumerate(outputs)}
    else:
        named = {"output": outputs}
    found = {
        name: value
        for name, value in named.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    }
    if not found:
        raise ValueError("there are no logits to match: outputs have no floating tensor B x ...")
    return found


def _spelled(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
