"""Mark the shortest paths through grid mazes (Savarese & Maire, ICLR 2019), generated on the fly.

The network predicts for every cell whether it is on any shortest path between two points (moves go
to the four neighbours). In phase n of the curriculum, which lasts `phase_epochs`, the points are 1
to `phases[n]` moves apart, drawn uniformly over lengths: drawn over a maze nearly all would be far
apart. The metric, after every epoch, is F1 on every band of distances, later ones included.
Density, distances and the number of grids are choices of this project.

Mazes are drawn in batches on any device; breadth-first search finds the paths of all at once.

Dimensions: N grids, M of them still to draw, H rows, W columns.
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
from npas.utils import rng
from npas.utils.checks import Ranged, within

EVAL_BATCH = 500
DRAWN_AT_ONCE = 4096  # training grids: enough to keep a GPU busy, in little memory
HELD_OUT_SEED = 0  # validation and test grids are the same for every run
MOST_CELLS = 50_000_000  # of the grids of a split, which stay in memory
MOST_ATTEMPTS = 1000  # draws to find two cells at the required distance
FINE = 1 << 16  # obstacles are drawn from 16 bits each, four cells per random 64-bit number


@dataclass(frozen=True)
class Grids:
    """Grids and their shortest paths: bool, NxHxW each."""

    obstacles: Tensor
    ends: Tensor  # the two query points
    paths: Tensor  # all cells on any shortest path between them, ends included


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
    samples = "mazes per epoch (task.epoch_samples)"

    def prepare(self) -> None:
        base.refuse_val_fraction(self.data, self.name, "which draws its validation mazes")
        few, size = self.data.synthetic, self.config.size
        if self.source == "synthetic":
            counts = {"epoch_samples": few.train, "val_samples": few.test}
            self.config = replace(self.config, phase_epochs=1, test_samples=few.test, **counts)
        self.has_validation = True
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
        config = self.config
        mazes = f"mazes of {config.size}x{config.size} cells"
        found = {"train": f"{config.epoch_samples:,} {mazes} per epoch, drawn on the fly"}
        for split, bands in self.parts.items():
            count = sum(len(grids.paths) for grids in bands.values())
            found[split] = f"{count:,} {mazes}, as many of each of {len(bands)} bands of distances"
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


# --- mazes


def distances(free_NHW: Tensor, start_NHW: Tensor, limit: int) -> Tensor:
    """Return the number of moves from the start cells to every cell: int16, NxHxW.

    It is limit + 1 for obstacles and for cells that `limit` moves do not reach.
    """
    reached_NHW = start_NHW & free_NHW
    distance_NHW = (~reached_NHW).short()
    for _ in range(limit):
        grown_NHW = reached_NHW.clone()
        grown_NHW[:, 1:] |= reached_NHW[:, :-1]
        grown_NHW[:, :-1] |= reached_NHW[:, 1:]
        grown_NHW[:, :, 1:] |= reached_NHW[:, :, :-1]
        grown_NHW[:, :, :-1] |= reached_NHW[:, :, 1:]
        reached_NHW = grown_NHW & free_NHW
        distance_NHW += ~reached_NHW
    return distance_NHW


def draw(
    seed: int, purpose: str, index_N: Tensor, size: int, density: float, shortest: int, longest: int
) -> Grids:
    """Draw the grids of these indices; each is a function of seed, purpose and index.

    The length of a grid's shortest paths is drawn first, uniformly from `shortest` to `longest`
    moves; then obstacles, each cell with probability `density`, one query point, and the other one
    among the cells at that distance. If there are none, obstacles and points are drawn again.
    Raises ValueError after MOST_ATTEMPTS draws.
    """
    span = longest - shortest + 1
    length_N = shortest + rng.integers(rng.derive_key(seed, purpose, "length"), index_N, span)
    shape = (len(index_N), size, size)
    free_NHW = torch.zeros(shape, dtype=torch.bool, device=index_N.device)
    start_NHW, end_NHW = torch.zeros_like(free_NHW), torch.zeros_like(free_NHW)
    from_start_NHW = torch.zeros(shape, dtype=torch.int16, device=index_N.device)
    pending_M = torch.arange(len(index_N), device=index_N.device)
    for attempt in range(MOST_ATTEMPTS):
        drawn_M = index_N[pending_M]
        name = f"{purpose} {attempt}"
        free_MHW = _free(rng.derive_key(seed, name, "obstacles"), drawn_M, size, density)
        start_MHW = _choose(rng.derive_key(seed, name, "start"), drawn_M, free_MHW)
        from_start_MHW = distances(free_MHW, start_MHW, longest)
        far_MHW = from_start_MHW == length_N[pending_M, None, None]
        end_MHW = _choose(rng.derive_key(seed, name, "end"), drawn_M, far_MHW)
        free_NHW[pending_M], from_start_NHW[pending_M] = free_MHW, from_start_MHW
        start_NHW[pending_M], end_NHW[pending_M] = start_MHW, end_MHW
        pending_M = pending_M[~end_MHW.flatten(1).any(1)]
        if not len(pending_M):
            break
    else:
        missing = length_N[pending_M]
        raise ValueError(
            f"found no two cells {missing.min()} to {missing.max()} moves apart in {size}x{size}"
            f" grids with obstacles on {density:.0%} of them: lower task.density or task.phases, or"
            " raise task.size"
        )
    # A cell is on a shortest path if going through it takes no extra move.
    through_NHW = from_start_NHW + distances(free_NHW, end_NHW, longest)
    return Grids(~free_NHW, start_NHW | end_NHW, through_NHW == length_N[:, None, None])


def _free(key: int, index_N: Tensor, size: int, density: float) -> Tensor:
    """Draw the cells that are not obstacles: bool, NxHxW."""
    count = -(-size * size // 4)
    position_NV = index_N[:, None] * count + torch.arange(count, device=index_N.device)
    shifts = torch.arange(0, 64, 16, device=index_N.device)
    drawn_NVF = rng.bits(key, position_NV)[:, :, None] >> shifts & (FINE - 1)
    drawn_NC = drawn_NVF.flatten(1)[:, : size * size]
    return (drawn_NC >= round(density * FINE)).view(-1, size, size)


def _choose(key: int, index_N: Tensor, among_NHW: Tensor) -> Tensor:
    """Choose one of the marked cells of every grid uniformly; none where none is marked."""
    among_NC = among_NHW.flatten(1)
    count_NC = among_NC.cumsum(1, dtype=torch.int32)
    nth_N = rng.integers(key, index_N, count_NC[:, -1])
    return (among_NC & (count_NC == nth_N[:, None] + 1)).view_as(among_NHW)
