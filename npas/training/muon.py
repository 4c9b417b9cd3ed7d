"""Muon (Jordan et al. 2024): orthogonalized momentum for matrices, AdamW for all else.

torch.optim.Muon has no step that can be skipped on the device and no momentum warm-up, and takes
matrices only, not convolutions or banks. A bank is a vector, but each template in it is a layer's
matrix: with `muon.bank=templates`, the bank's momentum is orthogonalized template by template, and
averaged where templates overlap. With `muon.bank=adam` AdamW trains banks.

Shapes: S matrices of R rows and C columns, a bank of P values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from npas.config import OptimConfig
from npas.sharing import param_groups
from npas.sharing.blocks import block_of
from npas.sharing.layers import PREFIX, matrix_form
from npas.sharing.layout.templates import Templates, bank_templates

# The quintic of Jordan et al., with a large slope at 0: singular values become 0.7 to 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7
AT_ONCE = 1 << 24  # values orthogonalized together
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def orthogonalize(matrices_SRC: Tensor, steps: int) -> Tensor:
    """Approximate each matrix's nearest orthogonal matrix by Newton-Schulz steps.

    Computes in bf16 on GPUs, as published, and in fp32 on CPUs, where bf16 is not faster.
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
    """Return the factor of an orthogonalized update: sqrt(max(1, rows / columns)).

    A single row has norm 1; its factor gives it the values of a square matrix of its size.
    """
    return math.sqrt(max(1, rows / columns)) if rows > 1 else columns**0.25


class Muon(optim.Optimizer):
    """Train parameter groups of `kind` "muon" by orthogonalized momentum, the others by AdamW.

    `templates` gives the matrices in each bank. `found_inf`, on the device, is 1.0 to skip a step.
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
        """Update a group's parameters; a skipped step multiplies every change by 0."""
        counts, kept = ([self.state[p][key] for p in parameters] for key in ("step", "momentum"))
        active = 1 - self.found_inf if self.found_inf is not None else torch.ones_like(counts[0])
        settings = self.config.muon
        warm = (counts[0] / max(1, settings.momentum_warmup_steps)).clamp(max=1)
        if not settings.momentum_warmup_steps:
            warm = torch.ones_like(warm)
        beta = settings.momentum_start + (self.config.momentum - settings.momentum_start) * warm
        gradients = [torch.where(active > 0, p.grad, 0) for p in parameters]
        torch._foreach_add_(counts, active)
        torch._foreach_mul_(kept, 1 - active * (1 - beta))
        torch._foreach_add_(kept, torch._foreach_mul(gradients, active * (1 - beta)))
        directions: Sequence[Tensor] = kept
        if self.config.nesterov:
            directions = torch._foreach_mul(kept, beta)
            torch._foreach_add_(directions, torch._foreach_mul(gradients, 1 - beta))
        rate = group["lr"] * active
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        updates = torch._foreach_mul(self._updates(parameters, directions), rate)
        torch._foreach_sub_(parameters, updates)

    def _updates(self, parameters: Sequence[Any], directions: Sequence[Tensor]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, (parameter, direction) in enumerate(zip(parameters, directions, strict=True)):
            if parameter in self.templates:
                found[i] = self._bank_update(parameter, direction)
            else:
                by_shape.setdefault(matrix_form(tuple(parameter.shape)), []).append(i)
        for shape, indices in by_shape.items():
            updates = self._orthogonal([directions[i].reshape(shape) for i in indices])
            found |= {i: u.view_as(directions[i]) for i, u in zip(indices, updates, strict=True)}
        return [found[i] for i in range(len(found))]

    def _bank_update(self, bank_P: nn.Parameter, direction_P: Tensor) -> Tensor:
        """Orthogonalize each template as its layer's matrix; average where templates overlap."""
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
    """Count the templates over each value of a bank, at least 1."""
    readers_P = torch.zeros_like(bank_P)
    for own in templates:
        for start in own.starts:
            readers_P[start : start + own.rows * own.columns] += 1
    return readers_P.clamp_min(1)


def build_muon(model: nn.Module, config: OptimConfig) -> Muon:
    """Build Muon for matrices in numbered blocks, with AdamW for all else, each kind at its rate.

    Kinds are banks (and corrections), coefficients, embeddings (and heads tied to them), heads
    (matrices outside blocks) and vectors. A group's `factor` is its rate divided by `config.lr`.
    """
    settings = config.muon
    names = {id(p): name for name, p in model.named_parameters()}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, EMBEDDINGS)}
    templates = bank_templates(model) if settings.bank == "templates" else {}

    def kind(parameter: nn.Parameter) -> str:
        path, _, name = names[id(parameter)].rpartition(".")
        if name.startswith(PREFIX):
            if parameter in templates:
                return "muon"
            is_bank = name.startswith(tuple(f"{PREFIX}{k}_" for k in ("bank", "left", "right")))
            return "bank" if is_bank else "coefficient"
        if id(parameter) in embeddings:
            return "embedding"
        if sum(n > 1 for n in parameter.shape) < 2 or "weight" not in name:
            return "vector"
        return "muon" if block_of(f"{path}.{name}") else "head"

    groups = []
    for group in param_groups(model, config.weight_decay, decay_norm_bias=config.decay_norm_bias):
        by_kind: dict[str, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_kind.setdefault(kind(parameter), []).append(parameter)
        for name, own in by_kind.items():
            rate = config.lr if name == "muon" else getattr(settings, f"{name}_lr")
            how = {"lr": rate, "factor": rate / config.lr, "kind": name}
            groups.append({**group, **how, "params": own})
    return Muon(groups, config, templates)
