"""Run a command: compose its config with Hydra, check it, do the work, return an exit code.

    Exit code 0: done. 1: a run failed or diverged. 2: invalid arguments or files; a line on
    stderr says what to change. 75: stopped by a signal; the same command resumes.

`NPAS_DEBUG=1` or `hydra.verbose=true` adds the traceback to that line. Hydra provides sweeps (`-m`,
`hydra/launcher=...`), `--cfg job` and `--help`; the text is in the command's YAML in configs/. All
jobs of a sweep are composed and checked before the first one starts.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from npas.cli import app, arguments, sweep
from npas.config.typed import build, keys_of
from npas.utils import signals

T = TypeVar("T")


def command(name: str, primary: str, kind: type[T], run: Callable[[T], app.Job]) -> partial[int]:
    """Return the `main` of a command whose keys are the fields of a dataclass."""
    own = (lambda: set(keys_of(kind)), lambda raw: build(kind, raw), run)
    return partial(main, app.Command(name, primary, *own))


def main(command: app.Command[T], argv: Sequence[str] | None = None) -> int:
    """Run `command` with these arguments (None: sys.argv's); return the exit code."""
    # Threads that spin while they wait make a run on a busy machine many times slower. OpenMP
    # reads this when torch is imported, which happens later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if argv is None else argv)
    jobs: list[app.Job] = []

    def work(raw: dict[str, Any]) -> None:
        jobs.append(command.run(command.check(raw)))

    with app.one_line_messages(command.name):
        try:
            _require_directory()
            options = arguments.parse(args, command.keys(), command.primary)
            shows = options.cfg or options.help or options.hydra_help or options.info
            if options.multirun and not shows and not options.shell_completion:
                jobs = sweep.run(command, options)
            else:
                app.compose(command.name, command.primary, options, work)
        except SystemExit as stop:  # --version, or an error that Hydra has printed
            return int(stop.code or 0)
        except KeyboardInterrupt:
            app.say(command.name, f"interrupted{command.after_interrupt}")
            return 130
        except app.Reported:
            return 1
        except (Exception, signals.Preempted) as error:
            # A library may have turned Preempted into another exception.
            if not isinstance(error, Exception) or signals.requested():
                app.say(command.name, f"stopped by a signal{command.after_interrupt}")
                return signals.EXIT_CODE
            return 2 if app.explain(error, command, args) else 1
    if any(job.status in (app.PREEMPTED, app.WAITING) for job in jobs):
        return signals.EXIT_CODE
    return 0 if all(job.fine for job in jobs) else 1


def _require_directory() -> None:
    """Raise ValueError if the current directory has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current directory no longer exists: cd to another one") from None
