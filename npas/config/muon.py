"""The keys of Muon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from npas.utils.checks import above, at_least, at_most, below


@dataclass(frozen=True)
class MuonConfig:
    """What `optim.name=muon` has beside `lr`, `momentum` and `nesterov`, which are Muon's own.

    AdamW trains all that is no matrix of a block, at these rates, with `beta1` and `optim.beta2`;
    `bank=templates` orthogonalizes banks, too, template by template. The momentum rises from
    `momentum_start` in the first `momentum_warmup_steps`.
    """

    bank: Literal["adam", "templates"] = "templates"
    bank_lr: float = 0.003
    coefficient_lr: float = 0.003
    embedding_lr: float = 0.05
    head_lr: float = 0.008
    vector_lr: float = 0.04
    beta1: float = 0.9
    momentum_start: float = 0.85
    momentum_warmup_steps: int = 500
    newton_schulz_steps: int = 5

    def __post_init__(self) -> None:
        for kind in ("bank", "coefficient", "embedding", "head", "vector"):
            above(f"optim.muon.{kind}_lr", getattr(self, f"{kind}_lr"), 0)
        for key in ("beta1", "momentum_start"):
            at_least(f"optim.muon.{key}", getattr(self, key), 0)
            below(f"optim.muon.{key}", getattr(self, key), 1)
        at_least("optim.muon.momentum_warmup_steps", self.momentum_warmup_steps, 0)
        at_least("optim.muon.newton_schulz_steps", self.newton_schulz_steps, 1)
        at_most("optim.muon.newton_schulz_steps", self.newton_schulz_steps, 100)
