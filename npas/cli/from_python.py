"""Train from Python what `npas-train` would: `npas.train(["+exp=digits", "budget=0.1"])`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas.cli import app, arguments, runs
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

    `config` is what stands behind `npas-train` on a command line, a word each, or a whole config as
    a run's `config.yaml` has it. Each callback is called with every record that `log.jsonl` gets, a
    dict with "step", "epoch" and figures, and at the end with "status" and the final metrics. What
    one raises ends the run, which the same call continues. A signal ends it, too, after its step.

    Returns the result however the training ended: `status` is done, diverged, preempted or failed
    (and `error` says why). ValueError, in one line, for a config or data that cannot be.
    """
    if isinstance(config, str) or not isinstance(config, (Sequence, Mapping, Config)):
        raise ValueError(f"npas.train takes a list of arguments: write npas.train([{config!r}])")
    if not all(map(callable, callbacks)):
        raise ValueError("callbacks must be a list of functions of one dict")
    with app.one_line_messages("npas.train"), signals.watching("deliver"):
        checked = _checked(config)
        if checked.dry_run:
            raise ValueError("dry_run=true leaves no result: set it in npas-train alone")
        if callbacks and checked.trainer.devices > 1:
            raise ValueError(
                f"trainer.devices={checked.trainer.devices} trains in processes of their own, where"
                " no callback is called: leave one of the two out"
            )
        from npas.reporting import results
        from npas.training.listening import listening

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


def _checked(config: Sequence[str] | Mapping[str, Any] | Config) -> Config:
    """Return the checked config; ValueError."""
    if isinstance(config, Config):
        return command.as_started(config)
    if isinstance(config, Mapping):
        return command.as_started(runs.check(modernize(dict(config))))
    words = [str(word) for word in config]
    if flags := [w for w in words if w.startswith("-") and not w.startswith("--config-dir")]:
        raise ValueError(f"{flags[0]} is for a command line alone: npas.train runs one training")
    found: list[Config] = []
    train = app.Command(command.NAME, "train", command.keys, lambda raw: raw, lambda _: app.Job(""))

    def check(raw: dict[str, Any]) -> None:
        found.append(command.as_started(runs.check_arguments(raw)[0]))

    try:
        asked = arguments.parse(words, command.keys())
        if asked.multirun:
            raise ValueError("npas.train runs one training: call it for each value of a sweep")
        with _own_hydra():
            app.compose(train, asked, check)
    except Exception as error:
        line = arguments.explain(error, command.keys())
        if line is None:
            raise
        raise ValueError(line.replace("add -m to run each", "call it for each")) from None
    return found[0]


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the Hydra of a caller that is a Hydra application itself."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    outer, settings = GlobalHydra.instance(), HydraConfig.instance()
    hydra, cfg = outer.hydra, settings.cfg
    outer.hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, settings.cfg = hydra, cfg
