"""The keys of the optimizer and its schedule."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from npas.utils.checks import Ranged, within


@dataclass(frozen=True)
class MuonConfig(Ranged, section="optim.muon."):
    """Settings of `optim.name=muon`.

    Muon trains the matrices of blocks with `optim.lr`, `optim.momentum` and `optim.nesterov`. AdamW
    trains the rest at these rates, with `beta1` and `optim.beta2`. `bank=templates` also trains
    banks with Muon, template by template. The momentum rises from `momentum_start` in the first
    `momentum_warmup_steps`.
    """

    bank: Literal["adam", "templates"] = "templates"
    bank_lr: Annotated[float, "(0, inf)"] = 0.003
    coefficient_lr: Annotated[float, "(0, inf)"] = 0.003
    embedding_lr: Annotated[float, "(0, inf)"] = 0.05
    head_lr: Annotated[float, "(0, inf)"] = 0.008
    vector_lr: Annotated[float, "(0, inf)"] = 0.04
    beta1: Annotated[float, "[0, 1)"] = 0.9
    momentum_start: Annotated[float, "[0, 1)"] = 0.85
    momentum_warmup_steps: Annotated[int, "[0, inf)"] = 500
    newton_schulz_steps: Annotated[int, "[1, 100]"] = 5


@dataclass(frozen=True)
class OptimConfig(Ranged, section="optim."):
    """The optimizer and its learning rate schedule.

    `schedule=multistep` multiplies the rate by `gamma` at each milestone (an epoch); linear and
    cosine decay it to `min_lr` at the end; wsd (warm-up, stable, decay) decays it linearly in the
    last `decay_fraction` of the training. `momentum` is also the first beta of Adam, AdamW and
    Adamax. `bank_lr` and `coefficient_lr` replace `lr` for banks and for coefficients and other
    sharing parameters, and follow the same schedule. `clip_norm` limits the norm of the gradient;
    0: no limit. Without `decay_norm_bias`, norms and biases have no weight decay. With `ema_decay`
    above 0, the exponential moving average of the weights is evaluated and exported.
    """

    name: Literal["sgd", "adam", "adamax", "adamw", "muon"] = "sgd"
    lr: Annotated[float, "(0, inf)"] = 0.1
    bank_lr: Annotated[float | None, "(0, inf)"] = None
    coefficient_lr: Annotated[float | None, "(0, inf)"] = None
    min_lr: float = 0.0
    momentum: Annotated[float, "[0, 1)"] = 0.9
    beta2: Annotated[float, "[0, 1)"] = 0.999
    nesterov: bool = True
    weight_decay: Annotated[float, "[0, inf)"] = 5e-4
    milestones: list[int] = field(default_factory=list)
    gamma: Annotated[float, "(0, inf)"] = 0.2
    schedule: Literal["multistep", "linear", "cosine", "wsd"] = "multistep"
    decay_fraction: Annotated[float, "(0, 1]"] = 0.1
    warmup_epochs: Annotated[int | float, "[0, inf)"] = 0
    clip_norm: Annotated[float, "[0, inf)"] = 0.0
    decay_norm_bias: bool = True
    ema_decay: Annotated[float, "[0, 1)"] = 0.0
    muon: MuonConfig = field(default_factory=MuonConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        within("optim.min_lr", self.min_lr, f"[0, {self.lr}]")
        for key in ("bank_lr", "coefficient_lr"):
            if self.name == "muon" and getattr(self, key) is not None:
                raise ValueError(f"optim.name=muon ignores optim.{key}: set optim.muon.{key}")
        if self.name in ("sgd", "muon") and self.nesterov and self.momentum == 0:
            raise ValueError(
                "optim.nesterov=true needs momentum: set optim.momentum above 0 or "
                "optim.nesterov=false"
            )
        if any(a >= b for a, b in zip([0, *self.milestones], self.milestones, strict=False)):
            raise ValueError(
                f"optim.milestones must be increasing epochs above 0, got {self.milestones}"
            )
