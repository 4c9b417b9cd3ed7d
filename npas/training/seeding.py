"""Seed torch from the root seed, and set torch's global switches that affect results."""

import logging
import os
from typing import Any

import torch

from npas.utils.rng import derive_key

log = logging.getLogger(__name__)


def seed_torch(seed: int, purpose: str, rank: int = 0) -> None:
    """Seed torch's generators for a purpose ("init", "dropout") and a rank."""
    keys = (purpose, rank) if rank else (purpose,)
    torch.manual_seed(derive_key(seed, *keys) % 2**63)


def set_determinism(deterministic: bool) -> None:
    """Make runs bit-reproducible on this machine, or let cuDNN search for the fastest kernels.

    In either case the seed fixes initial weights, order and augmentation.
    """
    if deterministic:
        # cuBLAS reads it when it creates its first handle.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic


def set_tf32(tf32: bool, device: torch.device) -> None:
    """Set whether GPUs use TF32 in fp32 convolutions, RNNs and matrix products; warn without a GPU.

    By default torch uses it in convolutions and RNNs only.
    """
    if device.type != "cuda":
        if tf32:
            log.warning("trainer.tf32 ignored: it is for GPUs")
        return
    # Set both of torch's interfaces, the older one first: if they disagree, reading the older one,
    # as torch itself does, raises RuntimeError.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    cudnn: Any = torch.backends.cudnn
    for switch in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
        switch.fp32_precision = "tf32" if tf32 else "ieee"
