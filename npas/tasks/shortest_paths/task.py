"""Mark the shortest paths through grid mazes (Savarese & Maire, ICLR 2019), generated on the fly.

The network predicts for every cell whether it is on any shortest path between two points (moves go
to the four neighbours). In phase n of the curriculum, which lasts `phase_epochs`, the points are 1
to `phases[n]` moves apart, drawn uniformly over lengths: drawn over a maze nearly all would be far
apart. The metric, after every epoch, is F1 on every band of distances, later ones included.
Density, distances and the number of grids are choices of this project.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch, Metrics, rank_share
from npas.tasks.common.measure import measure
from npas.tasks.shortest_paths.mazes import Grids, draw
from npas.utils.checks import Ranged, within

EVAL_BATCH = 500
DRAWN_AT_ONCE = 4096  # training grids: enough to keep a GPU busy, in little memory
HELD_OUT_SEED = 0  # validation and test grids are the same for every run
MOST_CELLS = 50_000_000  # of the grids of a split, which stay in memory


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of shortest paths."""

    family: str = "shortest_paths"
    size: Annotated[int, "[2, 512]"] = 32  # rows and columns
    density: Annotated[float, "[0, 1)"] = 0.4  # of obstacles
    phases: list[int] = field(default_factory=lambda: [12, 16, 20, 24, 28])  # longest path of each
    phase_epochs: Annotated[int, "[1, inf)"] = 50
    epoch_samples: Annotated[int, "[1, inf)"] = 10_000
    val_samples: int = 200  # per band of distances
    test_samples: int = 1000  # per band of distances

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.phases or sorted({0, *self.phases}) != [0, *self.phases]:
            raise ValueError(f"task.phases must be increasing lengths above 0, got {self.phases}")
        if self.phases[-1] >= self.size**2:
            grid = f"{self.size}x{self.size} grid"
            raise ValueError(f"task.phases: no path of {self.phases[-1]} moves fits into a {grid}")
        most = f"[1, {MOST_CELLS // (len(self.phases) * self.size**2)}]"
        within("task.val_samples", self.val_samples, most)
        within("task.test_samples", self.test_samples, most)


class Task(base.Task):
    """Classify every cell of a maze; data.source=synthetic only reduces the number of mazes."""

    name = "shortest_paths"
    selection_metric = "f1"
    has_validation = True
    samples = "mazes per epoch (task.epoch_samples)"

    def prepare(self) -> None:
        base.refuse_val_fraction(self.data, self.name, "which draws its validation mazes")
        few, size = self.data.synthetic, self.config.size
        if self.source == "synthetic":
            counts = {"epoch_samples": few.train, "val_samples": few.test}
            self.config = replace(self.config, phase_epochs=1, test_samples=few.test, **counts)
        self.spec = InputSpec((2, size, size), 1, outputs="cell")

    def read(self) -> dict[str, dict[int, Grids]]:
        phases = self.config.phases
        samples = {"val": self.config.val_samples, "test": self.config.test_samples}
        counts = {k: torch.arange(count, device=self.device) for k, count in samples.items()}
        bands = [*zip([0, *phases], phases, strict=False)]
        return {
            split: {
                longest: self._draw(HELD_OUT_SEED, f"{split} {longest}", count, before + 1, longest)
                for before, longest in bands
            }
            for split, count in counts.items()
        }

    def inspect(self) -> dict[str, str]:
        config, bands = self.config, len(self.config.phases)
        mazes = f"mazes of {config.size}x{config.size} cells"
        found = {"train": f"{config.epoch_samples:,} {mazes} per epoch, drawn on the fly"}
        for name, counts in self.parts.items():
            count = sum(len(grids.paths) for grids in counts.values())
            found[name] = f"{count:,} {mazes}, as many of each of {bands} bands of distances"
        return found

    def _draw(self, seed: int, purpose: str, index_N: Tensor, shortest: int, longest: int) -> Grids:
        size, density = self.config.size, self.config.density
        return draw(seed, f"grids {purpose}", index_N, size, density, shortest, longest)

    @property
    def train_size(self) -> int:
        return self.config.epoch_samples

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        grids = self._draw(self.seed, f"train {epoch}", index_B, 1, self.longest(epoch))
        return Batch(*_batch(grids, 0, len(index_B)), len(index_B))

    def longest(self, epoch: int) -> int:
        """Return the largest distance between the points in this epoch's phase."""
        phases = self.config.phases
        return phases[min(epoch // self.config.phase_epochs, len(phases) - 1)]

    def train_batches(
        self, epoch: int, batch_size: int, steps: range | None = None, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield this rank's share of these batches, drawing the mazes of many at once."""
        local, per_epoch = rank_share(batch_size, world), self.steps_per_epoch(batch_size)
        steps = range(per_epoch) if steps is None else steps
        at_once = max(1, DRAWN_AT_ONCE // local)
        own_B = rank * local + torch.arange(local, device=self.device)
        for first in range(0, len(steps), at_once):
            now = steps[first : first + at_once]
            step_S = torch.arange(now.start, now.stop, now.step, device=self.device)
            index_N = (step_S[:, None] * batch_size + own_B).flatten()
            grids = self._draw(self.seed, f"train {epoch}", index_N, 1, self.longest(epoch))
            for start in range(0, len(index_N), local):
                yield Batch(*_batch(grids, start, local), local)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BHW = model(batch.inputs).squeeze(1).float()
        right, predicted, actual = _counts(logits_BHW.detach(), batch.targets)
        f1 = 200 * right / (predicted + actual)
        loss = F.binary_cross_entropy_with_logits(logits_BHW, batch.targets)
        return loss, {"f1": f1 * batch.size}

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        """Measure F1 over the cells of "val" or "test", in percent, of all bands and of each."""
        bands = self.parts[split]
        cut = [
            (band, start)
            for band in bands.values()
            for start in range(0, len(band.paths), EVAL_BATCH)
        ]

        def count(i: int) -> tuple[Tensor, ...]:
            inputs, targets = _batch(*cut[i], EVAL_BATCH)
            logits_BHW = model(inputs).squeeze(1).float()
            loss = F.binary_cross_entropy_with_logits(logits_BHW, targets, reduction="sum")
            return *_counts(logits_BHW, targets), loss

        counted_E4 = measure(model, count, len(cut), 4, rank, world, self.device)
        # All D bands have the same number of grids.
        counted_D4 = counted_E4.view(len(bands), -1, 4).sum(1)
        f1 = {f"f1_{n}": _f1(count_4) for n, count_4 in zip(bands, counted_D4, strict=True)}
        cells = sum(band.paths.numel() for band in bands.values())
        all_4 = counted_D4.sum(0)
        return {"f1": _f1(all_4), **f1, "loss": all_4[3].item() / cells}


def _batch(grids: Grids, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return inputs, Bx2xHxW, and targets, BxHxW, as floats, of `size` grids from `start`."""
    own = slice(start, start + size)
    inputs_B2HW = torch.stack([grids.obstacles[own], grids.ends[own]], 1)
    return inputs_B2HW.float(), grids.paths[own].float()


def _counts(logits_BHW: Tensor, targets_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count true positives, predicted positives and actual positives."""
    predicted_BHW, actual_BHW = logits_BHW > 0, targets_BHW > 0
    return (predicted_BHW & actual_BHW).sum(), predicted_BHW.sum(), actual_BHW.sum()


def _f1(count_4: Tensor) -> float:
    right, predicted, actual, _ = count_4.tolist()
    return 200 * right / (predicted + actual)
