"""Precision of a training: fp32, or autocast to bf16 or fp16 (with loss scaling)."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Only about 17 overflows in a row reach it: then the training has diverged.
SMALLEST_SCALE = 1.0
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The compute dtype and, for fp16, the gradient scaler of one training."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = DTYPES.get(name)
        self.device = device
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            raise ValueError("precision=bf16: this GPU has no bf16; set precision=fp16")
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        try:
            with self.autocast():
                F.conv2d(*torch.zeros(2, 1, 1, 1, 1, device=device))
        except RuntimeError as error:
            raise ValueError(
                f"precision={name} does not run on {device.type} with this torch; "
                "set precision=fp32"
            ) from error

    def can_scale_less(self) -> Tensor | bool:
        """Return, on the device, whether the loss scale can still be lowered."""
        if self.scaler is None:
            return False
        return self.scaler.scale(torch.ones((), device=self.device)) >= SMALLEST_SCALE

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
