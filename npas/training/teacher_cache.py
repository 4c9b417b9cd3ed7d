"""Cache of a teacher's logits on disk, so that it runs once over the data: `distill.cache=DIR`.

There is one file per teacher, precision and set of training inputs; its name is a hash of them.
Rows are looked up by the digest of the sample that the student reads.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from npas.config import Config
from npas.sharing import api, is_shared
from npas.tasks.base import Batch, Task
from npas.tasks.common.checksums import bytes_of
from npas.training.distributed import Process
from npas.utils.files import reason, replacing
from npas.utils.progress import track

OF_EACH = ("class", "cell", "text", "span")  # outputs that do not depend on the rest of a batch
CHUNK = 64  # samples per forward pass, so that the logits do not depend on the batch size
Teach = Callable[[Batch], Mapping[str, Tensor]]


class TeacherCache:
    """A teacher's logits for all training samples, in a file that the first step writes."""

    def __init__(self, config: Config, task: Task, teacher: nn.Module, process: Process) -> None:
        assert config.distill.cache is not None
        self.task, self.process = task, process
        refuse_changing(task)
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
        for name, tensor in teacher.state_dict().items():
            named.update(name.encode() + bytes_of(tensor))
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


def refuse_changing(task: Task) -> None:
    """Raise ValueError if a sample's inputs change from epoch to epoch."""
    index_B = torch.arange(min(CHUNK, task.train_size), device=task.device)
    changes = task.spec.outputs not in OF_EACH or type(task).sampler is not Task.sampler
    if changes or len({tuple(digests(task.collate(index_B, e, 0))) for e in range(3)}) > 1:
        raise ValueError(
            f"distill.cache: the inputs of {task.name} change in every epoch (augmented, masked or"
            " cut at random): set distill.cache=null, which runs the teacher in every step"
        )


def digests(batch: Batch) -> list[bytes]:
    """Return a digest of each sample's inputs."""
    named = batch.inputs if isinstance(batch.inputs, dict) else {"": batch.inputs}
    found: Sequence[Any] = [hashlib.blake2b(digest_size=16) for _ in range(batch.size)]
    for name in sorted(named):
        rows = named[name].detach().cpu().contiguous().reshape(batch.size, -1)
        for each, row in zip(found, rows, strict=True):
            each.update(bytes_of(row))
    return [each.digest() for each in found]
