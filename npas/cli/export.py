"""Write a run's network as the plain dense network that it computes.

npas-export run=runs/digits/budget-0.1_seed-0_1f0c2a9b
npas-export run=... format=safetensors out=network.safetensors
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from npas._schema import build, keys_of
from npas.cli import app, runs
from npas.cli.app import Job

NAME = "npas-export"


@dataclass(frozen=True)
class Export:
    """Hold npas-export's keys; without `out` the file lies in the run's folder."""

    run: str | None = None
    format: Literal["safetensors"] = "safetensors"
    out: str | None = None

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run is missing: name a run's folder, as run=runs/digits/...")


def main(argv: Sequence[str] | None = None) -> int:
    """Export the run that the words name; see the top of this file."""
    return app.main(app.Command(NAME, "export", keys, check, run), argv)


def keys() -> set[str]:
    """Return the full names of the keys."""
    return set(keys_of(Export))


def check(raw: dict[str, Any]) -> Export:
    """Check the keys; ValueError."""
    return build(Export, raw)


def run(options: Export) -> Job:
    """Materialize the newest checkpoint's network and write it, whole or not at all."""
    assert options.run is not None
    experiment = runs.restore(options.run, {"trainer.device": "cpu"})

    from safetensors.torch import save_file

    from npas import sharing

    model = experiment.model
    if experiment.allocation is not None:
        model = sharing.materialize(model)
    out = Path(options.out or Path(options.run) / "export" / "model.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    described = {"format": "pt", "model": json.dumps(asdict(experiment.config.model))}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary, described)
    os.replace(temporary, out)
    print(f"{out}: a dense network of {sharing.count_parameters(model):,} parameters")
    return Job(options.run)


if __name__ == "__main__":
    sys.exit(main())
