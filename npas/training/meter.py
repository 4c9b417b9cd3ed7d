"""Sum a training's figures on the device, and read them only when they are to be logged."""

import resource
import sys
import time

import torch
from torch import Tensor

from npas.training.distributed import Process


class Diverged(Exception):
    """A loss, a gradient or a metric is no longer finite since a step."""

    def __init__(self, what: str, step: int | None = None) -> None:
        super().__init__(f"{what} not finite" + (f" at step {step}" if step is not None else ""))
        self.step = step


class Meter:
    """Average what happened since the last reading, and note the first step that went wrong.

    N: the trainable parameters, in the order of their gradients' norms.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.device = process.device
        # The first step whose loss or gradient was not finite, -1 while there is none, and the
        # gradients' norms in it.
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

        Returns 1.0, on the device, if this or an earlier step went wrong anywhere, else 0.0.
        """
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0) + value.double()
        self.samples += size
        self.steps += 1
        went_wrong = self.process.any((~finite).float())
        first = (went_wrong > 0) & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        before_N = norms_N if self.bad_norms_N is None else self.bad_norms_N
        self.bad_norms_N = torch.where(first, norms_N, before_N)
        return (self.bad_step >= 0).float()

    def read(self) -> dict[str, float]:
        """Return the averages since the last reading: waits for the device."""
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
        """Raise Diverged, with the first such step, if one went wrong: waits for the device."""
        if (step := int(self.bad_step)) >= 0:
            raise Diverged("loss or gradient", step)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint between two readings must keep, on the CPU."""
        kept = {f"sums/{key}": value.cpu() for key, value in self.sums.items()}
        return {**kept, "counts": torch.tensor([self.samples, self.steps])}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        self.samples, self.steps = tensors["counts"].tolist()
        self.untimed = self.steps, self.samples  # by this process's clock
        for key, value in tensors.items():
            if key.startswith("sums/"):
                self.sums[key.removeprefix("sums/")] = value.to(self.device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
