"""Write a run's network as the plain dense network that it computes, or as few bytes.

npas-export run=runs/digits/budget-0.1_seed-0_1f0c2a9b
npas-export run=... format=safetensors out=network.safetensors
npas-export run=... format=artifact bits=6            # quantized, compressed, still shared
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas.cli import app, entry, runs
from npas.cli.app import Job

if TYPE_CHECKING:
    from npas.training import Experiment

NAME = "npas-export"


@dataclass(frozen=True)
class Export:
    """The keys of npas-export; without `out` the file lies in the run's folder.

    The last three are for artifacts; null: as the run's own.
    """

    run: str
    format: Literal["safetensors", "artifact"] = "safetensors"
    out: str | None = None
    bits: Literal[8, 6] | None = None
    scheme: Literal["rows", "golf"] | None = None
    compression: Literal["zlib", "lzma", "none"] | None = None

    def __post_init__(self) -> None:
        if self.format != "artifact" and (given := self.packing):
            raise ValueError(f"{next(iter(given))} needs format=artifact: set both, or none")
        if self.out is not None:  # before a network is loaded for it
            path = Path(self.out)
            if not path.name or self.out.endswith(os.sep) or (path.exists() and not path.is_file()):
                text = f"is no file: name one, as out={path / 'network.safetensors'}"
                raise ValueError(f"out={self.out} {text}")

    @property
    def packing(self) -> dict[str, Any]:
        """Return what was said of how an artifact is packed."""
        names = ("bits", "scheme", "compression")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Export the run that the arguments name; see the top of this file."""
    return entry.main(app.Command.of(NAME, "export", Export, run), argv)


def run(options: Export) -> Job:
    """Write the newest checkpoint's network, materialized or packed, whole or not at all."""
    experiment = runs.restore(options.run, {"trainer.device": "cpu"})
    if options.format == "artifact":
        return _write_artifact(options, experiment)

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from npas import sharing
    from npas.sharing import pruning
    from npas.tasks.base import inference_flops
    from npas.tasks.common.files import give_usual_mode
    from npas.training.checkpoint import apart

    model = experiment.model
    if experiment.allocation is not None:
        model = sharing.materialize(model)
    if pruned := pruning.has_masks(model):
        pruning.shrink(model)
    out = Path(options.out or Path(options.run) / "export" / "model.safetensors")
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    described = {"format": "pt", "model": json.dumps(asdict(experiment.config.model))}
    if experiment.unfinished:
        described["unfinished"] = experiment.unfinished
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(apart(model.state_dict()), temporary, described)
        give_usual_mode(temporary)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{out} cannot be written ({reason}): name another file as out=") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    said = f"a dense network of {sharing.count_parameters(model):,} parameters"
    if pruned:
        said += f" and {inference_flops(model, experiment.task.spec):,} FLOPs an input, pruned"
    print(f"{out}: {said}")
    if experiment.unfinished:
        print(experiment.unfinished)
    return Job(options.run)


def _write_artifact(options: Export, experiment: Experiment) -> Job:
    """Write the network as an artifact; ValueError if it is over the run's budget in bytes."""
    from npas.sharing.artifact import write_artifact

    config = experiment.config
    packing = replace(config.artifact, **options.packing)
    out = Path(options.out or Path(options.run) / "export" / "artifact.npas")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        found = write_artifact(experiment.model, out, **packing.keywords, cap=config.cap)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): name another") from None
    print(
        f"{out}: {found.bytes:,} bytes ({packing.words}; {found.bytes_before_compression:,} before"
        " compression)"
    )
    if experiment.unfinished:
        print(experiment.unfinished)
    return Job(options.run)
