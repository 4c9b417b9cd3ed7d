"""Seed each purpose from the one root seed, and ask torch for equal bits where that is wanted."""

import os

import torch

from npas.tasks._random import derive_key


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
