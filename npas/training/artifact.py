"""Export what a run has trained as an artifact, and measure the network that it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from npas.sharing.artifact import read_artifact, write_artifact
from npas.training.checkpoint import Checkpoints
from npas.training.experiment import Experiment
from npas.training.metrics import measure
from npas.training.precision import Precision
from npas.training.state import load_weights
from npas.utils.packing import Artifact

FILE_NAME = "artifact.npas"


def export(experiment: Experiment, folder: Path) -> Artifact:
    """Write the newest checkpoint's network to `folder`, read it back and measure that.

    All processes together; the experiment's network is then the one read back. Refused if the
    artifact is over the budget's bytes, and nothing is written then.
    """
    config, model, process = experiment.config, experiment.model, experiment.process
    path, found = folder / FILE_NAME, None
    with process.together():
        if process.is_main:
            path.unlink(missing_ok=True)  # of weights before these
            newest = Checkpoints(folder / "checkpoints").newest()
            assert newest is not None
            load_weights(model, newest)  # the averaged ones, where there are any
            found = write_artifact(model, path, **config.artifact.keywords, cap=config.cap)
            read_artifact(path, model)
    found = process.from_leader(found)
    assert found is not None
    process.share_all(model)
    precision = Precision(config.precision, process.device)
    metrics = measure(experiment.task, model, precision, "test", process)
    return dataclasses.replace(found, metrics=metrics)
