"""Run a command: compose its config with Hydra, check it, do the work, answer with an exit code.

    Exit code 0: done. 1: a run failed or diverged. 2: invalid arguments or files; one line
    on stderr says what to change. 75: stopped by a signal; the same command goes on.

`NPAS_DEBUG=1` or `hydra.verbose=true` adds the traceback to that line.

Hydra brings the sweeps (`-m`, `hydra/launcher=...`), `--cfg job` and `--help`. A sweep's jobs are
all composed and checked before the first of them starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

from npas.cli import app, errors, sweep
from npas.utils import signals

T = TypeVar("T")


def main(command: app.Command[T], argv: Sequence[str] | None = None) -> int:
    """Run `command` with these arguments (None: sys.argv's); return the exit code."""
    # Threads that spin while they wait make a run on a busy machine many times slower. OpenMP
    # reads this when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    with app.one_line_messages(command.name):
        try:
            arguments = _accepted(arguments)
            sweeps = (
                errors.parse_arguments(arguments).multirun or "hydra.mode=MULTIRUN" in arguments
            )
            jobs = sweep.run(command, arguments) if sweeps else _single(command, arguments)
        except SystemExit as stop:  # Hydra has answered --help or the like
            return int(stop.code or 0)
        except KeyboardInterrupt:
            app.say(command.name, f"interrupted{command.after_interrupt}")
            return 130
        except signals.Preempted:
            app.say(command.name, f"stopped by a signal{command.after_interrupt}")
            return signals.EXIT_CODE
        except app.Reported:
            return 1
        except Exception as error:
            if signals.requested():  # a library has made another exception of Preempted
                app.say(command.name, f"stopped by a signal{command.after_interrupt}")
                return signals.EXIT_CODE
            return 2 if app.explain(error, command, arguments) else 1
    if any(job.status in (app.PREEMPTED, app.WAITING) for job in jobs):
        return signals.EXIT_CODE
    return 0 if all(job.fine for job in jobs) else 1


def _single(command: app.Command[T], arguments: list[str]) -> list[app.Job]:
    jobs: list[app.Job] = []
    app.compose(command, arguments, lambda raw: jobs.append(command.run(command.check(raw))))
    return jobs


def _accepted(arguments: Sequence[str]) -> list[str]:
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
