"""Optimizers (SGD, Adam, AdamW, Adamax, Muon), gradient clipping and learning rate schedules."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from npas.config import Config, OptimConfig
from npas.sharing import api, is_shared, param_groups
from npas.sharing.generators.codebook import CODEBOOK
from npas.training.muon import build_muon

log = logging.getLogger(__name__)

EPS = 1e-8  # of Adamax


class Adamax(optim.Optimizer):
    """Adamax (Kingma & Ba 2015, arXiv 1412.6980, section 7.1) that can skip a step on the device.

    torch's has no fused kernel: the loop would have to wait for the device before each step. The
    loop sets `found_inf` to 1.0 to skip one. Weight decay is added to the gradient, as in torch's.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            if found:
                self._update(found, group)

    def _update(self, parameters: list[Any], group: dict[str, Any]) -> None:
        """Update a group's parameters; a skipped step multiplies every change by 0."""
        beta1, beta2 = group["betas"]
        counts, means, largest = (
            [self.state[p][key] for p in parameters] for key in ("count", "exp_avg", "exp_inf")
        )
        active = 1 - self.found_inf if self.found_inf is not None else torch.ones_like(counts[0])
        gradients = [torch.where(active > 0, p.grad, 0) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(counts, active)
        torch._foreach_mul_(means, 1 - active * (1 - beta1))
        torch._foreach_add_(means, torch._foreach_mul(gradients, active * (1 - beta1)))
        torch._foreach_mul_(largest, 1 - active * (1 - beta2))
        torch._foreach_abs_(gradients)
        torch._foreach_add_(gradients, EPS)
        torch._foreach_mul_(gradients, active)
        torch._foreach_maximum_(largest, gradients)
        # All of these are 0 until a step counts: keep the divisors above 0.
        rates = [group["lr"] * active / (1 - beta1**count).clamp_min(EPS) for count in counts]
        steps = torch._foreach_div(means, torch._foreach_add(largest, 1e-38))
        torch._foreach_mul_(steps, rates)
        torch._foreach_sub_(parameters, steps)


def advise_on_codebooks(model: nn.Module, config: OptimConfig) -> None:
    """Warn of SGD's long steps in a codebook that trains at the rate of all else."""
    warns = config.name == "sgd" and config.bank_lr is None and is_shared(model)
    for group in api.allocation(model).groups if warns else ():
        size = sum(layer.size for layer in group.layers if layer.upsampler == CODEBOOK)
        if reads := size // max(1, group.bank):
            log.warning(
                "each value of %s is read by about %d weights, whose gradients SGD adds up: set"
                " optim.bank_lr to about %.2g",
                *(group.name, reads, config.lr / reads),
            )


ADAMS = {"adam": optim.Adam, "adamw": optim.AdamW}


def build_optimizer(model: nn.Module, config: OptimConfig) -> optim.Optimizer:
    """Build the optimizer of the trainable parameters.

    Coefficients do not decay; norms and biases do, as in the papers, unless `decay_norm_bias` is
    false. The fused kernels can skip a step on the device (see `loop.py`), even the first, so their
    buffers are created here, as zeros.
    """
    if config.name == "muon":
        return build_muon(model, config)
    groups = param_groups(
        model, config.weight_decay, lr=config.lr, bank_lr=config.bank_lr,
        coefficient_lr=config.coefficient_lr, decay_norm_bias=config.decay_norm_bias,
    )  # fmt: skip
    for group in groups:
        group["factor"] = group["lr"] / config.lr  # multiplies the schedule's rate
    optimizer: optim.Optimizer
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.momentum, config.beta2)}
    if config.name == "sgd":
        optimizer = optim.SGD(
            groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        counter, buffers = None, ["momentum_buffer"] if config.momentum else []
    elif config.name == "adamax":
        optimizer = Adamax(groups, settings)
        counter, buffers = "count", ["exp_avg", "exp_inf"]
    else:
        optimizer = ADAMS[config.name](groups, **settings, fused=True)
        counter, buffers = "step", ["exp_avg", "exp_avg_sq"]
    for parameter in (p for group in groups for p in group["params"]):
        if counter is not None:
            optimizer.state[parameter][counter] = torch.zeros((), device=parameter.device)
        for name in buffers:
            optimizer.state[parameter][name] = torch.zeros_like(parameter)
    return optimizer


@torch.no_grad()
def clip(optimizer: optim.Optimizer, most: float, norms_N: Tensor) -> None:
    """Clip the gradient to norm `most` without waiting for the device; 0 means no clipping.

    `norms_N` are the gradients' norms, one per parameter. A norm that is not finite clips nothing.
    """
    if most:
        norm = torch.linalg.vector_norm(norms_N)
        factor = torch.where(norm > most, most / norm, torch.ones_like(norm)).nan_to_num(1.0)
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return a step's learning rate: a linear warm-up, then the schedule.

    multistep multiplies by `gamma` at each milestone. linear and cosine decay from the end of the
    warm-up to `min_lr` at the end. wsd decays linearly in the last `decay_fraction` of the steps.
    """
    settings = config.optim
    warmup = settings.warmup_epochs * steps_per_epoch
    warmed_up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if settings.schedule == "multistep":
        passed = sum(step >= epoch * steps_per_epoch for epoch in settings.milestones)
        return settings.lr * settings.gamma**passed * warmed_up
    if step < warmup:
        return settings.lr * warmed_up
    steps = config.epochs * steps_per_epoch
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if settings.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    elif settings.schedule == "linear":
        left = 1 - done
    else:
        left = min(1.0, (1 - step / steps) / settings.decay_fraction)
    return settings.min_lr + (settings.lr - settings.min_lr) * left
