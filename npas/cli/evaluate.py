"""Evaluate the checkpoint of a run.

npas-eval run=runs/digits/budget-0.1_seed-0_1f0c2a9b
npas-eval run=runs/wrn_cifar100/... split=val data.root=/data format=json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from npas._schema import build, keys_of
from npas.cli import app, runs
from npas.cli.app import Job

NAME = "npas-eval"


@dataclass(frozen=True)
class Evaluate:
    """Hold npas-eval's keys."""

    run: str | None = None
    split: Literal["test", "val"] = "test"
    format: Literal["table", "json"] = "table"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: runs.Data = field(default_factory=runs.Data)

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run is missing: name a run's folder, as run=runs/digits/...")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the run that the words name; see the top of this file."""
    return app.main(app.Command(NAME, "evaluate", keys, check, run), argv)


def keys() -> set[str]:
    """Return the full names of the keys."""
    return set(keys_of(Evaluate))


def check(raw: dict[str, Any]) -> Evaluate:
    """Check the keys; ValueError."""
    return build(Evaluate, raw)


def run(options: Evaluate) -> Job:
    """Print the metrics of the run's newest checkpoint."""
    assert options.run is not None
    experiment = runs.restore_to_measure(options.run, options.device, options.data, options.split)
    from npas.training.metrics import Diverged, measure
    from npas.training.precision import Precision

    config, task, device = experiment.config, experiment.task, experiment.process.device
    precision = Precision(config.precision, device)
    try:
        metrics = measure(task, experiment.model, precision, options.split, experiment.process)
    except Diverged as error:
        app.say(NAME, str(error))
        return Job(options.run, "diverged", str(error))
    if options.format == "json":
        print(json.dumps(metrics))
    else:
        for name, value in metrics.items():
            print(f"{name} {value:.4f}")
    return Job(options.run)


if __name__ == "__main__":
    sys.exit(main())
