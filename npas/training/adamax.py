"""Adamax (Kingma & Ba 2015, arXiv 1412.6980, section 7.1) that can leave a step out on the device.

torch's own has no fused kernel, so that whether a step went wrong would have to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

EPS = 1e-8


class Adamax(Optimizer):
    """Divide a moving mean of the gradient by the largest one of late, each decaying by its beta.

    `found_inf`, where the loop has set it, is 1.0 for a step that is to change nothing. Weight
    decay is added to the gradient, as in the paper's time and in torch's Adamax.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "count": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_inf": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        assert closure is None
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
