"""Make a table of our figures beside the published ones, from result files alone.

    table = definitions.table("digits")
    print(markdown(table, load(table, "results/runs")))

A result belongs to a row if its config has the hash of the row's own config, so that a run with
any other epoch count, learning rate or recipe version never slips into a table. Runs on data that
are not the published ones stand only in rows that ask for `data.verify=warn`: these are marked as a
copy's, and have no published figure.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npas import config as schema
from npas.reporting import results as result_files
from npas.reporting.compose import compose
from npas.reporting.environment import PACKAGE_FOLDER
from npas.reporting.published import Figure
from npas.reporting.results import Result

EPOCHS = {"last": "last epoch", "selected": "of the epoch chosen on held-out data"}
NAMES = {"f1": "F1", "mr": "recall"}  # of metrics, as a heading has them


@dataclass(frozen=True)
class Row:
    """Define one network of a table."""

    label: str
    words: tuple[str, ...] | None  # that npas-train gets; None: only the published figure
    series: str = ""  # rows of one series make one line of the plot
    published: Figure | None = None
    section: str = ""  # rows of one section make one grid, under this heading
    metric: str = ""  # in place of the table's


@dataclass(frozen=True)
class Table:
    """Define a table; it says which runs it wants, not what came out."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str  # how to read it: which data, which split
    metric: str = "accuracy"  # in %, as the result files have it
    as_error: bool = False  # show 100 - metric, as the published tables do
    epoch: str = "last"  # "selected": the figures of the epoch that was chosen on held-out data
    seeds: tuple[int, ...] = (0, 1, 2)
    # Counts a row's parameters from its words, to be shown before there is a run, and where figures
    # are published in a column beside theirs.
    count: Callable[[Row], int] | None = None
    # What stands below the grids, and what is drawn in place of the metric against parameters.
    appendix: Callable[[Sequence[Cell]], list[str]] | None = None
    draw: Callable[[Table, Sequence[Cell], Path], list[Path]] | None = None

    @property
    def heading(self) -> str:
        """Name what the figures are."""
        if self.as_error:
            return "test error, %"
        return f"test {NAMES.get(self.metric, self.metric)}, %"


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
    """What is there for one row, by seed."""

    row: Row
    found: dict[int, Result]
    copy: bool = False  # of the published data

    def having(self, *statuses: str) -> dict[int, Result]:
        """Return the results of these statuses, by seed."""
        return {seed: result for seed, result in self.found.items() if result.status in statuses}

    def summary(self, table: Table) -> Summary | None:
        """Summarize the runs that are done, in the table's unit; None where there are none.

        Of the chosen epoch where the table shows it: then runs that held nothing out are left out.
        """
        metric = self.row.metric or table.metric
        chosen = table.epoch == "selected"
        values = [
            _measured(result, metric, chosen)
            for result in self.having("done").values()
            if not chosen or _has_chosen(result)
        ]
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

    def gpu_days(self) -> float | None:
        """Return the mean time of the runs that are done and had a GPU; None where there is none.

        Each of a run's processes uses one GPU, whatever the machine has.
        """
        times = [
            run.wall_s * (run.parallel.ranks if run.parallel else 1)
            for run in self.having("done").values()
            if run.hardware.gpu is not None
        ]
        return statistics.fmean(times) / (24 * 60 * 60) if times else None


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
    """Give each row the results whose config is the row's own.

    A preempted run is one that goes on: it counts as not run yet. Of a run on several processes, or
    in parts, the config is another: where a row has none of its own, those of one such setting
    stand there, of the one with most seeds.
    """
    by_hash = {
        (r.config_hash, r.dataset.published is False): r
        for r in results
        if r.dataset.source == "real" and r.status != "preempted" and _is_as_configured(r)
    }
    settings = sorted({_parts(result.config) for result in by_hash.values()})
    cells = []
    for row in table.rows:
        found: dict[int, Result] = {}
        copy = False
        if row.words is not None:
            config = compose(*row.words)
            copy = config.data.verify == "warn"
            assert not (copy and row.published), f"{row.label}: a copy has no published figure"
            own = config.trainer.devices, config.trainer.grad_accum_steps
            for parts in (own, *settings):
                divided = schema.in_parts(config, *parts)
                keys = {
                    seed: (schema.config_hash(dataclasses.replace(divided, seed=seed)), copy)
                    for seed in table.seeds
                }
                having = {seed: by_hash[key] for seed, key in keys.items() if key in by_hash}
                if len(having) > len(found):
                    found = having
                if parts == own and found:
                    break
        cells.append(Cell(row, found, copy))
    return cells


def _is_as_configured(result: Result) -> bool:
    """Return whether all batches were split over ranks and parts as the config says."""
    found = result.parallel
    if found is None:
        return True
    return not found.earlier and (found.ranks, found.grad_accum_steps) == _parts(result.config)


def _parts(config: Mapping[str, Any]) -> tuple[int, int]:
    trainer = config.get("trainer", {})
    return trainer.get("devices", 1), trainer.get("grad_accum_steps", 1)


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
        *_grids(table, cells, notes),
        *(table.appendix(cells) if table.appendix is not None else []),
        *(f"{index}. {note}" for index, note in enumerate(notes, 1)),
        *([""] if notes else []),
        f"Mean over n seeds ± standard deviation of a single run, {EPOCHS[table.epoch]}."
        f" {_origin(cells)}",
        "",
        f"Made from `results/runs/` by `{_maker(table)}`; never edited.",
    ]
    return "\n".join(lines) + "\n"


def _maker(table: Table) -> str:
    """Return the command that makes the table: make writes only those of the last epoch."""
    if table.epoch == "last":
        return f"make reproduce-table TABLE={table.name}"
    return f"npas-table {table.name} epoch={table.epoch}"


def _grids(table: Table, cells: Sequence[Cell], notes: list[str]) -> list[str]:
    lines = []
    for section, group in itertools.groupby(cells, key=lambda cell: cell.row.section):
        lines += [f"## {section}", ""] if section else []
        lines += [*_grid(table, [*group], notes), ""]
    return lines


def _grid(table: Table, cells: Sequence[Cell], notes: list[str]) -> list[str]:
    published = [cell.row.published for cell in cells if cell.row.published is not None]
    counted = table.count is not None
    timed = counted and any(figure.gpu_days is not None for figure in published)
    columns = ["network", "parameters", table.heading, "n"]
    if counted and published:
        columns.insert(1, "published parameters")
    if published:
        columns += ["published", "ours - published"]
    if timed:
        columns += ["GPU-days", "published GPU-days"]
    lines = [grid_line(columns), grid_line(["---", *["---:"] * (len(columns) - 1)])]
    for cell in cells:
        row, summary, parameters = cell.row, cell.summary(table), cell.parameters()
        if parameters is None and table.count is not None and row.words is not None:
            parameters = table.count(row)
        entries = [f"{row.label} (copy)" if cell.copy else row.label]
        if counted and published:
            entries.append(_millions(row.published))
        entries += [
            f"{parameters:,}" if parameters is not None else "",
            _figure(table, cell),
            str(summary.n) if summary else "",
        ]
        if published:
            entries += _comparison(row.published, summary, notes, counted)
        if timed:
            entries += _times(cell)
        lines.append(grid_line(entries))
    return lines


def _millions(figure: Figure | None) -> str:
    return f"{figure.params:g}M" if figure is not None and figure.params is not None else ""


def _times(cell: Cell) -> list[str]:
    """Write the GPU-days of our runs and the published ones."""
    figure, ours = cell.row.published, cell.gpu_days()
    theirs = f"{figure.gpu_days:g}" if figure is not None and figure.gpu_days is not None else ""
    if cell.row.words is None:
        return ["", theirs]
    return ["not measured" if ours is None else f"{ours:.2g}", theirs]


def grid_line(entries: Sequence[str]) -> str:
    """Write one line of a markdown table."""
    return f"| {' | '.join(entries)} |"


def _figure(table: Table, cell: Cell) -> str:
    """Write the figure of what is done, what went wrong, and the command for what is missing."""
    parts = []
    if summary := cell.summary(table):
        parts.append(str(summary))
    for status in ("diverged", "failed"):
        if seeds := cell.having(status):
            parts.append(f"{status}: seed {', '.join(map(str, seeds))}")
    if table.epoch == "selected":
        done = cell.having("done").items()
        if unchosen := [str(seed) for seed, result in done if not _has_chosen(result)]:
            parts.append(f"no epoch chosen: seed {', '.join(unchosen)}")
    if missing := cell.missing(table):
        parts.append(f"`{command(cell.row, missing)}`")
    return "; ".join(parts)


def _comparison(
    figure: Figure | None, summary: Summary | None, notes: list[str], counted: bool = False
) -> list[str]:
    if figure is None:
        return ["", ""]
    text = f"{figure.value:.2f}"
    if not counted and (millions := _millions(figure)):  # else they have a column of their own
        text += f" ({millions})"
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
    """Return on what hardware the runs were made, and how many from a changed tree."""
    runs = [result for cell in cells for result in cell.found.values()]
    if not runs:
        return "No results yet."
    machines = Counter(
        f"{run.hardware.gpu or run.hardware.cpu}, torch {run.versions.get('torch', 'unknown')}"
        for run in runs
    )
    text = "Runs: " + "; ".join(f"{count} on {name}" for name, count in sorted(machines.items()))
    if copies := sum(run.dataset.published is False for run in runs):
        text += f"; {copies} (copy) on data that are not the published files"
    parts = Counter(_parts(run.config) for run in runs)
    for (ranks, grad_accum_steps), count in sorted(parts.items()):
        if (ranks, grad_accum_steps) != (1, 1):
            text += f"; {count} in {ranks} processes x {grad_accum_steps} parts"
    changed = sum(run.git.dirty is True for run in runs)
    return text + (f"; {changed} of a tree with uncommitted changes." if changed else ".")


def _has_chosen(result: Result) -> bool:
    return result.metrics is not None and result.metrics.selected is not None


def _measured(result: Result, metric: str, chosen: bool = False) -> float:
    """Return a metric of the last epoch, or of the one chosen on held-out data."""
    assert result.metrics is not None  # the schema's promise for a run that is done
    found = (result.metrics.selected if chosen else result.metrics.last) or {}
    value = found.get(metric)
    if value is None:
        raise ValueError(
            f"the result of {result.exp} with seed {result.seed} has no metric {metric!r}: it has "
            f"{', '.join(found)}"
        )
    return value


def results_root() -> Path:
    """Return the folder of the committed results: the checkout's, else one in this folder."""
    checkout = PACKAGE_FOLDER.parent / "results"
    return checkout if (checkout / "runs").is_dir() else Path("results")


def dense_figure(
    config: schema.Config, metric: str = "accuracy", root: Path | None = None
) -> Summary | None:
    """Summarize the committed dense runs that differ from `config` in budget and seed alone.

    The summary is of the last epoch's `metric`; None where no such run was committed.
    """
    dense = dataclasses.replace(config, budget=schema.DENSE, sharing=schema.SharingConfig())
    committed = result_files.collect((root or results_root()) / "runs", config.exp).values()
    return summarize(
        [
            _measured(result, metric)
            for result in committed
            if result.status == "done"
            and result.config_hash
            == schema.config_hash(dataclasses.replace(dense, seed=result.seed))
        ]
    )
