"""Turn tensors into the bytes of an artifact and back.

A kind says how: `q8` and `q6` are integers with one fp16 scale a row, all others are the values
themselves in a type of that name. R rows of N values.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = {"q8": 127, "q6": 31}
"""The largest integer of a quantized kind; the smallest is its negative."""
PLAIN = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
    )
}
CLIPPED = 0.9999984
"""The quantile of a row's absolute values at which the contest's baseline clips."""
SMALLEST_STEP = 1 / 127
"""The contest's baseline takes no smaller scale than this."""


def count_bytes(kind: str, size: int, row: int) -> int:
    """Return the bytes that a tensor of `size` values takes, its scales among them."""
    if kind not in LEVELS:
        return size * PLAIN[kind].itemsize
    return (size if kind == "q8" else 3 * -(-size // 4)) + 2 * -(-size // row)


def encode(tensor: Tensor, kind: str, row: int, clips: bool = False) -> bytes:
    """Return a tensor's bytes; rows of `row` values, of which the last may be shorter.

    ValueError for values that the kind cannot hold.
    """
    flat = tensor.detach().reshape(-1).cpu()
    if flat.is_floating_point() and not bool(flat.isfinite().all()):
        raise ValueError("it holds values that are not finite")
    if kind in LEVELS:
        codes, scales_R = quantize(flat.float(), row, LEVELS[kind], clips)
        return _bytes(_pack(codes) if kind == "q6" else codes) + _bytes(scales_R)
    plain = flat.to(PLAIN[kind])
    if plain.is_floating_point() and not bool(plain.isfinite().all()):
        raise ValueError(f"it holds values that {kind} cannot")
    return _bytes(plain)


def decode(data: bytes, kind: str, size: int, row: int) -> Tensor:
    """Return the flat tensor that `encode` made the bytes of; fp32 where it was quantized."""
    if kind not in LEVELS:
        return _tensor(data, PLAIN[kind])
    rows = -(-size // row)
    scales_R = _tensor(data[len(data) - 2 * rows :], torch.float16)
    data = data[: len(data) - 2 * rows]
    codes = (
        _unpack(_tensor(data, torch.uint8))[:size] if kind == "q6" else _tensor(data, torch.int8)
    )
    return codes.float() * scales_R.float().repeat_interleave(row)[:size]


def quantize(flat: Tensor, row: int, most: int, clips: bool = False) -> tuple[Tensor, Tensor]:
    """Return integers within `most`, and the rows' scales in fp16.

    A scale is a row's largest absolute value over `most`, rounded up, so that no value is off by
    more than half of it. With `clips` it is the contest baseline's: a quantile in place of the
    largest value, not below 1/127, rounded only after the integers are made.
    """
    rows = -(-flat.numel() // row)
    values_RN = torch.nn.functional.pad(flat, (0, rows * row - flat.numel())).view(rows, row)
    if clips:
        limits_R = _clip_limits(flat, row)
        values_RN = values_RN.clamp(-limits_R[:, None], limits_R[:, None])
        steps_R = (limits_R / most).clamp_min(SMALLEST_STEP)
        scales_R = steps_R.half()
    else:
        exact_R = values_RN.abs().amax(1) / most
        scales_R = exact_R.half()
        # The next number of fp16 where this one is too small: their bits count upwards.
        scales_R = (scales_R.view(torch.int16) + (scales_R.float() < exact_R)).short()
        scales_R = scales_R.view(torch.float16)
        steps_R = scales_R.float()
    if not bool(scales_R.isfinite().all()):
        raise ValueError("it holds values too large for a scale in fp16")
    steps_R = steps_R.where(steps_R > 0, 1.0)  # of a row of zeros
    codes_RN = (values_RN / steps_R[:, None]).round().clamp(-most, most)
    return codes_RN.to(torch.int8).view(-1)[: flat.numel()], scales_R


def _clip_limits(flat: Tensor, row: int) -> Tensor:
    """Return the rows' quantiles; the last row's without what it lacks."""
    whole = flat.numel() // row
    rows_RN = flat[: whole * row].view(whole, row).abs()
    pieces = rows_RN.split(max(1, (1 << 22) // row))  # torch's quantile takes 16 million at most
    found = [torch.quantile(piece, CLIPPED, dim=1) for piece in pieces if len(piece)]
    if rest := flat.numel() - whole * row:
        found.append(torch.quantile(flat[-rest:].abs(), CLIPPED)[None])
    return torch.cat(found)


def _pack(codes: Tensor) -> Tensor:
    """Put four integers of six bits into three bytes."""
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % 4))
    a, b, c, d = (padded.int() + 32).view(-1, 4).unbind(1)
    return torch.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], 1).bitwise_and(255).byte()


def _unpack(packed: Tensor) -> Tensor:
    x, y, z = packed.int().view(-1, 3).unbind(1)
    codes = torch.stack([x, x >> 6 | y << 2, y >> 4 | z << 4, z >> 2], 1).bitwise_and(63)
    return (codes - 32).view(-1).to(torch.int8)


def _bytes(tensor: Tensor) -> bytes:
    found: bytes = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return found


def _tensor(data: bytes, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)
