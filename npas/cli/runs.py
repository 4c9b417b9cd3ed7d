"""List, compare and delete runs.

  npas-runs                                       all below runs/
  npas-runs exp=digits budget=0.1,0.25 status=done optim.lr=0.1 sort=-value
  npas-runs root=results/runs format=csv          or json
  npas-runs compare DIR DIR                       config, metrics, curves
  npas-runs clean status=failed,damaged           asks first; yes=true does not

A filter names a column (exp, budget, seed, status, metric, value, used,
seconds, folder) or any key of a run's config. An `unfinished` run has no
result: it is being trained or was killed.
Exit code 0: done, 1: not all were deleted, 2: invalid arguments.
"""

# Neither torch nor Hydra is imported, so that listing a thousand runs takes less than a second.
import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import npas
from npas.cli import app
from npas.config import CONFIG_FILE
from npas.reporting import run_index
from npas.reporting.run_index import COLUMNS, Run
from npas.utils.printing import columns

NAME = "npas-runs"
OPTIONS = {"root": "runs", "sort": "", "format": "table", "yes": "false"}
FORMATS = ("table", "csv", "json")
POINTS = 10  # of a curve, at most


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-runs and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(args):
        app.echo((__doc__ or "").rstrip())
        return 0
    if "--version" in args:
        app.echo(f"npas {npas.__version__}")
        return 0
    try:
        with app.one_line_messages(NAME):
            if args[:1] == ["compare"]:
                _compare(args[1:])
            elif args[:1] == ["clean"]:
                return _clean(args[1:])
            else:
                _list(args)
    except ValueError as error:
        app.say(NAME, str(error))
        return 2
    except KeyboardInterrupt:
        app.say(NAME, "interrupted: nothing more is deleted")
        return 130
    return 0


def _parse(args: Sequence[str], own: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return a command's options and the filters. Raises ValueError for malformed arguments."""
    options = {key: OPTIONS[key] for key in own}
    wanted: dict[str, str] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{arg!r} is not key=value: see {NAME} --help")
        key = "root" if key == "run_root" else key  # its name in npas-train
        (options if key in options else wanted)[key] = value
    return options, wanted


def _select(root: str, wanted: dict[str, str]) -> list[Run]:
    """Return the runs below a folder that match the filters. Raises ValueError."""
    runs = run_index.collect(Path(root))
    run_index.check_keys(runs, wanted)
    return run_index.select(runs, wanted)


def _list(args: Sequence[str]) -> None:
    options, wanted = _parse(args, ("root", "sort", "format"))
    if options["format"] not in FORMATS:
        raise ValueError(f"format must be {', '.join(FORMATS)}, got {options['format']!r}")
    runs = _select(options["root"], wanted)
    if options["sort"]:
        runs = run_index.order(runs, options["sort"])
    rows = [{key: getattr(run, key) for key in COLUMNS} for run in runs]
    if options["format"] == "json":
        app.echo(json.dumps(rows, indent=1))
    elif options["format"] == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *(row.values() for row in rows)])
        app.echo(text.getvalue().rstrip("\n"))
    else:
        _print(runs)


def _print(runs: Sequence[Run]) -> None:
    rows = [COLUMNS, *([*run.cells().values()] for run in runs)]
    for line in columns(rows, right=(2, 5, 6, 7)) if runs else ():
        app.echo(line)
    app.echo(f"{len(runs)} runs" if len(runs) != 1 else "1 run")


def _compare(args: Sequence[str]) -> None:
    if len(args) != 2:
        raise ValueError(f"compare takes two folders of runs: {NAME} compare DIR DIR")
    runs = [run_index.read(Path(folder)) for folder in args]
    for run, folder in zip(runs, args, strict=True):
        if run.result is None and not Path(folder, CONFIG_FILE).exists():
            raise ValueError(f"{folder} holds no run: name a run's folder")
    _print(runs)
    ours, theirs = (run.config() for run in runs)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    _side_by_side("config", {key: (ours.get(key), theirs.get(key)) for key in keys})
    last, other = (run.last for run in runs)
    _side_by_side("metrics", {key: (last.get(key), other.get(key)) for key in {**last, **other}})
    curves, others = map(run_index.curves, runs)
    for name, values in curves.items():
        beside = others.get(name, {})
        steps = sorted(values.keys() & beside.keys())
        chosen = steps[:: -(-len(steps) // POINTS) or 1]
        chosen += steps[-1:] if chosen[-1:] != steps[-1:] else []
        _side_by_side(f"{name} at", {str(step): (values[step], beside[step]) for step in chosen})


def _side_by_side(heading: str, pairs: dict[str, tuple[object, object]]) -> None:
    def shown(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)

    if pairs:
        rows = [[heading, "first", "second"]]
        rows += [[key, *map(shown, pair)] for key, pair in pairs.items()]
        for line in ["", *columns(rows, right=())]:
            app.echo(line)


def _clean(args: Sequence[str]) -> int:
    """Delete runs after asking, except those being trained; return the exit code."""
    from npas.utils import files

    options, wanted = _parse(args, ("root", "yes"))
    if options["yes"] not in ("true", "false"):
        raise ValueError(f"yes must be true or false, got {options['yes']!r}")
    if not wanted:
        raise ValueError("clean needs a filter, as status=failed: without one it would delete all")
    runs = _select(options["root"], wanted)
    _print(runs)
    if not runs:
        return 0
    if options["yes"] == "false":
        if not sys.stdin.isatty():
            raise ValueError("clean asks on a terminal only: yes=true deletes without asking")
        try:
            answer = input(f"delete these {len(runs)} folders? [y/N] ").strip().lower()
        except EOFError:  # Ctrl-D
            answer = "no"
        if answer not in ("y", "yes"):
            app.echo("nothing was deleted")
            return 0
    deleted = 0
    for run in runs:
        folder = Path(run.folder)
        try:
            if folder.is_symlink() or folder.parent.is_symlink():
                raise ValueError("is behind a symbolic link")
            with files.locked(folder.with_name(f".{folder.name}.lock"), wait=False):
                if not run_index.select([run_index.read(folder)], wanted):
                    raise ValueError("has changed since it was listed")
                shutil.rmtree(folder)
            deleted += 1
        except BlockingIOError:
            app.say(NAME, f"{folder} is being trained: not deleted")
        except (ValueError, OSError) as error:
            app.say(NAME, f"{folder} {files.reason(error)}: not deleted")
    app.echo(f"deleted {deleted} of {len(runs)}")
    return 0 if deleted == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
