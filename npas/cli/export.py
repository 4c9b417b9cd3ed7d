"""Write a run's network as the plain dense network that it computes.

npas-export run=runs/digits/budget-0.1_seed-0_1f0c2a9b
npas-export run=... format=safetensors out=network.safetensors
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from npas.cli import app, entry, runs
from npas.cli.app import Job

NAME = "npas-export"


@dataclass(frozen=True)
class Export:
    """The keys of npas-export; without `out` the file lies in the run's folder."""

    run: str
    format: Literal["safetensors"] = "safetensors"
    out: str | None = None

    def __post_init__(self) -> None:
        if self.out is not None:  # before a network is loaded for it
            path = Path(self.out)
            if not path.name or self.out.endswith(os.sep) or (path.exists() and not path.is_file()):
                text = f"is no file: name one, as out={path / 'network.safetensors'}"
                raise ValueError(f"out={self.out} {text}")


def main(argv: Sequence[str] | None = None) -> int:
    """Export the run that the arguments name; see the top of this file."""
    return entry.main(app.Command.of(NAME, "export", Export, run), argv)


def run(options: Export) -> Job:
    """Materialize the newest checkpoint's network and write it, whole or not at all."""
    experiment = runs.restore(options.run, {"trainer.device": "cpu"})

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from npas import sharing
    from npas.tasks.common.files import give_usual_mode
    from npas.training.checkpoint import apart

    model = experiment.model
    if experiment.allocation is not None:
        model = sharing.materialize(model)
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
    print(f"{out}: a dense network of {sharing.count_parameters(model):,} parameters")
    if experiment.unfinished:
        print(experiment.unfinished)
    return Job(options.run)
