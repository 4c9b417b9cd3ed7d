"""Run what a table lacks, add the results and write the table again.

    python scripts/reproduce_table.py digits --estimate      # list what is missing; writes nothing
    python scripts/reproduce_table.py digits
    python scripts/reproduce_table.py digits --write-only    # only from existing results

Each missing run is a separate `npas-train`, so a failed one does not stop the rest. Finished runs
are copied to results/runs/; the table and its plot go to results/tables/.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from npas.reporting import definitions, plots, tables
from npas.reporting.results import collect
from npas.reporting.tables import Cell, Table


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduce a table; return 1 if a run failed, 2 for invalid arguments, else 0."""
    options = _parse(argv)
    try:
        return reproduce(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def reproduce(options: argparse.Namespace) -> int:
    """Run or list the missing runs and write the table; return the exit code."""
    table = definitions.table(options.table)
    if not options.estimate:
        adopt(table, options.run_root, options.results)
    cells = tables.load(table, options.run_root, options.results / "runs")
    todo = [(cell, seed) for cell in cells for seed in cell.missing(table)]
    print(estimate(table, cells, len(todo)))
    if options.estimate:
        for cell, seed in todo:
            print(f"  {cell.row.command([seed])}")
        return 0

    failed = []
    for index, (cell, seed) in enumerate(() if options.write_only else todo, 1):
        overrides = cell.row.command([seed]).split()[1:]
        print(f"[{index}/{len(todo)}] npas-train {' '.join(overrides)}", flush=True)
        command = [*options.command, *overrides, f"run_root={options.run_root}"]
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        adopt(table, options.run_root, options.results)
        if code:
            failed.append(f"exit code {code}: npas-train {' '.join(overrides)}")
    write(table, options.results)
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def adopt(table: Table, run_root: Path, results: Path) -> None:
    """Copy the table's finished runs into the results; existing ones are kept."""
    runs = collect(run_root)
    wanted = {
        result.config_hash
        for cell in tables.fill(table, runs.values())
        for result in cell.having("done", "diverged").values()
    }
    for path, result in runs.items():
        kept = results / "runs" / path.relative_to(run_root)
        if result.config_hash in wanted and not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)


def estimate(table: Table, cells: Sequence[Cell], runs: int) -> str:
    """Return the number of missing runs and an estimate of their time from existing ones."""
    if not runs:
        return f"table {table.name}: every result is there."
    text = f"table {table.name}: {runs} runs are missing"
    times = [result.wall_s for cell in cells for result in cell.having("done").values()]
    if not times:
        return f"{text}; their experiments in configs/exp/ say how long one takes."
    seconds = statistics.median(times)
    return f"{text}, about {runs * seconds / 60:.0f} min at {seconds:.0f} s each (median so far)."


def write(table: Table, results: Path) -> None:
    """Write the table and its plot."""
    cells = tables.load(table, results / "runs")
    page = results / "tables" / f"{table.name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    text = tables.markdown(table, cells)
    page.write_text(text, encoding="utf-8")
    print(f"{text}\nwrote {page}")
    if table.plotted:
        draw = table.draw or plots.against_parameters
        for path in draw(table, cells, page.with_suffix("")):
            print(f"wrote {path}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", help=", ".join(definitions.names()))
    parser.add_argument("--estimate", action="store_true", help="only list the missing runs")
    parser.add_argument("--write-only", action="store_true", help="only write the table")
    parser.add_argument("--results", type=Path, default=tables.results_root())
    parser.add_argument("--run-root", type=Path, default=Path("runs"))
    train = Path(sys.executable).with_name("npas-train")
    parser.add_argument(
        "--command", type=shlex.split, default=[str(train)], help="that runs npas-train"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
