"""Hold the tasks npas trains on: data, loss and metric of one task family a module of this folder.

A family is a module that offers `Config` (a dataclass: the closed set of its `task.*` keys) and
`Task`, a class that keeps the protocol below. `family("cifar")` finds `cifar.py`; modules whose
name starts with an underscore are helpers and no families.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from npas.models import InputSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from npas.config import DataConfig
    from npas.tasks.common.checksums import Comparison


class Batch(NamedTuple):
    """Hold one training batch, augmented and on the training device.

    Inputs and targets are each a tensor or, where a task needs several, a dict of them by name.
    """

    inputs: Any  # B x input_shape, for images float
    targets: Any  # what the task asks for, B x ...: of classes, int64, B
    size: int  # B, known without asking the device

    def to(self, device: torch.device) -> Batch:
        """Bring the batch to a device; from pinned memory to a GPU without waiting for it."""
        return Batch(_each(self.inputs, device), _each(self.targets, device), self.size)

    def parts(self, count: int) -> list[Batch]:
        """Cut the batch into `count` equal parts, one after the other, that share its memory."""
        assert self.size % count == 0, f"{self.size} samples in {count} parts"
        size = self.size // count
        inputs, targets = _cut(self.inputs, size), _cut(self.targets, size)
        return [Batch(*part, size) for part in zip(inputs, targets, strict=True)]


def _each(values: Any, device: torch.device) -> Any:
    """Bring a tensor, or each one of a dict, to a device."""
    if isinstance(values, dict):
        return {name: _each(value, device) for name, value in values.items()}
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _cut(values: Any, size: int) -> list[Any]:
    """Cut a tensor, or each one of a dict, along its first dimension."""
    if isinstance(values, dict):
        rows = zip(*(value.split(size) for value in values.values()), strict=True)
        return [dict(zip(values, row, strict=True)) for row in rows]
    return list(values.split(size))


class Picture(NamedTuple):
    """Hold one picture to look at: an image, what to write below it, and boxes to draw into it.

    A box is (left, top, right, bottom) in pixels, by what it is: "truth" or "chosen".
    """

    image: Path | None  # None, or a file that is not there: only what is written is shown
    caption: str
    boxes: Mapping[str, tuple[float, float, float, float]] = {}
    right: bool | None = None  # whether the network was right; None: that is no question here


class Shown(NamedTuple):
    """Hold one sample to look at: what was asked, and the pictures that were answered."""

    heading: str
    pictures: Sequence[Picture]


class Task(Protocol):
    """Describe what the training loop asks of a task.

    The class is made as `Task(config, data, seed=..., device=...)` and reads nothing until `setup`.
    Tasks derive from this one, for what few of them do in a way of their own.
    """

    name: str  # of the data set, as results call it
    device: torch.device  # that the data rest on: the CPU if they stream from disk
    source: str  # "real", or "synthetic" for data made up to have the real set's shape
    spec: InputSpec
    selection_metric: str  # the key of `evaluate` by which a checkpoint is chosen; higher is better
    has_validation: bool
    # With what was published; None where nothing that could be compared is known of the set.
    compared: Comparison | None = None

    def setup(self) -> None:
        """Read the data onto the device, once. ValueError, one line, if missing or damaged.

        What is known of the published data is compared as `data.verify` asks.
        """

    def inspect(self) -> dict[str, str]:
        """Say of the data that were read what there is, a line each: parts, counts, sums.

        It says of each whether it is as published. ValueError for data that cannot be read.
        """

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the full batches of `batch_size` samples (over all ranks) in an epoch."""

    def train_batches(
        self,
        epoch: int,
        batch_size: int,
        steps: range | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Yield this rank's parts of the batches `steps` of the epoch, in that order; None: of all.

        What a sample looks like depends on (seed, epoch, its index) alone: not on batch size,
        ranks, device, or on which other batches are asked for. ValueError if the batch does not
        divide by the ranks.
        """

    def check_network(self, model: nn.Module) -> None:
        """Raise ValueError if the network cannot read these data, which only shows once read.

        Unless a task says otherwise, every network can that was built for its `spec`.
        """

    def check_parts(self, size: int, parts: int) -> None:
        """Raise ValueError if a batch cannot be trained in `parts` parts of `size` samples.

        The parts are those of all ranks. Unless a task says otherwise, it can.
        """

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor] | None:
        """Return the factor of each part's loss in that of the batch, times the `world` ranks.

        Over all ranks they add up to `world`, and ranks average. All ranks must come here together.
        Unless a task says otherwise, all parts count alike: None.
        """
        return None

    def agree_on_damage(self, world: int) -> None:
        """Let all ranks know what damaged samples each has met, where a task counts them.

        ValueError, in all of them, if they are too many. All ranks must come here together.
        """

    def prepared(self, inputs: Any) -> Any:
        """Return a batch's inputs as the network takes them: what streams in may come as bytes.

        Unless a task says otherwise, they are made that way.
        """
        return inputs

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        """Return up to `count` samples of "val" or "test", and what the network says of them.

        The same ones whatever the network, spread over the part. Unless a task says otherwise it
        has nothing to look at: ValueError.
        """
        raise ValueError(f"{self.name} has no pictures to show: leave show out")

    def write_answers(self, split: str, folder: Path) -> list[Path]:
        """Write what the last `evaluate` of a split answered, as the set's own scripts read it.

        Return the files. Unless a task says otherwise, there are none.
        """
        return []

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and sums over its samples of what is to be logged."""

    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure on "val" or "test", in eval mode without gradients; all ranks get the answer.

        Every sample counts once over all ranks, and none is added to make them even. The part is
        cut into the same batches whatever `world` is, and what was counted on each is added up in
        one order: the same weights measure the same, to the bit, on any number of ranks. `model` is
        the network itself: DDP's wrapper waits for the others at every batch, and they have
        different numbers of them.
        """


def has_pictures(task: Task) -> bool:
    """Tell whether a task has `examples` to show; reads no data."""
    return type(task).examples is not Task.examples


def batches(
    task: Task,
    epoch: int,
    batch_size: int,
    *,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Iterate over this rank's parts of the epoch's batches, from batch `first_step` on.

    They come on `device`, wherever the data rest; None: there.

    With `workers` so many other processes make them: the same batches to the bit, in the same
    order. They draw nothing from torch's own generator, and end with the iteration, also where
    that is given up early. ValueError if there are workers and the data rest on a GPU.
    """
    steps = range(first_step, task.steps_per_epoch(batch_size))
    check_workers(task, workers)
    from npas.tasks.common.workers import iterate  # which needs torch at once

    make = functools.partial(_make, task, epoch, batch_size, rank, world)
    made = iterate(make, steps, workers) if workers else make(steps)
    return made if device is None or device == task.device else _ahead(made, device)


def _make(
    task: Task, epoch: int, batch_size: int, rank: int, world: int, steps: range
) -> Iterator[Batch]:
    return task.train_batches(epoch, batch_size, steps, rank, world)


def _ahead(made: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Bring each batch to the device before the one ahead of it is used."""
    waiting = None
    for batch in made:
        batch = batch.to(device)
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return a network's outputs as a list; a dict of inputs is passed by name."""
    given = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if isinstance(given, tuple):
        return list(given)
    return list(given.to_tuple()) if hasattr(given, "to_tuple") else [given]


def check_workers(task: Task, workers: int) -> None:
    """Raise ValueError if there are to be workers and the data rest on a GPU."""
    if workers and task.device.type != "cpu":
        raise ValueError(
            f"data.workers={workers}: {task.name} rests on the GPU, which makes its batches itself;"
            " set data.workers=0"
        )


def over_ranks(tensor: Tensor, world: int) -> Tensor:
    """Add a tensor up over all ranks, in place; a rank alone has it already."""
    if world > 1:
        import torch.distributed

        torch.distributed.all_reduce(tensor)
    return tensor


def greatest_of_ranks(tensor: Tensor, world: int) -> Tensor:
    """Put the greatest value of all ranks into each place of a tensor; a rank alone has it."""
    if world > 1:
        import torch.distributed

        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor


def rank_share(batch_size: int, world: int, grad_accum_steps: int = 1) -> int:
    """Return the samples of one forward pass: a rank's share of a batch over `grad_accum_steps`.

    ValueError, with the nearest batch size that divides, if they are not all equal.
    """
    parts = world * grad_accum_steps
    if batch_size % parts:
        raise ValueError(
            f"batch_size={batch_size} does not divide by {world} ranks x"
            f" trainer.grad_accum_steps={grad_accum_steps}; the nearest that does is"
            f" {max(1, round(batch_size / parts)) * parts}"
        )
    return batch_size // parts


def refuse_val_fraction(data: DataConfig, name: str, reason: str) -> None:
    """Raise ValueError if `data.val_fraction` is set for a task that holds no part out itself."""
    if data.val_fraction is not None:
        raise ValueError(
            f"data.val_fraction={data.val_fraction} does not apply to {name}, {reason}: set"
            " data.val_fraction=null"
        )
