"""Seed each purpose from the one root seed, and set torch's global switches that change numbers."""

import logging
import os
from typing import Any

import torch

from npas.utils.rng import derive_key

log = logging.getLogger(__name__)


def seed_torch(seed: int, purpose: str, rank: int = 0) -> None:
    """Seed torch's generators for a purpose ("init", "dropout"); others keep their numbers.

    Ranks that draw numbers of their own, as for dropout, are told apart.
    """
    words = (purpose, rank) if rank else (purpose,)
    torch.manual_seed(derive_key(seed, *words) % 2**63)


def set_determinism(deterministic: bool) -> None:
    """Make equal runs equal to the bit on this machine, or let cuDNN look for the fastest kernels.

    Without it the seed still fixes initial weights, order and augmentation.
    """
    if deterministic:
        # Read by cuBLAS when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic


def set_tf32(tf32: bool, device: torch.device) -> None:
    """Set whether GPUs round factors of fp32 convolutions, RNNs and products to TF32.

    torch's own default is to do so in convolutions and RNNs alone. Warns where there is no GPU.
    """
    if device.type != "cuda":
        if tf32:
            log.warning("trainer.tf32 ignored: it is for GPUs")
        return
    # Both of torch's interfaces, the older first: where they disagree, reading the older one, as
    # torch itself does, raises RuntimeError.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    cudnn: Any = torch.backends.cudnn
    for switch in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
        switch.fp32_precision = "tf32" if tf32 else "ieee"
