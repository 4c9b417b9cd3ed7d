"""Sum a training's figures on the device; read them only for logging."""

import resource
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor

from npas.training.distributed import Process


class Diverged(Exception):
    """A loss, a gradient or a metric is not finite."""

    def __init__(self, what: str, step: int | None = None) -> None:
        super().__init__(f"{what} not finite" + (f" at step {step}" if step is not None else ""))
        self.step = step


class Meter:
    """Average figures between two readings, and find the first step that was not finite.

    N: the number of trainable parameters.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.device = process.device
        # The first step whose loss or gradient was not finite, or -1, and its gradients' norms.
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.bad_norms_N: Tensor | None = None
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = self.steps = 0
        self.since, self.untimed = time.perf_counter(), (0, 0)

    def add(
        self, step: int, size: int, finite: Tensor, sums: dict[str, Tensor], norms_N: Tensor
    ) -> Tensor:
        """Add one step: sums over its `size` samples, and whether it was `finite`.

        Returns 1.0, on the device, if this or an earlier step was not finite in any process.
        """
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0) + value.double()
        self.samples += size
        self.steps += 1
        went_wrong = self.process.total((~finite).float(), dist.ReduceOp.MAX)
        first = (went_wrong > 0) & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        before_N = norms_N if self.bad_norms_N is None else self.bad_norms_N
        self.bad_norms_N = torch.where(first, norms_N, before_N)
        return (self.bad_step >= 0).float()

    def read(self) -> dict[str, float]:
        """Return the averages since the last reading. Waits for the device."""
        names = sorted(self.sums)  # the same order after a resume
        sums = torch.stack([self.sums[name] for name in names])
        counts = torch.tensor([self.samples], dtype=torch.float64, device=self.device)
        *values, samples = self.process.total(torch.cat([sums, counts])).tolist()
        seconds = time.perf_counter() - self.since
        record = {f"train/{key}": v / samples for key, v in zip(names, values, strict=True)}
        steps, local = self.steps - self.untimed[0], self.samples - self.untimed[1]
        record["time/step_ms"] = 1000 * seconds / max(1, steps)
        record["time/samples_per_s"] = samples * local / self.samples / seconds
        if self.device.type == "cuda":
            record["gpu/peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._restart()
        return record

    def check(self) -> None:
        if (step := int(self.bad_step)) >= 0:
            raise Diverged("loss or gradient", step)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint between two readings, on the CPU."""
        kept = {f"sums/{key}": value.cpu() for key, value in self.sums.items()}
        return {**kept, "counts": torch.tensor([self.samples, self.steps])}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.samples, self.steps = tensors["counts"].tolist()
        self.untimed = self.steps, self.samples  # this process's clock did not time them
        for key, value in tensors.items():
            if key.startswith("sums/"):
                self.sums[key.removeprefix("sums/")] = value.to(self.device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
