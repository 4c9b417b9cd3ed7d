"""Evaluate the checkpoint of a run, and draw or print its outputs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from npas.cli import app, entry, experiments
from npas.cli.app import Job
from npas.config import SYNTHETIC
from npas.utils.checks import Ranged

if TYPE_CHECKING:
    from npas.tasks.base import Shown
    from npas.training import Experiment

NAME = "npas-eval"
MOST_SHOWN = 200  # samples on a page


@dataclass(frozen=True)
class Evaluate(Ranged):
    """The keys of npas-eval; `show` samples are drawn with the outputs, or printed if text."""

    run: str
    artifact: str | None = None
    split: Literal["test", "val"] = "test"
    show: Annotated[int, f"[0, {MOST_SHOWN}]"] = 0
    format: Literal["table", "json"] = "table"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: experiments.Data = field(default_factory=experiments.Data)


def run(options: Evaluate) -> Job:
    """Print the metrics of the run's newest checkpoint, and draw samples."""
    experiment = experiments.restore_to_measure(
        options.run, options.device, options.data, options.split, show=options.show > 0
    )
    from npas.sharing.compression.artifact import read_artifact
    from npas.training.metrics import Diverged, measure

    if options.artifact is not None:
        read_artifact(options.artifact, experiment.model)
    task = experiment.task
    shown: list[Shown] = []
    if options.show:
        with experiment.precision.autocast():
            shown = task.examples(experiment.model, options.split, options.show)
    try:
        metrics = measure(experiment, options.split)
    except Diverged as error:
        app.say(NAME, str(error))
        return Job(options.run, "diverged", str(error))
    is_text = all(picture.image is None for sample in shown for picture in sample.pictures)
    _print(options, metrics, experiment.unfinished, shown if is_text else [])
    folder = experiments.folder_of(options.run)
    if options.artifact is not None:  # not in place of the run's own files
        folder /= "artifact"
    try:
        for path in task.write_predictions(options.split, folder):
            app.say(NAME, f"predictions written to {path}")
        if not is_text:
            path = folder / f"show-{options.split}.png"
            _draw(options, experiment, shown, metrics[task.selection_metric], path)
            app.say(NAME, f"{path} shows {len(shown)} samples")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror or error})") from None
    return Job(options.run)


def _print(
    options: Evaluate, metrics: dict[str, float], unfinished: str | None, texts: list[Shown]
) -> None:
    """Print the metrics and the samples `texts`."""
    if options.format == "json":
        found: dict[str, Any] = {**metrics}
        if unfinished:
            found["unfinished"] = unfinished
        if texts:
            found["shown"] = [[s.heading, *(p.caption for p in s.pictures)] for s in texts]
        app.echo(json.dumps(found))
        return
    if unfinished:
        app.echo(unfinished)
    for name, value in metrics.items():
        app.echo(f"{name} {value:.4f}")
    for sample in texts:
        app.echo(f"\n--- {sample.heading!r}:")
        for picture in sample.pictures:
            app.echo(picture.caption)


def _draw(
    options: Evaluate, experiment: Experiment, shown: list[Shown], value: float, path: Path
) -> None:
    """Write the page of samples. Raises OSError if that fails."""
    from npas.reporting import picture_page

    config, task = experiment.config, experiment.task
    share = "" if config.budget is None else f", budget {config.budget}"
    title = f"{config.exp}{share}, seed {config.seed}: "
    title += f"{options.split} {task.selection_metric} {value:.2f}"
    if task.source == SYNTHETIC:
        title += " on synthetic data"
    if options.artifact is not None:
        title += f", {Path(options.artifact).name}"
    if experiment.unfinished:
        title += f" ({experiment.unfinished.partition(';')[0]})"
    path.parent.mkdir(exist_ok=True)
    picture_page.draw(shown, path, title)


main = entry.command(NAME, "evaluate", Evaluate, run)

if __name__ == "__main__":
    sys.exit(main())
