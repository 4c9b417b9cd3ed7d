"""Export a trained network as an artifact and evaluate it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from npas.sharing.compression.artifact import read_artifact, write_artifact
from npas.training.checkpoint import Checkpoints
from npas.training.experiment import Experiment
from npas.training.metrics import measure
from npas.training.precision import Precision
from npas.training.state import load_weights
from npas.utils.packing import Artifact

FILE_NAME = "artifact.npas"


def export(experiment: Experiment, folder: Path) -> Artifact:
    """Write the newest checkpoint's network to `folder`, read it back and evaluate it on test data.

    Call it in all processes. The experiment's network then has the weights read back. Raises
    Refused, and writes nothing, if the artifact exceeds the budget in bytes.
    """
    config, model, process = experiment.config, experiment.model, experiment.process
    path, found = folder / FILE_NAME, None
    with process.together():
        if process.is_main:
            path.unlink(missing_ok=True)  # an artifact of older weights
            newest = Checkpoints(folder / "checkpoints").newest()
            assert newest is not None
            load_weights(model, newest)
            found = write_artifact(model, path, **config.artifact.keywords, cap=config.cap)
            read_artifact(path, model)
    found = process.from_leader(found)
    assert found is not None
    process.share_all(model)
    precision = Precision(config.precision, process.device)
    metrics = measure(experiment, precision, "test")
    return dataclasses.replace(found, metrics=metrics)
