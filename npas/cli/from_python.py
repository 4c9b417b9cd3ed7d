"""`npas-train` as a function: `npas.train(["+exp=digits", "budget=0.1"])`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas.cli import app, arguments, experiments
from npas.cli import train as command
from npas.config import Config
from npas.config.renames import modernize
from npas.utils import signals

if TYPE_CHECKING:
    from npas.reporting.results import Result

Callback = Callable[[dict[str, Any]], object]


def train(
    config: Sequence[str] | Mapping[str, Any] | Config, callbacks: Sequence[Callback] = ()
) -> Result:
    """Train one run in its folder, unless it is done already, and return its result.

    `config` is a list of the arguments of `npas-train`, or a complete config as in a run's
    `config.yaml`. Each callback is called with every record of `log.jsonl`, a dict with "step",
    "epoch" and figures, and at the end with "status" and the final metrics. An exception in a
    callback ends the run, and the same call resumes it. A signal ends it too, after its step.

    The result's `status` is done, diverged, preempted or failed (with `error`). Raises ValueError
    for an invalid config or missing data.
    """
    if isinstance(config, str) or not isinstance(config, (Sequence, Mapping, Config)):
        raise ValueError(f"npas.train takes a list of arguments: write npas.train([{config!r}])")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError("callbacks must be a list of functions of one dict")
    with app.one_line_messages("npas.train"), signals.watching("deliver"):
        checked = check(config)
        if checked.dry_run:
            raise ValueError("dry_run=true has no result to return: use npas-train for it")
        if callbacks and checked.trainer.devices > 1:
            raise ValueError(
                f"trainer.devices={checked.trainer.devices} trains in processes of their own, which"
                " call no callbacks: leave one of the two out"
            )
        from npas.reporting import results
        from npas.training.journal import listening

        folder = schema.run_dir(checked)
        try:
            with listening(callbacks):
                job = command.run(checked)
        except app.Reported:
            raise RuntimeError(f"the training failed in another process: {folder}") from None
        try:
            result = results.read(folder)
        except (OSError, ValueError) as error:
            raise ValueError(job.detail or str(error)) from None
        last = {} if result.metrics is None else result.metrics.last
        record = {"step": result.steps, "epoch": result.epochs, "status": result.status, **last}
        for callback in callbacks:
            callback(record)
    return result


def check(config: Sequence[str] | Mapping[str, Any] | Config) -> Config:
    """Compose and check a config. Raises ValueError."""
    if isinstance(config, Config):
        return command.as_started(config)
    if isinstance(config, Mapping):
        return command.as_started(experiments.check(modernize(dict(config))))
    args = [str(argument) for argument in config]
    if flags := [a for a in args if a.startswith("-") and not a.startswith("--config-dir")]:
        raise ValueError(f"{flags[0]} is for the command line only: npas.train runs one training")
    from npas.reporting.compose import suspended_hydra

    found: list[Config] = []
    try:
        options = arguments.parse(args, command.keys(), "train")
        if options.multirun:
            raise ValueError("npas.train runs one training: call it for each value of a sweep")
        with suspended_hydra():
            app.compose(
                command.NAME, "train", options, lambda raw: found.append(command.check(raw))
            )
    except Exception as error:
        line = arguments.explain(error, command.keys())
        if line is None:
            raise
        raise ValueError(line.replace("add -m to run each", "call it for each")) from None
    return found[0]
