"""Encode tensors as bytes for an artifact, and decode them.

The kinds `q8` and `q6` are integers of 8 and 6 bits with one fp16 scale per row, `int24` the three
low bytes of int32. Any other kind is the name of the torch dtype that values are cast to. Shapes:
R rows of N values.
"""

import torch
from torch import Tensor

LEVELS = {"q8": 127, "q6": 31}
"""The largest integer of a quantized kind; the smallest is its negative."""
_DTYPES = "float64 float32 float16 bfloat16 bool uint8 int64 int32 int16 int8"
PLAIN: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES.split()}
INT24, LARGEST_INT24 = "int24", 1 << 23
CLIPPED, SMALLEST_STEP = 0.9999984, 1 / 127
"""Parameter Golf's baseline clips a row at this quantile of |values|, with scales from 1/127 up."""


def count_bytes(kind: str, size: int, row: int) -> int:
    """Return the bytes that `encode` makes of `size` values, scales included."""
    if kind not in LEVELS:
        return size * (3 if kind == INT24 else PLAIN[kind].itemsize)
    return (size if kind == "q8" else 3 * -(-size // 4)) + 2 * -(-size // row)


def encode(tensor: Tensor, kind: str, row: int, clips: bool = False) -> bytes:
    """Return a tensor's bytes, quantized in rows of `row` values; the last row may be shorter.

    Raises ValueError for values that the kind cannot represent.
    """
    flat = tensor.detach().reshape(-1).cpu()
    if flat.is_floating_point() and not bool(flat.isfinite().all()):
        raise ValueError("it holds values that are not finite")
    if kind in LEVELS:
        codes, scales_R = quantize(flat.float(), row, LEVELS[kind], clips)
        return _bytes(_pack(codes) if kind == "q6" else codes) + _bytes(scales_R)
    if kind == INT24:
        if (
            flat.numel()
            and not -LARGEST_INT24 <= int(flat.min()) <= int(flat.max()) < LARGEST_INT24
        ):
            raise ValueError(f"it holds values out of range for {kind}")
        return _bytes(flat.int().view(torch.uint8).view(-1, 4)[:, :3])  # little-endian
    plain = flat.to(PLAIN[kind])
    if plain.is_floating_point() and not bool(plain.isfinite().all()):
        raise ValueError(f"it holds values out of range for {kind}")
    return _bytes(plain)


def decode(data: bytes, kind: str, size: int, row: int) -> Tensor:
    """Return the flat tensor that `encode` was given; fp32 if the kind is quantized."""
    if kind == INT24:
        low_N3 = _tensor(data, torch.uint8).view(-1, 3)
        sign_N1 = (low_N3[:, 2:] >= 128).to(torch.uint8) * 255
        return torch.cat([low_N3, sign_N1], 1).view(torch.int32).view(-1)
    if kind not in LEVELS:
        return _tensor(data, PLAIN[kind])
    end = len(data) - 2 * -(-size // row)
    scales_R = _tensor(data[end:], torch.float16)
    codes = _tensor(data[:end], torch.uint8 if kind == "q6" else torch.int8)
    codes = _unpack(codes)[:size] if kind == "q6" else codes
    return codes.float() * scales_R.float().repeat_interleave(row)[:size]


def quantize(flat: Tensor, row: int, most: int, clips: bool = False) -> tuple[Tensor, Tensor]:
    """Return flat integers between -`most` and `most`, and the rows' scales, R, in fp16.

    A scale is a row's largest absolute value over `most`, rounded up, so that the error is at most
    half a scale. With `clips` it follows Parameter Golf's baseline: a quantile in place of the
    largest value, at least 1/127, and rounded to fp16 only after quantization.
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
        # Round up: adding 1 to the bits of a positive fp16 number gives the next larger one.
        scales_R = (scales_R.view(torch.int16) + (scales_R.float() < exact_R)).short()
        scales_R = scales_R.view(torch.float16)
        steps_R = scales_R.float()
    if not bool(scales_R.isfinite().all()):
        raise ValueError("it holds values too large for a scale in fp16")
    steps_R = steps_R.where(steps_R > 0, 1.0)  # 0 for a row of zeros
    codes_RN = (values_RN / steps_R[:, None]).round().clamp(-most, most)
    return codes_RN.to(torch.int8).view(-1)[: flat.numel()], scales_R


def _clip_limits(flat: Tensor, row: int) -> Tensor:
    """Return the rows' quantiles, R; a short last row is not padded."""
    whole = flat.numel() // row
    rows_RN = flat[: whole * row].view(whole, row).abs()
    pieces = rows_RN.split(max(1, (1 << 22) // row))  # torch's quantile takes 16 million at most
    found = [torch.quantile(piece, CLIPPED, dim=1) for piece in pieces if len(piece)]
    if rest := flat.numel() - whole * row:
        found.append(torch.quantile(flat[-rest:].abs(), CLIPPED)[None])
    return torch.cat(found)


def _pack(codes: Tensor) -> Tensor:
    """Pack four 6-bit integers into three bytes."""
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
