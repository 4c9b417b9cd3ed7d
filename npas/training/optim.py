"""Make the papers' optimizer, SGD with Nesterov momentum, or AdamW, and schedule its rate."""

from typing import Any

import torch
from torch import nn, optim

from npas.config import OptimConfig
from npas.sharing import no_decay_names


def build_optimizer(model: nn.Module, config: OptimConfig) -> optim.Optimizer:
    """Make the optimizer of the trainable parameters; coefficients and the like do not decay.

    Norms and biases decay, as in the papers. The fused kernels can leave a step out on the device
    (see `loop.py`), for which every buffer of theirs must be there, as zeros, from the start.
    """
    exempt = no_decay_names(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name not in exempt]},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: optim.Optimizer
    if config.name == "adamw":
        optimizer = optim.AdamW(
            groups,
            lr=config.lr,
            betas=(config.momentum, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        for _, parameter in named:
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
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        for _, parameter in named:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step: a linear warm-up, then times `gamma` from each milestone on."""
    warmup = config.warmup_epochs * steps_per_epoch
    rate = config.lr * config.gamma ** sum(
        step >= epoch * steps_per_epoch for epoch in config.milestones
    )
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate
