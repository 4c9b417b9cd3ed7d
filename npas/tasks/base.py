"""The base class of all tasks: batches, the order of samples, and their split over ranks."""

from __future__ import annotations

import abc
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from npas.config import DataConfig
from npas.models import InputSpec
from npas.tasks.common.checksums import Comparison
from npas.tasks.common.workers import iterate
from npas.utils import rng

Metrics = dict[str, float]


class Batch(NamedTuple):
    """One training batch, augmented and on the training device.

    Inputs and targets are each a tensor or, where a task needs several, a dict of them by name.
    """

    inputs: Any  # B x input_shape, for images float
    targets: Any  # B x ...; class labels: B, int64
    size: int  # B, known without synchronizing with the device

    def each(self, change: Callable[[Tensor], Tensor], size: int) -> Batch:
        """Return a batch of `size` samples with a function applied to every tensor."""

        def changed(values: Any) -> Any:
            if isinstance(values, dict):
                return {name: change(value) for name, value in values.items()}
            return change(values)

        return Batch(changed(self.inputs), changed(self.targets), size)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies to a GPU are asynchronous, from pinned memory."""

        def move(value: Tensor) -> Tensor:
            if device.type == "cuda" and value.device.type == "cpu":
                value = value.pin_memory()
            return value.to(device, non_blocking=True)

        return self.each(move, self.size)

    def parts(self, count: int) -> list[Batch]:
        """Split the batch into `count` equal consecutive parts, which are views of it."""
        assert self.size % count == 0, f"{self.size} samples in {count} parts"
        size = self.size // count
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return [self.each(operator.itemgetter(cut), size) for cut in cuts]


class Picture(NamedTuple):
    """An image to show, with a caption below it and boxes drawn into it.

    The key of a box is "truth" or "chosen", its value (left, top, right, bottom) in pixels.
    """

    image: Path | BytesIO | None  # a file or its content; None: only the caption is shown
    caption: str
    boxes: Mapping[str, tuple[float, float, float, float]] = {}
    right: bool | None = None  # whether the network was right; None: does not apply


class Shown(NamedTuple):
    """A sample to show: its input as the heading, and pictures of the network's output."""

    heading: str
    pictures: Sequence[Picture]


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` of the numbers below `count`, evenly spread."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


class Learner(Protocol):
    """What a training step needs: a task, or a task with a distillation loss."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor]: ...


class Task(abc.ABC):
    """A dataset with its loss and metrics.

    Nothing is read before `setup`. The base class orders the samples of an epoch, splits batches
    over ranks and runs the workers; a subclass implements `read` and the abstract methods.
    """

    name: str  # of the dataset, as in result files
    device: torch.device  # where the data are; the CPU if they stream from disk
    source: str  # "real" or "synthetic"
    seed: int
    spec: InputSpec
    selection_metric: str  # the key of `evaluate` that selects the best checkpoint
    lower_is_better = False  # of the selection metric
    has_validation: bool
    samples = "training samples"  # what `train_size` counts, for messages

    def __init__(self, config: Any, data: DataConfig, *, seed: int, device: torch.device) -> None:
        self.config, self.data, self.seed, self.device = config, data, seed, device
        self.source, self.root = data.source, Path(data.root)
        self.parts: dict[str, Any] = {}  # by split: "train", "test" and perhaps "val"
        self.has_validation = bool(data.val_fraction)
        self.compared = Comparison(data.verify)  # with the published files, if these are known
        self.prepare()

    def prepare(self) -> None:
        """Set `name`, `spec` and, if it differs, `has_validation`; the end of the constructor."""

    def at_most(self, synthetic: int, value: int) -> int:
        """Return a size from the config, which is limited for synthetic data."""
        return min(synthetic, value) if self.source == "synthetic" else value

    def setup(self) -> None:
        """Read the data onto the device, once; compare them with the published data.

        Raises ValueError if files are missing or damaged, or differ (see `data.verify`).
        """
        try:
            self.parts = self.parts or self.read()
        except (OSError, ValueError):
            first = next(path for path in (self.root, *self.root.parents) if os.path.exists(path))
            if self.source == "real" and not first.is_dir():
                raise ValueError(f"data.root={self.root}: {first} is not a folder") from None
            raise

    def read(self) -> dict[str, Any]:
        """Return the data of each split; raises ValueError if files are missing or damaged."""
        raise AssertionError("implemented by subclasses")

    @property
    def train_size(self) -> int:
        """The number of training samples in an epoch."""
        return len(self.parts["train"])

    @abc.abstractmethod
    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        """Return the training samples with these indices as a batch, on the task's device.

        `step` counts batches from the start of training. A sample depends only on seed, epoch and
        index, not on batch size, ranks, device or the other samples.
        """

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and the metrics to log, summed over its samples."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        """Return the metrics of "val" or "test", in eval mode without gradients, on all ranks.

        Batches and order of summation do not depend on `world`: the result is bit-identical for
        any number of ranks. These have different numbers of batches, so no DDP wrapper is allowed.
        """

    @abc.abstractmethod
    def inspect(self) -> dict[str, str]:
        """Describe the data that were read: splits, counts, checksums, and whether as published.

        Raises ValueError for data that cannot be read.
        """

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch; `batch_size` is over all ranks.

        Raises ValueError if there are none.
        """
        size = self.train_size
        if batch_size > size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {size} {self.samples} of {self.name}"
            )
        return size // batch_size

    def train_batches(
        self, epoch: int, batch_size: int, steps: range | None = None, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield this rank's share of the batches `steps` of an epoch (None: of all).

        Raises ValueError if the batch size is not divisible by the number of ranks.
        """
        local, per_epoch = rank_share(batch_size, world), self.steps_per_epoch(batch_size)
        choose = self.sampler(epoch, batch_size, local, rank, world)
        for step in range(per_epoch) if steps is None else steps:
            yield self.collate(choose(step), epoch, epoch * per_epoch + step)

    def sampler(
        self, epoch: int, batch_size: int, local: int, rank: int, world: int
    ) -> Callable[[int], Tensor]:
        """Return a function from a step to the indices of the rank's `local` samples."""
        key = rng.derive_key(self.seed, "order", epoch)
        order_N = rng.permutation(key, self.train_size, self.device)

        def choose(step: int) -> Tensor:
            start = step * batch_size + rank * local
            return order_N[start : start + local]

        return choose

    def missing(self, what: str, downloads: bool = False) -> ValueError:
        """Return the error that `what` is to be put under `data.root`, or could be downloaded."""
        return ValueError(
            f"{self.name} is not under data.root={self.root}: put {what} there (docs/data.md), or"
            f" set {'data.download=true or ' if downloads else ''}data.source=synthetic"
        )

    # Optional methods.

    def check_network(self, model: nn.Module) -> None:
        """Raise ValueError if a network that was built for `spec` cannot read these data."""

    def check_parts(self, size: int, parts: int) -> None:
        """Raise ValueError if a batch cannot be trained as `parts` parts of `size` samples."""

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor]:
        """Return the factor of each part's loss, by default 1 / parts; all ranks must call it.

        The factors sum to `world` over all ranks, since gradients are averaged over ranks.
        """
        return [torch.tensor(1 / len(parts))] * len(parts)

    def preprocess(self, inputs: Any) -> Any:
        """Convert a batch's inputs, which may be bytes, to what the network takes."""
        return inputs

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        """Return up to `count` samples of "val" or "test" with the network's outputs.

        The samples do not depend on the network. Raises ValueError for a task without them.
        """
        raise ValueError(f"{self.name} has no samples to show: leave show out")

    def write_predictions(self, split: str, folder: Path) -> list[Path]:
        """Write predictions of the last `evaluate` in the official format; return the paths."""
        return []


def has_examples(task: Task) -> bool:
    """Return whether a task implements `examples`."""
    return type(task).examples is not Task.examples


def batches(
    task: Task, epoch: int, batch_size: int, *, first_step: int = 0, rank: int = 0, world: int = 1,
    workers: int = 0, device: torch.device | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Iterate over this rank's share of the epoch's batches on `device`, from `first_step` on.

    `device` None leaves them where the data are. With `workers` > 0, as many processes make the
    same batches in the same order. Raises ValueError for workers if the data are on a GPU.
    """
    steps = range(first_step, task.steps_per_epoch(batch_size))
    check_workers(task, workers)
    make = functools.partial(task.train_batches, epoch, batch_size, rank=rank, world=world)
    made = iterate(make, steps, workers)
    if device is None or device == task.device:
        return made
    moved = itertools.chain((batch.to(device) for batch in made), [Batch(None, None, 0)])
    # Pairs, so that the next batch is being copied while one is used.
    return (batch for batch, _ in itertools.pairwise(moved))


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return a network's outputs as a list; a dict of inputs is passed as keyword arguments."""
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if isinstance(found, tuple):
        return list(found)
    return list(found.to_tuple()) if hasattr(found, "to_tuple") else [found]


def inference_flops(model: nn.Module, spec: InputSpec) -> int:
    """Count the FLOPs of the forward pass of one sample; moves the model to the meta device.

    Counts operations, because counters by layer class do not find shared layers. Uses torch's
    formulas but not its FlopCounterMode, which imports the compiler.
    """
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
    """Raise ValueError if there are workers and the data are on a GPU."""
    if workers and task.device.type != "cpu":
        raise ValueError(f"data.workers={workers}: set 0, since {task.name} is on the GPU")


def rank_share(batch_size: int, world: int, grad_accum_steps: int = 1) -> int:
    """Return the number of samples in one forward pass on one rank.

    Raises ValueError if `batch_size` is not divisible by ranks x `grad_accum_steps`.
    """
    parts = world * grad_accum_steps
    if batch_size % parts:
        raise ValueError(
            f"batch_size={batch_size} is not divisible by {world} ranks x"
            f" trainer.grad_accum_steps={grad_accum_steps}; the nearest that is:"
            f" {max(1, round(batch_size / parts)) * parts}"
        )
    return batch_size // parts


def check_vocabulary(model: nn.Module, size: int, what: str) -> None:
    """Raise ValueError if a network's vocabulary is smaller than `size`; `what` has that many."""
    model = getattr(model, "module", model)
    known = getattr(getattr(model, "config", model), "vocab_size", None)
    if known is not None and known < size:
        raise ValueError(
            f"{what}, and the network has model.vocab_size={known}: set it to at least {size}"
        )


def refuse_val_fraction(data: DataConfig, name: str, reason: str) -> None:
    """Raise ValueError if `data.val_fraction` is set for a task that does not use it."""
    if data.val_fraction is not None:
        raise ValueError(f"data.val_fraction does not apply to {name}, {reason}: set it to null")
