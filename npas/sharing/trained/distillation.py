"""The distillation loss between a student's and a teacher's logits."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from npas.utils.checks import within


def distillation_loss(student: Any, teacher: Any, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), in nats (Hinton et al. 2015).

    The softmax is over the last dimension, the mean over all others. Outputs may be a tensor, a
    tuple, a dict or a transformers' ModelOutput; the loss is the mean over the student's logits
    (see `logits`). The factor T^2 keeps the gradients' size independent of T.
    Raises ValueError if names or shapes differ, or if T is not finite and above 0.
    """
    within("temperature", temperature, "(0, inf)")
    ours, theirs = logits(student), logits(teacher)
    if missing := sorted(ours.keys() - theirs.keys()):
        raise ValueError(f"the teacher has no output {missing[0]!r}, which the student has")
    losses = []
    for name, own in ours.items():
        if own.shape != theirs[name].shape:
            raise ValueError(
                f"the teacher's output has shape {_spelled(theirs[name])}, the student's"
                f" {_spelled(own)}: both need the same classes or vocabulary"
            )
        log_own, log_their = (
            F.log_softmax(values.float() / temperature, -1) for values in (own, theirs[name])
        )
        # Logits masked with -inf on both sides would make kl_div return NaN.
        log_own, log_their = (values.clamp(min=-1e4) for values in (log_own, log_their))
        each = F.kl_div(log_own, log_their, reduction="none", log_target=True).sum(-1)
        losses.append(each.mean())
    return temperature**2 * torch.stack(losses).mean()


def tensors(values: Any, nested: bool = False) -> dict[str, Tensor]:
    """Return the tensors among a network's outputs or arguments, by name ("heads.main")."""
    if isinstance(values, Mapping):
        named = dict(values.items())
    elif isinstance(values, (tuple, list)):
        named = {str(i): value for i, value in enumerate(values)}
    else:
        named = {"output": values}
    found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    for name, value in named.items() if nested else ():
        if isinstance(value, (Mapping, tuple, list)):
            found |= {f"{name}.{key}": own for key, own in tensors(value, nested).items()}
    return found


def logits(outputs: Any) -> dict[str, Tensor]:
    """Return the outputs that are floating-point tensors of two or more dimensions, by name.

    Among outputs with names of which some hold "logits", as transformers' do, these alone: T5's
    `encoder_last_hidden_state` and CLIP's `text_embeds` are no logits. Raises ValueError if there
    are none.
    """
    named = tensors(outputs)
    named = {name: own for name, own in named.items() if "logits" in name} or named
    found = {n: own for n, own in named.items() if own.is_floating_point() and own.dim() > 1}
    if not found:
        raise ValueError("there are no logits to match: return a floating-point tensor B x ...")
    return found


def _spelled(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
