"""Sum a training's figures on the device, and read them only when they are to be logged."""

import resource
import sys
import time

import torch
from torch import Tensor


class Meter:
    """Average what happened since the last reading, and note the first step that went wrong."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The first step whose loss or gradient was not finite, -1 while there is none.
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = self.steps = 0
        self.since = time.perf_counter()

    def add(self, step: int, size: int, finite: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """Take in one step: sums over its `size` samples, and whether it was `finite`.

        Returns 1.0, on the device, if this or an earlier step went wrong, else 0.0.
        """
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0) + value
        self.samples += size
        self.steps += 1
        first = ~finite & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        return (self.bad_step >= 0).float()

    def read(self) -> tuple[dict[str, float], int | None]:
        """Return the averages since the last reading, and the bad step: waits for the device."""
        *values, bad_step = torch.stack(
            [value.double() for value in (*self.sums.values(), self.bad_step)]
        ).tolist()
        seconds = time.perf_counter() - self.since
        record = {
            f"train/{key}": v / self.samples for key, v in zip(self.sums, values, strict=True)
        }
        record["time/step_ms"] = 1000 * seconds / self.steps
        record["time/samples_per_s"] = self.samples / seconds
        if self.device.type == "cuda":
            record["gpu/peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._restart()
        return record, int(bad_step) if bad_step >= 0 else None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
