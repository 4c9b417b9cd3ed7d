"""Counter-based random numbers: a number depends on a key and a position, not on a state.

SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), read at any position: the key is a hash of the root
seed and a purpose, the position a sample's index. Augmentation thus does not depend on the batch,
rank, worker or device of a sample, resuming needs no generator state, and a new purpose does not
change the numbers of others. 64-bit products wrap around on all of torch's devices.
"""

import hashlib

import torch
from torch import Tensor


def derive_key(seed: int, *purpose: str | int) -> int:
    """Hash the root seed and a purpose to a key: a signed 64-bit integer."""
    text = "/".join(map(str, (seed, *purpose)))
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"npas").digest()
    return int.from_bytes(digest, "little", signed=True)


def bits(key: int, positions: Tensor) -> Tensor:
    """Return 64 random bits, as int64, for each of the int64 `positions`."""
    z = (positions + 1) * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def integers(key: int, positions: Tensor, stop: int | Tensor) -> Tensor:
    """Return an int64 in 0 .. stop-1 for each position; `stop` is at most 2**31.

    `stop` may be a tensor with one value per position; where it is 0, the result is 0.
    """
    return _shift_right(bits(key, positions), 32) * stop >> 32


def permutation(key: int, length: int, device: torch.device) -> Tensor:
    """Return 0 .. length-1 in random order, sorted by the bits at their positions."""
    return bits(key, torch.arange(length, device=device)).argsort(stable=True)


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; int64's own shift would copy the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)
