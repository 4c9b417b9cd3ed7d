"""Make the optimizers, SGD with Nesterov momentum, Adam's kin and Muon, and schedule the rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from npas.config import Config, OptimConfig
from npas.sharing import param_groups
from npas.training.muon import build_muon

EPS = 1e-8  # of Adamax


class Adamax(optim.Optimizer):
    """Adamax (Kingma & Ba 2015, arXiv 1412.6980, section 7.1) that can skip a step on the device.

    Not torch's own, which has no fused kernel: whether a step went wrong would have to be waited
    for. `found_inf`, where the loop has set it, is 1.0 for a step that is to change nothing. Weight
    decay is added to the gradient, as in the paper's time and in torch's Adamax.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            if found:
                self._go(found, group)

    def _go(self, parameters: list[Any], group: dict[str, Any]) -> None:
        """Move a group's parameters: everything is multiplied by 0 where the step is left out."""
        beta1, beta2 = group["betas"]
        counts, means, largest = (
            [self.state[p][key] for p in parameters] for key in ("count", "exp_avg", "exp_inf")
        )
        goes = 1 - self.found_inf if self.found_inf is not None else torch.ones_like(counts[0])
        gradients = [torch.where(goes > 0, p.grad, 0) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(counts, goes)
        torch._foreach_mul_(means, 1 - goes * (1 - beta1))
        torch._foreach_add_(means, torch._foreach_mul(gradients, goes * (1 - beta1)))
        torch._foreach_mul_(largest, 1 - goes * (1 - beta2))
        torch._foreach_abs_(gradients)
        torch._foreach_add_(gradients, EPS)
        torch._foreach_mul_(gradients, goes)
        torch._foreach_maximum_(largest, gradients)
        # Before the first step that counts all is 0; what is divided by must not be.
        rates = [group["lr"] * goes / (1 - beta1**count).clamp_min(EPS) for count in counts]
        steps = torch._foreach_div(means, torch._foreach_add(largest, 1e-38))
        torch._foreach_mul_(steps, rates)
        torch._foreach_sub_(parameters, steps)


# AdamW takes weight decay off the weights, the older two add it to the gradient.
ADAMS = {"adam": optim.Adam, "adamw": optim.AdamW}


def build_optimizer(model: nn.Module, config: OptimConfig) -> optim.Optimizer:
    """Make the optimizer of the trainable parameters; coefficients and the like do not decay.

    Norms and biases decay, as in the papers, unless `decay_norm_bias` is false. The fused kernels
    can skip a step on the device (see `loop.py`), which needs all their buffers from the start,
    as zeros.
    """
    if config.name == "muon":
        return build_muon(model, config)
    groups = param_groups(
        model,
        config.weight_decay,
        lr=config.lr,
        bank_lr=config.bank_lr,
        coefficient_lr=config.coefficient_lr,
        decay_norm_bias=config.decay_norm_bias,
    )
    for group in groups:
        group["factor"] = group["lr"] / config.lr  # of the schedule's rate
    trained = [p for group in groups for p in group["params"]]
    optimizer: optim.Optimizer
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.momentum, config.beta2)}
    buffers: tuple[str, ...] = ()
    if config.name == "sgd":
        optimizer = optim.SGD(
            groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        buffers = ("momentum_buffer",) if config.momentum else ()
    elif config.name == "adamax":
        optimizer = Adamax(groups, settings)
        buffers = ("exp_avg", "exp_inf")
    else:
        optimizer = ADAMS[config.name](groups, **settings, fused=True)
        buffers = ("exp_avg", "exp_avg_sq")
    for parameter in trained if buffers else ():
        state = optimizer.state[parameter]
        if config.name != "sgd":
            count = "count" if config.name == "adamax" else "step"
            state[count] = torch.zeros((), device=parameter.device)
        for name in buffers:
            state[name] = torch.zeros_like(parameter)
    return optimizer


@torch.no_grad()
def clip(optimizer: optim.Optimizer, most: float, norms_N: Tensor) -> None:
    """Scale the gradient down to the norm `most` if it is longer; 0: never. Waits for nothing.

    `norms_N` are the parameters' own, N of them. A norm that is not finite leaves all as it is.
    """
    if most:
        norm = torch.linalg.vector_norm(norms_N)
        factor = torch.where(norm > most, most / norm, torch.ones_like(norm)).nan_to_num(1.0)
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step: a linear warm-up, and what the schedule makes of it.

    multistep: times `gamma` from each milestone on. linear, cosine: from the end of the warm-up
    down to `min_lr` at the schedule's end; wsd: linearly, in the last `decay_fraction` of it.
    """
    settings = config.optim
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup and settings.schedule != "multistep":
        return settings.lr * min(1.0, (step + 1) / warmup)
    if settings.schedule == "multistep":
        passed = sum(step >= epoch * steps_per_epoch for epoch in settings.milestones)
        rate = settings.lr * settings.gamma**passed
        return rate * min(1.0, (step + 1) / warmup) if warmup else rate
    steps = config.epochs * steps_per_epoch
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if settings.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    elif settings.schedule == "linear":
        left = 1 - done
    else:
        left = min(1.0, (1 - step / steps) / settings.decay_fraction)
    return settings.min_lr + (settings.lr - settings.min_lr) * left
