"""What every task shares: batches, the order of samples, ranks, and the class they derive from."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from npas.models import InputSpec
from npas.utils import rng

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from npas.config import DataConfig
    from npas.tasks.common.checksums import Comparison


class Batch(NamedTuple):
    """One training batch, augmented and on the training device.

    Inputs and targets are each a tensor or, where a task needs several, a dict of them by name.
    """

    inputs: Any  # B x input_shape, for images float
    targets: Any  # what the task asks for, B x ...: of classes, int64, B
    size: int  # B, known without asking the device

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; from pinned memory to a GPU without waiting for it."""

        def move(value: Tensor) -> Tensor:
            if device.type == "cuda" and value.device.type == "cpu":
                value = value.pin_memory()
            return value.to(device, non_blocking=True)

        return Batch(_each(self.inputs, move), _each(self.targets, move), self.size)

    def parts(self, count: int) -> list[Batch]:
        """Cut the batch into `count` equal parts, one after the other, that share its memory."""
        assert self.size % count == 0, f"{self.size} samples in {count} parts"
        size = self.size // count

        def part(values: Any, i: int) -> Any:
            return _each(values, lambda value: value[i * size : (i + 1) * size])

        return [Batch(part(self.inputs, i), part(self.targets, i), size) for i in range(count)]


def _each(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor, or each one of a dict."""
    if isinstance(values, dict):
        return {name: _each(value, change) for name, value in values.items()}
    return change(values)


class Picture(NamedTuple):
    """One picture to look at: an image, what to write below it, and boxes to draw into it.

    A box is (left, top, right, bottom) in pixels, by what it is: "truth" or "chosen".
    """

    image: Path | None  # None, or a file that is not there: only what is written is shown
    caption: str
    boxes: Mapping[str, tuple[float, float, float, float]] = {}
    right: bool | None = None  # whether the network was right; None: that is no question here


class Shown(NamedTuple):
    """One sample to look at: what was asked, and the pictures that were answered."""

    heading: str
    pictures: Sequence[Picture]


class Learner(Protocol):
    """What a training step asks for: a task's loss, or one that a teacher's outputs add to."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and sums over its samples to log."""
        ...

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor] | None:
        """Return the factor of each part's loss; None: all equal."""
        ...


class Task(abc.ABC):
    """A data set with its loss and its metrics: what the training loop asks of a task.

    Made as `Task(config, data, seed=..., device=...)`; nothing is read until `setup`. The base owns
    the order of an epoch's samples, each rank's share of a batch and the workers; a task gives
    `train_size`, `collate`, `loss` and `evaluate`.
    """

    name: str  # of the data set, as in result files
    device: torch.device  # the data are on; the CPU if they stream from disk
    source: str  # "real" or "synthetic"
    seed: int
    spec: InputSpec
    selection_metric: str  # the key of `evaluate` that chooses a checkpoint
    lower_is_better = False  # of the selection metric
    has_validation: bool
    samples = "training samples"  # what `train_size` counts, for messages
    compared: Comparison | None = None  # with the published files; None where none are known

    @abc.abstractmethod
    def setup(self) -> None:
        """Read the data onto the device, once. ValueError, one line, if missing or damaged.

        They are compared with the published data as `data.verify` asks.
        """

    @property
    @abc.abstractmethod
    def train_size(self) -> int:
        """The number of training samples in an epoch."""

    @abc.abstractmethod
    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        """Return the training samples with these numbers as a batch, on the task's device.

        `step` counts batches from the start of training. A sample depends on (seed, epoch, its
        number) alone: not on batch size, ranks, device or the other samples.
        """

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and the sums over its samples of what is logged."""

    @abc.abstractmethod
    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Return the metrics of "val" or "test", in eval mode without gradients, on all ranks.

        Every sample counts once over all ranks. The split is cut into the same batches and summed
        in the same order whatever `world` is, so that the result is equal to the bit. `model` is
        the network itself, not DDP's wrapper: ranks have different numbers of batches.
        """

    @abc.abstractmethod
    def inspect(self) -> dict[str, str]:
        """Return a line each about the data that were read: splits, counts, checksums.

        Each says whether it is as published. ValueError for data that cannot be read.
        """

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the full batches in an epoch; samples left over come up in other epochs.

        ValueError if there is none. `batch_size` is over all ranks.
        """
        size = self.train_size
        if batch_size > size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {size} {self.samples} of {self.name}"
            )
        return size // batch_size

    def train_batches(
        self,
        epoch: int,
        batch_size: int,
        steps: range | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Yield this rank's share of the batches `steps` of an epoch; None: of all of them.

        ValueError if a batch does not divide by the ranks.
        """
        local, per_epoch = rank_share(batch_size, world), self.steps_per_epoch(batch_size)
        choose = self.sampler(epoch, batch_size, local, rank, world)
        for step in range(per_epoch) if steps is None else steps:
            yield self.collate(choose(step), epoch, epoch * per_epoch + step)

    def sampler(
        self, epoch: int, batch_size: int, local: int, rank: int, world: int
    ) -> Callable[[int], Tensor]:
        """Return what gives the numbers of a rank's `local` samples in a step of the epoch."""
        key = rng.derive_key(self.seed, "order", epoch)
        order_N = rng.permutation(key, self.train_size, self.device)

        def choose(step: int) -> Tensor:
            start = step * batch_size + rank * local
            return order_N[start : start + local]

        return choose

    # What a task may do in its own way.

    def check_network(self, model: nn.Module) -> None:
        """Raise ValueError if a network that was built for `spec` cannot read these data."""

    def check_parts(self, size: int, parts: int) -> None:
        """Raise ValueError if a batch cannot be trained as `parts` parts of `size` samples."""

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor] | None:
        """Return the factor of each part's loss, which add up to `world`; None: all 1 / parts.

        Called on all ranks together; ranks average.
        """
        return None

    def sync_damage(self, world: int) -> None:
        """Exchange between ranks, all together, which damaged samples each has met.

        ValueError, on all ranks, if they are too many.
        """

    def preprocess(self, inputs: Any) -> Any:
        """Return a batch's inputs as the network takes them, where they stream in as bytes."""
        return inputs

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        """Return up to `count` samples of "val" or "test" with the network's outputs, to be drawn.

        The same samples whatever the network. ValueError for a task without pictures.
        """
        raise ValueError(f"{self.name} has no pictures to show: leave show out")

    def write_predictions(self, split: str, folder: Path) -> list[Path]:
        """Write the predictions of the last `evaluate` in the official format; return the files."""
        return []


def has_pictures(task: Task) -> bool:
    """Return whether a task has `examples` to show; reads no data."""
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

    make = functools.partial(task.train_batches, epoch, batch_size, rank=rank, world=world)
    made = iterate(make, steps, workers)
    return made if device is None or device == task.device else _ahead(made, device)


def _ahead(made: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device, the next already being copied."""
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


def inference_flops(model: nn.Module, spec: InputSpec) -> int:
    """Count the FLOPs of one input's forward pass; moves the model to the meta device.

    Operations are counted: counters that look layers up by class find no shared ones. By torch's
    formulas, without its counter, which imports the compiler to take apart what has none.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    counts = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                formula = flop_registry[func._overloadpacket]
                counts.append(formula(*args, **(kwargs or {}), out_val=found))
            return found

    model.to("meta").eval()
    with torch.no_grad(), Counter():
        outputs(model, spec.example("meta"))
    return sum(counts)


def check_workers(task: Task, workers: int) -> None:
    """Raise ValueError if there are to be workers and the data rest on a GPU."""
    if workers and task.device.type != "cpu":
        raise ValueError(
            f"data.workers={workers}: {task.name} rests on the GPU, which makes its batches itself;"
            " set data.workers=0"
        )


def over_ranks(tensor: Tensor, world: int, operation: str = "SUM") -> Tensor:
    """Add a tensor up over all ranks, or take the "MAX", in place; a rank alone has it already."""
    if world > 1:
        import torch.distributed

        torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
    return tensor


def measure(
    model: nn.Module,
    count: Callable[[int], Sequence[Tensor | int]],
    batches: int,
    numbers: int,
    rank: int,
    world: int,
    device: torch.device,
) -> Tensor:
    """Return what `count` finds in each of the batches, by whatever rank: batches x numbers.

    In eval mode and without gradients; `count` gets the numbers of this rank's batches, in order.
    All is in float64 on the CPU, added up in one order: the same to the bit however many ranks.
    """
    import torch

    was_training = model.training
    model.eval()
    # The other ranks' batches stay 0 here.
    counted_EN = torch.zeros(batches, numbers, dtype=torch.float64, device=device)
    with torch.no_grad():
        for i in range(rank, batches, world):
            for n, number in enumerate(count(i)):
                counted_EN[i, n] = number
    model.train(was_training)
    return over_ranks(counted_EN, world).cpu()


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
