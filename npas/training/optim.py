"""Make the optimizers, SGD with Nesterov momentum, Adam's kin and Muon, and schedule the rate."""

import math
from typing import Any

import torch
from torch import Tensor, nn, optim

from npas.config import Config, OptimConfig
from npas.sharing import param_groups
from npas.training.adamax import Adamax
from npas.training.muon import build_muon

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
    groups = param_groups(model, config.weight_decay, decay_norm_bias=config.decay_norm_bias)
    trained = [p for group in groups for p in group["params"]]
    optimizer: optim.Optimizer
    if config.name != "sgd":
        settings: dict[str, Any] = {
            "lr": config.lr,
            "betas": (config.momentum, config.beta2),
        }
        if config.name == "adamax":
            return Adamax(groups, **settings)
        optimizer = ADAMS[config.name](groups, **settings, fused=True)
        for parameter in trained:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer
    optimizer = optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
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

    By steps: times `gamma` from each milestone on. Linear and cosine: from the end of the warm-up
    down to 0 where the schedule ends.
    """
    settings = config.optim
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup and settings.schedule != "multistep":
        return settings.lr * min(1.0, (step + 1) / warmup)
    if settings.schedule == "multistep":
        passed = sum(step >= epoch * steps_per_epoch for epoch in settings.milestones)
        rate = settings.lr * settings.gamma**passed
        return rate * min(1.0, (step + 1) / warmup) if warmup else rate
    done = min(1.0, (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup))
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.lr * left
