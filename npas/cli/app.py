"""Run a command: compose its config with Hydra, check it, do the work, answer with an exit code.

    Exit code 0: done. 1: a run failed or diverged. 2: invalid arguments or files; one line
    on stderr says what to change. 75: stopped by a signal; the same command goes on.

`NPAS_DEBUG=1` or `hydra.verbose=true` adds the traceback to that line.

Hydra brings the sweeps (`-m`, `hydra/launcher=...`), `--cfg job` and `--help`. A sweep's jobs are
all composed and checked before the first of them starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from npas.cli import errors
from npas.utils import processes, signals
from npas.utils.printing import print_line

# The status of a job that a signal has stopped, and of those of its sweep that it left undone.
PREEMPTED, WAITING = "preempted", "waiting"

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """How a job ended: `status` as in a result file, or skipped; `detail` is for reading."""

    name: str
    status: str = "done"
    detail: str = ""
    value: float | None = None  # by which a sweeper may search: more is better

    @property
    def fine(self) -> bool:
        """Return whether there is nothing to repeat."""
        return self.status in ("done", "skipped")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command: `check` is quick and raises ValueError, `run` does the work."""

    name: str
    primary: str  # the YAML of npas.configs that it composes
    keys: Callable[[], Collection[str]]  # their full names, to suggest from
    check: Callable[[dict[str, Any]], T]
    run: Callable[[T], Job]
    close_sweep: Callable[[list[Job]], None] | None = None
    # As `run`, with less output; whether its value is needed, as by a sweeper that searches.
    run_in_sweep: Callable[[T, bool], Job] | None = None
    after_interrupt: str = ""  # what to say of it


class Reported(Exception):
    """Ends a process that failed; its message has been printed."""


class RunFailed(Exception):
    """Passes a failed job through a launcher or a sweeper to what started the sweep."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job


def main(command: Command[T], argv: Sequence[str] | None = None) -> int:
    """Run `command` with these arguments (None: sys.argv's); return the exit code."""
    # Threads that spin while they wait make a run on a busy machine many times slower. OpenMP
    # reads this when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    with one_line_messages(command.name):
        try:
            arguments = _opened(arguments)
            sweeps = (
                errors.parse_arguments(arguments).multirun or "hydra.mode=MULTIRUN" in arguments
            )
            jobs = _swept(command, arguments) if sweeps else _single(command, arguments)
        except SystemExit as stop:  # Hydra has answered --help or the like
            return int(stop.code or 0)
        except KeyboardInterrupt:
            say(command.name, f"interrupted{command.after_interrupt}")
            return 130
        except signals.Preempted:
            say(command.name, f"stopped by a signal{command.after_interrupt}")
            return signals.EXIT_CODE
        except Reported:
            return 1
        except Exception as error:
            if signals.requested():  # a library has made another exception of Preempted
                say(command.name, f"stopped by a signal{command.after_interrupt}")
                return signals.EXIT_CODE
            return 2 if explain(error, command, arguments) else 1
    if any(job.status in (PREEMPTED, WAITING) for job in jobs):
        return signals.EXIT_CODE
    return 0 if all(job.fine for job in jobs) else 1


def _opened(arguments: Sequence[str]) -> list[str]:
    """Return arguments that Hydra accepts: flags anywhere, keys that a YAML leaves out.

    With the pluses `model.KEY=` and `task.KEY=` reach the check against the family's schema, and
    `run=DIR` the commands that compose a config and may take a stored one instead. With
    quotes a value may hold what its grammar refuses, as the letters of a path do in most languages.
    """
    closed = ("model.", "task.", "run=")
    opened = [f"++{word}" if word.startswith(closed) else word for word in arguments]
    opened = [_quoted(word) for word in opened]
    with contextlib.suppress(ValueError):  # which is raised, and answered, when they are parsed
        # argparse, as Hydra calls it, reads no overrides behind a flag that stands among them.
        overrides = errors.parse_arguments(opened).overrides
        flags = [*opened]
        for word in overrides:
            flags.remove(word)
        return flags + overrides
    return opened


def _quoted(word: str) -> str:
    """Quote a plain value that has characters outside of Hydra's grammar; leave all else alone."""
    plain = re.fullmatch(r"(\+{0,2}[A-Za-z_][\w./@]*=)([^'\"\[\](){},$\\~]+)", word)
    if plain and not re.fullmatch(r"[\w\s/.:%*@?|+-]*", plain[2], re.ASCII):
        return f'{plain[1]}"{plain[2]}"'
    return word


def say(command: str, line: str) -> None:
    """Print a line on stderr, beside the command's own output; of several processes the first."""
    if processes.is_main_process():
        print_line(f"{command}: {line}", sys.stderr)


def say_always(line: str) -> None:
    """Print a line on stderr, whichever of several processes this is."""
    print_line(line, sys.stderr)


def tell(line: str) -> None:
    """Print a line of a command's output; a reader who has gone ends no training."""
    print_line(line, sys.stdout)


def _debugging(arguments: Sequence[str]) -> bool:
    """Return whether the user wants tracebacks."""
    return os.environ.get("NPAS_DEBUG") == "1" or "hydra.verbose=true" in arguments


def _single(command: Command[T], arguments: list[str]) -> list[Job]:
    jobs: list[Job] = []
    compose(command, arguments, lambda raw: jobs.append(command.run(command.check(raw))))
    return jobs


def _swept(command: Command[T], arguments: list[str]) -> list[Job]:
    from npas.cli import sweep

    return sweep.run(command, arguments)


def compose(
    command: Command[T], arguments: list[str], task: Callable[[dict[str, Any]], float | None]
) -> None:
    """Compose with Hydra and call `task` with each config, as plain data."""
    import hydra
    from omegaconf import DictConfig

    failures: list[Exception] = []
    parent = os.getpid()

    def run(config: DictConfig) -> float | None:
        try:
            return task(plain(config))
        except Exception as error:
            if os.getpid() != parent or isinstance(error, RunFailed):
                raise
            failures.append(error)  # kept from Hydra, which would print it in its own way
            return None

    configured = hydra.main(
        version_base="1.3", config_path="pkg://npas.configs", config_name=command.primary
    )
    with _command_line(command.name, arguments):
        configured(run)()
    if failures:
        raise failures[0]


def plain(config: Any) -> dict[str, Any]:
    """Return a composed config as plain data; an OmegaConfBaseException if a value is missing."""
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}


def explain(error: Exception, command: Command[T], arguments: Sequence[str]) -> str | None:
    """Print the error's line, and the traceback if asked for or if it is a fault of ours."""
    line = errors.explain(error, command.keys(), arguments)
    if line is None or _debugging(arguments):
        traceback.print_exception(error)
    if line is not None:
        say(command.name, line)
    return line


@contextlib.contextmanager
def _command_line(name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Make Hydra read `arguments` in place of sys.argv, and raise its errors."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [name, *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        del os.environ["HYDRA_FULL_ERROR"]
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextlib.contextmanager
def one_line_messages(name: str) -> Iterator[None]:
    """Print what npas logs and what warns as lines of this command, without places in the code."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        say(name, f"warning: {' '.join(str(message).split())}")

    log, handler = logging.getLogger("npas"), _Lines(name)
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


class _Lines(logging.Handler):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.command = name

    def emit(self, record: logging.LogRecord) -> None:
        grave = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        say(self.command, f"{grave}{record.getMessage()}")
