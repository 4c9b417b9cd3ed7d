"""Distillation from the teacher that `distill.teacher` names.

The teacher is an npas run or `dense`, the run's own network before sharing. In eval mode and the
run's precision, it sees the student's batches; with `distill.cache`, every sample only once.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from npas.config import DENSE, Config, run_dir
from npas.sharing import api, is_shared
from npas.sharing.trained import activations
from npas.sharing.trained.distillation import distillation_loss, logits
from npas.tasks.base import Batch, Task
from npas.tasks.common.checksums import bytes_of
from npas.training import initial
from npas.training.distributed import Process
from npas.training.experiment import Experiment, build_network, to_device
from npas.training.grouping import SEARCH
from npas.utils.files import reason, replacing
from npas.utils.progress import track

OF_EACH = ("class", "cell", "text", "span")  # outputs that do not depend on the rest of a batch
CHUNK = 64  # samples per forward pass, so that the logits do not depend on the batch size
Teach = Callable[[Batch], Mapping[str, Tensor]]


class Distilled:
    """A task whose loss also compares the network's outputs with a teacher's.

    With w = `distill.weight`: (1 - w) task loss + w T^2 KL, plus `distill.hidden_weight` times the
    mean squared difference of the outputs of the modules in `distill.hidden`.
    """

    def __init__(self, config: Config, task: Task, student: nn.Module, teacher: nn.Module) -> None:
        self.task, self.settings = task, config.distill
        self.teacher = teacher.eval().requires_grad_(False)
        self.cache: TeacherCache | None = None
        self.outputs: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}}
        for role, network in (("student", student), ("teacher", teacher)):
            modules = dict(network.named_modules())
            for pattern in ("", *self.settings.hidden):
                names = fnmatch.filter(modules, pattern)
                if not names:
                    raise ValueError(f"distill.hidden: the {role} has no module {pattern!r}")
                for name in names:
                    keep = partial(self.outputs[role].__setitem__, name)
                    modules[name].register_forward_hook(lambda m, a, out, keep=keep: keep(out))

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor]:
        return self.task.part_weights(parts, world)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, found = self.task.loss(model, batch)
        ours, theirs = self.outputs["student"], self.outputs["teacher"]
        if self.cache is None:
            self._teach(batch)
        else:
            theirs[""] = self.cache.read(batch, self.taught)
        weight = self.settings.weight
        try:
            soft = distillation_loss(ours[""], theirs[""], self.settings.temperature)
            hidden = self._hidden_loss(ours, theirs)
        except ValueError as error:
            raise ValueError(f"distill.teacher={self.settings.teacher}: {error}") from None
        ours.clear()
        theirs.clear()
        loss = (1 - weight) * loss + weight * soft
        found = {**found, "distill_loss": soft.detach() * batch.size}
        if hidden is not None:
            loss = loss + self.settings.hidden_weight * hidden
            found["hidden_loss"] = hidden.detach() * batch.size
        return loss, found

    def _teach(self, batch: Batch) -> None:
        with torch.no_grad():
            self.task.loss(self.teacher, batch)

    def taught(self, batch: Batch) -> dict[str, Tensor]:
        self._teach(batch)
        return logits(self.outputs["teacher"].pop(""))

    def _hidden_loss(self, ours: dict[str, Any], theirs: dict[str, Any]) -> Tensor | None:
        """Return the mean squared difference of the hidden outputs; None if none are matched."""
        losses = []
        for name in (name for name in ours if name):
            own, other = (_tensor(found.get(name)) for found in (ours, theirs))
            if own is None or other is None or own.shape != other.shape:
                raise ValueError(
                    f"the outputs of module {name!r} differ in shape: name others in distill.hidden"
                )
            losses.append(F.mse_loss(own.float(), other.float()))
        return torch.stack(losses).mean() if losses else None


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) else None


def prepare(experiment: Experiment) -> None:
    """Load the teacher, if any, and check on one batch that its outputs match the student's."""
    config, task, process = experiment.config, experiment.task, experiment.process
    name = config.distill.teacher
    if name is None or experiment.stage == SEARCH:
        return
    try:
        teacher = _dense(config, task) if name == DENSE else initial.restore(Path(name))
    except ValueError as error:
        raise ValueError(f"distill.teacher={name}: {error}") from None
    to_device(teacher, process.device)
    learner = Distilled(config, task, experiment.model, teacher)
    batch = next(experiment.batches(epoch=0)).parts(config.trainer.grad_accum_steps)[0]
    try:
        learner.taught(batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a network of another task may raise anything
        raise ValueError(
            f"distill.teacher={name}: its network does not fit {task.name} ({reason(error)}): name"
            " a run with the same inputs and classes"
        ) from None
    with activations.evaluating(experiment.model), torch.no_grad():
        learner.loss(experiment.model, batch)
        if config.distill.cache is not None and not config.dry_run:
            learner.cache = TeacherCache(config, task, teacher, process)
    experiment.distilled, experiment.teacher = learner, initial.digest_of(teacher)


def _dense(config: Config, task: Task) -> nn.Module:
    """Build the run's own network before sharing, with its trained weights.

    If some weights, as of a new head, would be fresh, load the experiment's finished dense run.
    """
    if config.sharing.weights is None and not getattr(config.model, "pretrained", None):
        raise ValueError(
            "the dense network has no trained weights: set model.pretrained or sharing.init, or"
            " name a run as the teacher"
        )
    dense, networks = config.as_dense(), []
    for seed in (config.seed, (config.seed + 1) % 2**32):  # what differs is fresh
        networks.append(build_network(dataclasses.replace(dense, seed=seed), task.spec))
        initial.load_weights_of(networks[-1], config)
    network, drawn = networks[0], networks[1].state_dict()
    fresh = [name for name, own in network.state_dict().items() if not own.equal(drawn[name])]
    if not fresh:
        return network
    folder = run_dir(dense)
    try:
        return initial.restore(folder)
    except ValueError as error:
        raise ValueError(
            f"{fresh[0]} of the dense network is fresh, and its own run cannot be the teacher"
            f" ({error}): train it first, with budget=dense and all else equal, or name another run"
        ) from None


# --- the teacher's logits on disk: distill.cache


class TeacherCache:
    """A teacher's logits for all training samples, in a file that the first step writes.

    There is one file per teacher, precision and set of training inputs; its name is a hash of them.
    Rows are looked up by the digest of the sample that the student reads.
    """

    def __init__(self, config: Config, task: Task, teacher: nn.Module, process: Process) -> None:
        assert config.distill.cache is not None
        self.task, self.process = task, process
        index_B = torch.arange(min(CHUNK, task.train_size), device=task.device)
        changes = task.spec.outputs not in OF_EACH or type(task).sampler is not Task.sampler
        if changes or len({tuple(digests(task.collate(index_B, e, 0))) for e in range(3)}) > 1:
            raise ValueError(
                f"distill.cache: the inputs of {task.name} change in every epoch (augmented, masked"
                " or cut at random): set distill.cache=null, which runs the teacher in every step"
            )
        cache = Path(config.distill.cache)
        folder = next(p for p in (cache, *cache.absolute().parents) if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"distill.cache={cache}: {folder} is not a writable folder")
        self.digests = [d for batch in self._chunks("reading") for d in digests(batch)]
        named = hashlib.sha256(b"".join(self.digests))
        setting = f"2 {config.precision} {process.device.type} {task.spec.outputs}"
        named.update(f"{setting} {teacher!r}".encode())
        if is_shared(teacher):
            named.update(json.dumps(api.allocation(teacher).to_dict()).encode())
        named.update(initial.digest_of(teacher).encode())
        self.path = cache / f"{named.hexdigest()[:32]}.safetensors"
        self.kept: dict[str, Tensor] = {}
        self.was_read = False
        self.rows = {digest: row for row, digest in enumerate(self.digests)}
        if self.path.exists():
            self._open()

    def read(self, batch: Batch, teach: Teach) -> dict[str, Tensor]:
        """Return the teacher's logits by name; the first call computes those of all samples.

        Call it on all ranks. Raises ValueError for a sample that is not in the cache.
        """
        if not self.was_read:  # not by `kept`: another run may write the file between two ranks
            self.was_read = True
            with self.process.together():
                if self.process.is_main and not self.path.exists():
                    self._write(teach)
            if not self.kept:
                self._open()
        try:
            rows_B = torch.tensor([self.rows[digest] for digest in digests(batch)])
        except KeyError:
            raise ValueError(
                f"distill.cache: a sample of {self.task.name} is not the same as in the first"
                " epoch: set distill.cache=null"
            ) from None
        device = self.process.device
        return {name: own[rows_B].to(device) for name, own in self.kept.items()}

    def _chunks(self, what: str) -> Any:
        count = self.task.train_size
        for start in track(range(0, count, CHUNK), f"{what} {self.task.name}"):
            index_B = torch.arange(start, min(start + CHUNK, count), device=self.task.device)
            yield self.task.collate(index_B, 0, 0)

    def _write(self, teach: Teach) -> None:
        rows: dict[str, list[Tensor]] = {}
        for batch in self._chunks("teaching"):
            for name, own in teach(batch.to(self.process.device)).items():
                if len(own) != batch.size:
                    raise ValueError(
                        f"distill.cache needs one row of logits per sample, and {name!r} has"
                        f" {len(own)} for {batch.size}: set distill.cache=null"
                    )
                rows.setdefault(name, []).append(own.detach().cpu())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                save_file({name: torch.cat(parts) for name, parts in rows.items()}, temporary)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"distill.cache={self.path.parent}: {reason(error)}") from None

    def _open(self) -> None:
        try:
            self.kept = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path} is damaged ({reason(error)}): delete it") from None
        whole = [
            len(own) == len(self.digests) and own.isfinite().all() for own in self.kept.values()
        ]
        if not whole or not all(whole):
            raise ValueError(f"{self.path} is damaged (not a finite row per sample): delete it")


def digests(batch: Batch) -> list[bytes]:
    """Return a digest of each sample's inputs."""
    named = batch.inputs if isinstance(batch.inputs, dict) else {"": batch.inputs}
    found: Sequence[Any] = [hashlib.blake2b(digest_size=16) for _ in range(batch.size)]
    for name in sorted(named):
        rows = named[name].detach().cpu().contiguous().reshape(batch.size, -1)
        for each, row in zip(found, rows, strict=True):
            each.update(bytes_of(row))
    return [each.digest() for each in found]
