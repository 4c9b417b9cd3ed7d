"""Make a table of our figures beside the published ones, from result files alone.

    table = definitions.table("digits")
    print(markdown(table, load(table, "results/runs")))

A result belongs to a row if its config has the hash of the row's own config, so that a run with
any other epoch count, learning rate or recipe version never slips into a table.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from npas import config as schema
from npas.reporting import results as result_files
from npas.reporting.compose import compose
from npas.reporting.environment import PACKAGE_FOLDER
from npas.reporting.published import Figure
from npas.reporting.results import Result


@dataclass(frozen=True)
class Row:
    """Define one network of a table."""

    label: str
    words: tuple[str, ...] | None  # that npas-train gets; None: only the published figure
    series: str = ""  # rows of one series make one line of the plot
    published: Figure | None = None


@dataclass(frozen=True)
class Table:
    """Define a table; it says which runs it wants, not what came out."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str  # how to read it: which data, which split
    metric: str = "accuracy"  # in %, as the result files have it
    as_error: bool = False  # show 100 - metric, as the published tables do
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def heading(self) -> str:
        """Name what the figures are."""
        return f"test {'error' if self.as_error else self.metric}, %"


@dataclass(frozen=True)
class Summary:
    """Summarize the finished runs of one network."""

    mean: float
    std: float | None  # of a single run, over seeds; None for one run
    n: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Cell:
    """Hold what is there for one row, by seed."""

    row: Row
    found: dict[int, Result]

    def having(self, *statuses: str) -> dict[int, Result]:
        """Return the results of these statuses, by seed."""
        return {seed: result for seed, result in self.found.items() if result.status in statuses}

    def summary(self, table: Table) -> Summary | None:
        """Summarize the runs that are done, in the table's unit; None where there are none."""
        values = [_last(result, table.metric) for result in self.having("done").values()]
        return summarize([100 - value if table.as_error else value for value in values])

    def missing(self, table: Table) -> tuple[int, ...]:
        """Return the seeds still to be run; a diverged run is an answer, a failed one is not."""
        if self.row.words is None:
            return ()
        settled = self.having("done", "diverged")
        return tuple(seed for seed in table.seeds if seed not in settled)

    def parameters(self) -> int | None:
        """Return the count of parameters that the runs used."""
        counts = {result.budget.used for result in self.found.values() if result.budget is not None}
        return counts.pop() if len(counts) == 1 else None


def summarize(values: Sequence[float]) -> Summary | None:
    """Return mean and sample standard deviation; None of nothing."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def load(table: Table, runs: str | Path) -> list[Cell]:
    """Fill the table with the results below `runs`, the folder of the experiments' folders."""
    return fill(table, result_files.collect(runs).values())


def fill(table: Table, results: Iterable[Result]) -> list[Cell]:
    """Give each row the results whose config is the row's own."""
    by_hash = {r.config_hash: r for r in results if r.dataset.source == "real"}
    cells = []
    for row in table.rows:
        found = {}
        if row.words is not None:
            config = compose(*row.words)
            for seed in table.seeds:
                key = schema.config_hash(dataclasses.replace(config, seed=seed))
                if key in by_hash:
                    found[seed] = by_hash[key]
        cells.append(Cell(row, found))
    return cells


def command(row: Row, seeds: Sequence[int]) -> str:
    """Write the command that runs a row for these seeds."""
    assert row.words is not None
    sweep = ["-m"] if len(seeds) > 1 else []
    return " ".join(["npas-train", *sweep, *row.words, f"seed={','.join(map(str, seeds))}"])


def markdown(table: Table, cells: Sequence[Cell]) -> str:
    """Write the table as markdown, with what it was measured on below it."""
    notes: list[str] = []
    lines = [
        f"# {table.title}",
        "",
        table.note,
        "",
        *_grid(table, cells, notes),
        "",
        *(f"{index}. {note}" for index, note in enumerate(notes, 1)),
        *([""] if notes else []),
        f"Mean over n seeds ± standard deviation of a single run, last epoch. {_origin(cells)}",
        "",
        f"Made from `results/runs/` by `make reproduce-table TABLE={table.name}`; never edited.",
    ]
    return "\n".join(lines) + "\n"


def _grid(table: Table, cells: Sequence[Cell], notes: list[str]) -> list[str]:
    compared = any(row.published is not None for row in table.rows)
    columns = ["network", "parameters", table.heading, "n"]
    if compared:
        columns += ["published", "ours - published"]
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    for cell in cells:
        summary, parameters = cell.summary(table), cell.parameters()
        entries = [
            cell.row.label,
            f"{parameters:,}" if parameters is not None else "",
            _figure(table, cell),
            str(summary.n) if summary else "",
        ]
        if compared:
            entries += _comparison(cell.row.published, summary, notes)
        lines.append(_line(entries))
    return lines


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _figure(table: Table, cell: Cell) -> str:
    """Write our figure, what went wrong, and the command for what is missing."""
    parts = []
    if summary := cell.summary(table):
        parts.append(str(summary))
    for status in ("diverged", "failed", "preempted"):
        if seeds := cell.having(status):
            parts.append(f"{status}: seed {', '.join(map(str, seeds))}")
    if missing := cell.missing(table):
        parts.append(f"`{command(cell.row, missing)}`")
    return "; ".join(parts)


def _comparison(figure: Figure | None, summary: Summary | None, notes: list[str]) -> list[str]:
    if figure is None:
        return ["", ""]
    text = f"{figure.value:.2f}"
    if figure.params is not None:
        text += f" ({figure.params:g}M)"
    _footnote(notes, f"Published figures: {figure.source}.")
    if figure.note:
        text += f" [{_footnote(notes, f'Mended: {figure.note}.')}]"
    difference = f"{summary.mean - figure.value:+.2f}" if summary else ""
    return [text, difference]


def _footnote(notes: list[str], note: str) -> int:
    """Return the note's number, after adding it if it is new."""
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _origin(cells: Sequence[Cell]) -> str:
    """Say on what the runs were measured, and how many of them from a changed tree."""
    runs = [result for cell in cells for result in cell.found.values()]
    if not runs:
        return "No results yet."
    machines = Counter(
        f"{run.hardware.gpu or run.hardware.cpu}, torch {run.versions.get('torch', 'unknown')}"
        for run in runs
    )
    text = "Runs: " + "; ".join(f"{count} on {name}" for name, count in sorted(machines.items()))
    changed = sum(run.git.dirty is True for run in runs)
    return text + (f"; {changed} of a tree with uncommitted changes." if changed else ".")


def _last(result: Result, metric: str) -> float:
    assert result.metrics is not None  # the schema's promise for a run that is done
    value = result.metrics.last.get(metric)
    if value is None:
        raise ValueError(
            f"the result of {result.exp} with seed {result.seed} has no metric {metric!r}: it has "
            f"{', '.join(result.metrics.last)}"
        )
    return value


def results_root() -> Path:
    """Return the folder of the committed results: the checkout's, else one in this folder."""
    checkout = PACKAGE_FOLDER.parent / "results"
    return checkout if (checkout / "runs").is_dir() else Path("results")


def dense_figure(config: schema.Config, root: Path | None = None) -> Summary | None:
    """Summarize the committed dense runs that differ from `config` in budget and seed alone.

    The summary is of the last epoch's accuracy; None where no such run was committed.
    """
    dense = dataclasses.replace(config, budget=schema.DENSE, sharing=schema.SharingConfig())
    committed = result_files.collect((root or results_root()) / "runs", config.exp).values()
    return summarize(
        [
            _last(result, "accuracy")
            for result in committed
            if result.status == "done"
            and result.config_hash
            == schema.config_hash(dataclasses.replace(dense, seed=result.seed))
        ]
    )
