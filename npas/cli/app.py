"""Shared by all commands: jobs, messages, and composing a config with Hydra."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import string
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from npas.cli import arguments
from npas.config import CONFIG_FILE
from npas.utils import processes
from npas.utils.files import reason
from npas.utils.printing import print_line

DEFAULT_EXP = "digits"  # of train.yaml
# The status of a job that a signal stopped, and of the later jobs of its sweep.
PREEMPTED, WAITING = "preempted", "waiting"

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """How a job ended: `status` is that of a result file, or "skipped"."""

    name: str
    status: str = "done"
    detail: str = ""

    @property
    def fine(self) -> bool:
        """Return whether the job succeeded."""
        return self.status in ("done", "skipped")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command: `check` is quick and raises ValueError, `run` does the work."""

    name: str
    primary: str  # the YAML of npas.configs that it composes
    keys: Callable[[], Collection[str]]  # full names, for suggestions
    check: Callable[[dict[str, Any]], T]
    run: Callable[[T], Job]
    close_sweep: Callable[[list[Job]], None] | None = None
    after_interrupt: str = ""  # appended to the message of an interrupt


class Reported(Exception):
    """Ends a process that failed and has printed its message."""


class RunFailed(Exception):
    """Carries a failed job through a launcher or a sweeper."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job


def say(command: str, line: str) -> None:
    """Print a line on stderr, in the main process only."""
    if processes.is_main_process():
        print_line(f"{command}: {line}", sys.stderr)


def say_always(line: str) -> None:
    """Print a line on stderr, in any process."""
    print_line(line, sys.stderr)


def echo(line: str) -> None:
    """Print a line or more on stdout; if it is closed, as by `| head`, print nothing more."""
    print_line(line, sys.stdout)


@contextlib.contextmanager
def _echoed() -> Iterator[None]:
    """Print by `echo` what is printed within."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    echo(text.getvalue().removesuffix("\n"))


@contextlib.contextmanager
def hydra(name: str) -> Iterator[Any]:
    """Initialize Hydra with the YAMLs of npas.configs."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("npas.configs", name, version_base="1.3"):
        yield GlobalHydra.instance().hydra


def compose(
    name: str, primary: str, options: argparse.Namespace, task: Callable[[dict[str, Any]], object]
) -> None:
    """Compose the config `primary` and call `task`, or run one of Hydra's flags such as --cfg."""
    failures: list[Exception] = []

    def run(config: Any) -> None:
        try:
            task(plain(config))
        except Exception as error:
            failures.append(error)  # Hydra would print it in its own format

    shown = {"package": options.package, "resolve": options.resolve}
    config = {"config_name": options.config_name or primary, "overrides": options.overrides}
    with hydra(name) as instance:
        if options.help:
            echo(_help(config["config_name"], options))
        elif options.hydra_help:
            with _echoed():
                instance.hydra_help(config["config_name"], arguments.flags(), options)
        elif options.cfg:
            try:
                with _echoed():
                    instance.show_cfg(**config, cfg_type=options.cfg, **shown)
            except SystemExit:  # Hydra has said which part is missing
                raise ValueError(f"--package {options.package} is not in the config") from None
        elif options.info:
            with _echoed():
                instance.show_info(options.info, **config)
        elif options.shell_completion:
            try:
                instance.shell_completion(**config)
            except KeyError as error:
                raise ValueError(f"--shell-completion: the shell sets {error}") from None
        else:
            instance.run(**config, task_function=run, with_log_configuration=False)
    if failures:
        raise failures[0]


def _help(config_name: str, options: argparse.Namespace) -> str:
    """Return a command's help. Hydra would list all groups of files first, for a second or two."""
    from hydra import compose
    from omegaconf import OmegaConf

    composed = compose(config_name, options.overrides, return_hydra_config=True)
    keys = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    page = string.Template(composed.hydra.help.template)
    return page.safe_substitute(CONFIG=OmegaConf.to_yaml(keys, resolve=options.resolve))


def check_out(out: str | None, suffix: str = "") -> None:
    """Raise ValueError if `out` cannot be written as a file of this suffix, or as a folder.

    Existing files of other kinds and those of a run or a saved network are not replaced.
    """
    if out is None:
        return
    path, exists = Path(out), Path(out).exists()
    if suffix:
        if not path.name or out.endswith(os.sep) or (exists and not path.is_file()):
            raise ValueError(f"out={out} is not a file: name one, as out={path / f'new{suffix}'}")
        if exists and path.suffix != suffix:
            raise ValueError(f"out={out} exists and is not a {suffix} file: name another")
        folder, kept = path.absolute().parent, ["allocation.json", "folding.json"]
    else:
        if exists and not path.is_dir():
            raise ValueError(f"out={out} is a file: name a folder")
        folder, kept = path.absolute(), ["checkpoints"]
    above = [p for p in (folder, folder.parent) if p.name == "checkpoints"]
    in_run = any((p.parent / CONFIG_FILE).exists() for p in above)
    if in_run or any((folder / name).exists() for name in kept):
        raise ValueError(f"out={out} would mix with the files of a run or network: name another")


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Create the folder of `out`, and turn errors while `out` is written into a ValueError."""
    from safetensors import SafetensorError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        why = reason(error)
        raise ValueError(f"{out} cannot be written ({why}): name another as out=") from None


def plain(config: Any) -> dict[str, Any]:
    """Return a composed config as plain data.

    An experiment file without `exp` gets its own name. Raises OmegaConfBaseException if a value is
    missing.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    chosen = HydraConfig.get().runtime.choices.get("exp") if HydraConfig.initialized() else None
    if isinstance(chosen, str) and raw.get("exp") == DEFAULT_EXP:
        raw["exp"] = Path(chosen).stem
    return {str(key): value for key, value in raw.items()}


def explain(error: Exception, command: Command[T], args: Collection[str]) -> str | None:
    """Print and return a user error's message; of other errors, print the traceback."""
    line = arguments.explain(error, command.keys(), arguments.config_dir(args))
    if line is None or os.environ.get("NPAS_DEBUG") == "1" or "hydra.verbose=true" in args:
        traceback.print_exception(error)
    if line is not None:
        say(command.name, line)
    return line


@contextlib.contextmanager
def one_line_messages(name: str) -> Iterator[None]:
    """Print log records of npas and warnings as single lines, without code locations."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            say(name, f"{level}{record.getMessage()}")

    def show(message: Warning | str, *args: object, **kwargs: object) -> None:
        say(name, f"warning: {' '.join(str(message).split())}")

    log, handler = logging.getLogger("npas"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
