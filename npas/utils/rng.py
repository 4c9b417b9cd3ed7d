"""Draw random numbers from counters: a number depends on a key and a position, on no state.

SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started at a key and read at any position: the key is
a hash of the root seed and a purpose, the position a sample's index. So augmentation is the same
whatever batch, rank, worker or device a sample falls to, resuming needs no generator's state, and a
new purpose shifts no other's numbers. 64-bit products wrap around on every device that torch has.
"""

import hashlib

import torch
from torch import Tensor


def derive_key(seed: int, *purpose: str | int) -> int:
    """Hash the root seed and the words of a purpose to a key: a signed 64-bit integer."""
    text = "/".join(str(word) for word in (seed, *purpose))
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"npas").digest()
    return int.from_bytes(digest, "little", signed=True)


def bits(key: int, positions: Tensor) -> Tensor:
    """Return 64 random bits, as int64, for each of the int64 `positions`."""
    z = (positions + 1) * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def integers(key: int, positions: Tensor, stop: int | Tensor) -> Tensor:
    """Return an integer of 0 .. stop-1, int64, for each position; `stop` up to 2**31.

    A tensor of stops has one for each position; where it is 0, so is the answer.
    """
    return _shift_right(bits(key, positions), 32) * stop >> 32


def permutation(key: int, length: int, device: torch.device) -> Tensor:
    """Return the numbers 0 .. length-1 in random order: sorted by the bits at their positions."""
    return bits(key, torch.arange(length, device=device)).argsort(stable=True)


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Shift in zeros, where int64's own shift would copy the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)
