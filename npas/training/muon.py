"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized, AdamW for all else.

torch.optim.Muon is the same for a matrix, but cannot leave a step out on the device, warm its
momentum up or take anything but matrices: neither a convolution nor a bank. A bank is a vector to
torch, but each of its templates is a layer's matrix. With `muon.bank=templates` the parts of the
bank's momentum that lie in templates are orthogonalized one by one; where several overlap, their
mean counts. With `muon.bank=adam` AdamW trains banks.

Shapes: S matrices of R rows and C columns, a bank of P values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from npas.config import OptimConfig
from npas.sharing import param_groups
from npas.sharing.blocks import block_of
from npas.sharing.layers import PREFIX, matrix_form
from npas.sharing.templates import Templates, bank_templates

A, B, C = 3.4445, -4.7750, 2.0315
"""The quintic of Jordan et al., whose slope at 0 is large: singular values come to 0.7 to 1.2."""
EPS = 1e-7
AT_ONCE = 1 << 24  # values that are orthogonalized together
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def orthogonalize(matrices_SRC: Tensor, steps: int) -> Tensor:
    """Return each matrix's nearest orthogonal one, about, by Newton-Schulz steps.

    In bf16 on a GPU, as published; a CPU has fp32 only as fast.
    """
    turned = matrices_SRC.shape[1] > matrices_SRC.shape[2]
    x = matrices_SRC.mT if turned else matrices_SRC
    x = x.to(torch.bfloat16) if x.is_cuda else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if turned else x).to(matrices_SRC.dtype)


def gain(rows: int, columns: int) -> float:
    """Return what an orthogonal matrix is multiplied by: sqrt(max(1, rows / columns)).

    A row comes out with norm one; its values are to be those of a square matrix of its size.
    """
    return math.sqrt(max(1, rows / columns)) if rows > 1 else columns**0.25


class Muon(optim.Optimizer):
    """Train the groups of `kind` muon by orthogonalized momentum, the others by AdamW.

    `templates` says what matrices a bank among the former is read as. `found_inf`, where the loop
    has set it, is 1.0 for a step that is to change nothing.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        config: OptimConfig,
        templates: Mapping[nn.Parameter, Sequence[Templates]],
    ) -> None:
        self.config, self.templates = config, templates
        self.readers = {bank: _count_readers(bank, own) for bank, own in templates.items()}
        betas = config.muon.beta1, config.beta2
        adams = [group for group in groups if group["kind"] != "muon"]
        self.adamw = optim.AdamW(adams, betas=betas, fused=True) if adams else None
        super().__init__(groups, {"lr": config.lr})
        for group in groups:
            for p in group["params"]:
                state = {"step": torch.zeros((), device=p.device)}
                kept = ("momentum",) if group["kind"] == "muon" else ("exp_avg", "exp_avg_sq")
                self.state[p] = state | {name: torch.zeros_like(p) for name in kept}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        assert closure is None
        adams = []
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            if group["kind"] != "muon":
                adams.append(group)
            elif found:
                self._orthogonal_step(found, group)
        if self.adamw is not None:
            self.adamw.param_groups, self.adamw.state = adams, self.state
            self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self.adamw.step()

    def _orthogonal_step(self, parameters: list[Any], group: dict[str, Any]) -> None:
        """Move a group's parameters: everything is multiplied by 0 where the step is left out."""
        counts, kept = ([self.state[p][key] for p in parameters] for key in ("step", "momentum"))
        goes = 1 - self.found_inf if self.found_inf is not None else torch.ones_like(counts[0])
        settings = self.config.muon
        warm = (counts[0] / max(1, settings.momentum_warmup_steps)).clamp(max=1)
        if not settings.momentum_warmup_steps:
            warm = torch.ones_like(warm)
        beta = settings.momentum_start + (self.config.momentum - settings.momentum_start) * warm
        gradients = [torch.where(goes > 0, p.grad, 0) for p in parameters]
        torch._foreach_add_(counts, goes)
        torch._foreach_mul_(kept, 1 - goes * (1 - beta))
        torch._foreach_add_(kept, torch._foreach_mul(gradients, goes * (1 - beta)))
        directions: Sequence[Tensor] = kept
        if self.config.nesterov:
            directions = torch._foreach_mul(kept, beta)
            torch._foreach_add_(directions, torch._foreach_mul(gradients, 1 - beta))
        rate = group["lr"] * goes
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        updates = torch._foreach_mul(self._updates(parameters, directions), rate)
        torch._foreach_sub_(parameters, updates)

    def _updates(self, parameters: Sequence[Any], directions: Sequence[Tensor]) -> list[Tensor]:
        """Orthogonalize every direction, those of one shape together."""
        found: dict[int, Tensor] = {}
        alike: dict[tuple[int, int], list[int]] = {}
        for i, (parameter, direction) in enumerate(zip(parameters, directions, strict=True)):
            if parameter in self.templates:
                found[i] = self._bank_update(parameter, direction)
            else:
                alike.setdefault(matrix_form(tuple(parameter.shape)), []).append(i)
        for shape, places in alike.items():
            updates = self._orthogonal([directions[i].reshape(shape) for i in places])
            found |= {i: u.view_as(directions[i]) for i, u in zip(places, updates, strict=True)}
        return [found[i] for i in range(len(found))]

    def _bank_update(self, bank_P: nn.Parameter, direction_P: Tensor) -> Tensor:
        """Orthogonalize each template as its layers' matrix; the mean counts where they overlap."""
        update_P = torch.zeros_like(direction_P)
        for own in self.templates[bank_P]:
            size = own.rows * own.columns
            parts = [direction_P[s : s + size].view(own.rows, own.columns) for s in own.starts]
            for start, update in zip(own.starts, self._orthogonal(parts), strict=True):
                update_P[start : start + size] += update.reshape(-1)
        return update_P / self.readers[bank_P]

    def _orthogonal(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        rows, columns = matrices[0].shape
        count = max(1, AT_ONCE // matrices[0].numel())
        updates: list[Tensor] = []
        for start in range(0, len(matrices), count):
            part_SRC = torch.stack(list(matrices[start : start + count]))
            updates += orthogonalize(part_SRC, self.config.muon.newton_schulz_steps)
        return [update * gain(rows, columns) for update in updates]


def _count_readers(bank_P: Tensor, templates: Sequence[Templates]) -> Tensor:
    """Count the templates that each value of a bank lies in; one where there are none."""
    readers_P = torch.zeros_like(bank_P)
    for own in templates:
        for start in own.starts:
            readers_P[start : start + own.rows * own.columns] += 1
    return readers_P.clamp_min(1)


def build_muon(model: nn.Module, config: OptimConfig) -> Muon:
    """Make Muon for the matrices of numbered blocks, AdamW for all else, each kind at its rate.

    Kinds are banks (and corrections), coefficients, embeddings (with heads that are tied to them),
    heads, which are matrices outside of blocks, and vectors. A group's `factor` is its rate over
    `config.lr`, which the schedule moves.
    """
    settings = config.muon
    names = {id(p): name for name, p in model.named_parameters()}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, EMBEDDINGS)}
    templates = bank_templates(model) if settings.bank == "templates" else {}
    rates = {
        "muon": config.lr,
        "bank": settings.bank_lr,
        "coefficients": settings.coefficient_lr,
        "embeddings": settings.embedding_lr,
        "heads": settings.head_lr,
        "vectors": settings.vector_lr,
    }

    def kind(parameter: nn.Parameter) -> str:
        path, _, name = names[id(parameter)].rpartition(".")
        if name.startswith(PREFIX):
            is_large = name.startswith(tuple(f"{PREFIX}{k}_" for k in ("bank", "left", "right")))
            small = "bank" if is_large else "coefficients"
            return "muon" if parameter in templates else small
        if id(parameter) in embeddings:
            return "embeddings"
        if sum(n > 1 for n in parameter.shape) < 2 or "weight" not in name:
            return "vectors"
        return "muon" if block_of(f"{path}.{name}") else "heads"

    groups = []
    for group in param_groups(model, config.weight_decay, decay_norm_bias=config.decay_norm_bias):
        alike: dict[str, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            alike.setdefault(kind(parameter), []).append(parameter)
        for name, own in alike.items():
            rate = {"lr": rates[name], "factor": rates[name] / config.lr}
            groups.append({**group, **rate, "params": own, "kind": name})
    return Muon(groups, config, templates)
