"""Tables of our figures beside the published ones, from result files only.

    table = definitions.table("digits")
    print(markdown(table, load(table, "results/runs")))

A result belongs to a row if its config has the hash of the row's config: a run with another number
of epochs, learning rate or recipe version never gets into a table. Runs on data that differ from
the published ones are shown only in rows with `data.verify=warn`, which are marked as a copy and
have no published figure.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from npas import config as schema
from npas.reporting import results as result_files
from npas.reporting.compose import compose, planned_count, planned_flops
from npas.reporting.markdown import grid
from npas.reporting.published import Figure
from npas.reporting.results import Metric, Result
from npas.reporting.run_index import results_root
from npas.utils.json_data import read_json
from npas.utils.printing import LOSSES

EPOCHS = {"last": "last epoch", "selected": "of the epoch chosen on held-out data"}
COSTS = (
    "A step's time is processor time of one thread on a CPU, beside the first row's in rounds"
    " that took turns (median); MiB are what building and training take on top of the libraries."
)
NAMES = {"f1": "F1", "mr": "recall"}  # of metrics in headings


@dataclass(frozen=True)
class Row:
    """One network of a table."""

    label: str
    overrides: tuple[str, ...] | None  # of npas-train; None: only the published figure
    series: str = ""  # rows of one series are one line of the plot
    published: Figure | None = None
    section: str = ""  # rows of one section are one grid under this heading
    metric: str = ""  # replaces the table's

    def command(self, seeds: Sequence[int]) -> str:
        assert self.overrides is not None
        parts = ["npas-train", *["-m"] * (len(seeds) > 1), *self.overrides]
        return f"{' '.join(parts)} seed={','.join(map(str, seeds))}"


@dataclass(frozen=True)
class Table:
    """The definition of a table: its rows and how to show them."""

    name: str
    title: str
    rows: Sequence[Row]
    note: str  # how to read it: which data, which split
    metric: str = "accuracy"  # a key of the metrics in result files
    as_error: bool = False  # show 100 - metric, as the published tables do
    epoch: str = "last"  # or "selected", the epoch chosen on held-out data
    seeds: tuple[int, ...] = (0, 1, 2)
    # Show each row's parameters, planned if there is no run, beside the published ones.
    counted: bool = False
    costed: bool = False  # show the costs of a step, if scripts/step_costs.py has measured them
    plotted: bool = True  # plot the metric against parameters, or call `draw`
    draw: Callable[[Table, Sequence[Cell], Path], list[Path]] | None = None
    appendix: Callable[[Sequence[Cell]], list[str]] | None = None  # lines below the grids

    @property
    def heading(self) -> str:
        if self.metric in LOSSES:
            return f"test {self.metric}"
        return f"test {'error' if self.as_error else NAMES.get(self.metric, self.metric)}, %"


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of the finished runs of one network."""

    mean: float
    std: float | None  # of a single run, over seeds; None for one run
    n: int
    digits: int  # decimals shown

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.{self.digits}f}"
        return f"{self.mean:.{self.digits}f}{spread}"


def summarize(values: Iterable[Metric], metric: str = "") -> Summary | None:
    """Return mean and sample standard deviation, ignoring None; None without values."""
    known = [value for value in values if value is not None]
    spread = statistics.stdev(known) if len(known) > 1 else None
    digits = 3 if metric in LOSSES else 2
    return Summary(statistics.fmean(known), spread, len(known), digits) if known else None


@dataclass(frozen=True)
class Cell:
    """The results of one row, by seed."""

    row: Row
    found: dict[int, Result]
    copy: bool = False  # on a copy of the published data
    epoch: str = "last"  # or "selected", as of the table

    def having(self, *statuses: str) -> dict[int, Result]:
        return {seed: result for seed, result in self.found.items() if result.status in statuses}

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric of finished runs by seed, of the cell's epoch.

        Runs without held-out data have no selected epoch. Raises ValueError for a missing metric.
        """
        values = {}
        for seed, run in self.having("done").items():
            if (found := getattr(run.metrics, self.epoch)) is not None:
                if (value := found.get(metric)) is None:
                    name = f"the result of {run.exp} with seed {run.seed}"
                    raise ValueError(f"{name} has no metric {metric!r}: it has {', '.join(found)}")
                values[seed] = float(value)
        return values

    def summary(self, table: Table) -> Summary | None:
        """Summarize the finished runs in the table's unit; None without any."""
        values = self.values(self.row.metric or table.metric).values()
        return summarize((100 - v if table.as_error else v for v in values), table.metric)

    def missing(self, table: Table) -> tuple[int, ...]:
        """Return the seeds still to be run; a diverged run is a result, a failed one is not."""
        if self.row.overrides is None:
            return ()
        settled = self.having("done", "diverged")
        return tuple(seed for seed in table.seeds if seed not in settled)

    def parameters(self) -> int | None:
        """Return the runs' number of parameters, after pruning; None if it is not the same."""
        counts = {
            result.budget.used if result.pruning is None else result.pruning.parameters
            for result in self.found.values()
            if result.budget is not None
        }
        return counts.pop() if len(counts) == 1 else None

    def artifact_bytes(self) -> int | None:
        """Return the mean size of the runs' artifacts in bytes; None without any."""
        exported = [run.artifact for run in self.having("done").values() if run.artifact]
        return sum(one.bytes for one in exported) // len(exported) if exported else None

    def gpu_days(self) -> float | None:
        """Return the mean GPU-days, one GPU per process, of finished runs on GPUs; None without."""
        times = [
            run.wall_s * (run.parallel.ranks if run.parallel else 1)
            for run in self.having("done").values()
            if run.hardware.gpu is not None
        ]
        return statistics.fmean(times) / (24 * 60 * 60) if times else None


def load(table: Table, *roots: str | Path) -> list[Cell]:
    """Fill the table with the results in `ROOT/EXP/FOLDER`; of one config, the last root's."""
    exps = sorted({compose(*row.overrides).exp for row in table.rows if row.overrides is not None})
    found = (result_files.collect(root, exp).values() for root in roots for exp in exps)
    return fill(table, itertools.chain.from_iterable(found))


def fill(table: Table, results: Iterable[Result]) -> list[Cell]:
    """Return a cell per row with the results of the row's config; preempted runs do not count.

    If a row has none with its own number of processes and batch parts, it gets those of the other
    setting with most seeds.
    """
    by_hash = {
        (r.config_hash, r.dataset.published is False): r
        for r in results
        if r.dataset.source == "real" and r.status != "preempted" and _is_as_configured(r)
    }
    settings = sorted({schema.parts_of(result.config) for result in by_hash.values()})
    cells = [_cell(row, table.seeds, by_hash, settings) for row in table.rows]
    return [dataclasses.replace(cell, epoch=table.epoch) for cell in cells]


def _cell(
    row: Row,
    seeds: Sequence[int],
    by_hash: Mapping[tuple[str, bool], Result],
    settings: Sequence[tuple[int, int]],
) -> Cell:
    """Fill one row; `settings` are the numbers of processes and batch parts of all results."""
    if row.overrides is None:
        return Cell(row, {})
    config = compose(*row.overrides)
    copy = config.data.verify == "warn"
    most = Cell(row, {}, copy)
    assert not (copy and row.published), f"{row.label}: a copy has no published figure"
    own = config.trainer.devices, config.trainer.grad_accum_steps
    for parts in (own, *settings):
        divided = schema.in_parts(config, *parts)
        hashes = {s: schema.config_hash(dataclasses.replace(divided, seed=s)) for s in seeds}
        found = {s: by_hash[h, copy] for s, h in hashes.items() if (h, copy) in by_hash}
        if len(found) > len(most.found):
            most = Cell(row, found, copy)
        if parts == own and found:
            break
    return most


def _is_as_configured(result: Result) -> bool:
    """Return whether all batches were split into ranks and parts as in the config."""
    found, config = result.parallel, result.config
    if found is None:
        return True
    return not found.earlier and (found.ranks, found.grad_accum_steps) == schema.parts_of(config)


def step_costs(results: Path, table: str) -> Mapping[str, tuple[str, str]]:
    """Return what scripts/step_costs.py has measured, by row label; empty if nothing.

    A step's processor time relative to the table's first row, and its memory in MiB.
    """
    path = results / "bench" / f"steps-{table}.json"
    rows = read_json(path)["rows"] if path.exists() else {}
    return {label: (f"{r['ratio'][1]:.2f}", f"{r['peak_mib']:.0f}") for label, r in rows.items()}


def markdown(table: Table, cells: Sequence[Cell]) -> str:
    """Return the table as markdown, with notes on the runs' hardware below it."""
    notes: list[str] = []
    costs = step_costs(results_root(), table.name) if table.costed else {}
    lines = [f"# {table.title}", "", table.note, ""]
    for section, group in itertools.groupby(cells, key=lambda cell: cell.row.section):
        lines += [f"## {section}", ""] if section else []
        lines += [*_grid(table, [*group], notes, costs), ""]
    lines += [COSTS, ""] if costs else []
    lines += table.appendix(cells) if table.appendix is not None else []
    lines += [f"{index}. {note}" for index, note in enumerate(notes, 1)]
    lines += [""] if notes else []
    spread = f"Mean over n seeds ± standard deviation of a single run, {EPOCHS[table.epoch]}."
    made = f"make reproduce-table TABLE={table.name}"  # writes only tables of the last epoch
    if table.epoch != "last":
        made = f"npas-table {table.name} epoch={table.epoch}"
    lines += [f"{spread} {_origin(cells)}", "", f"Made from `results/runs/` by `{made}`; never"]
    return "\n".join(lines) + " edited.\n"


def _grid(
    table: Table, cells: Sequence[Cell], notes: list[str], costs: Mapping[str, tuple[str, str]]
) -> list[str]:
    published = [cell.row.published for cell in cells if cell.row.published is not None]
    timed = table.counted and any(figure.gpu_days is not None for figure in published)
    has_flops = table.counted and any(figure.mflops is not None for figure in published)
    rows: list[dict[str, str]] = []
    for cell in cells:
        row, figure, summary = cell.row, cell.row.published, cell.summary(table)
        parameters = cell.parameters()
        if parameters is None and table.counted and row.overrides is not None:
            parameters = planned_count(*row.overrides)
        entries = {"network": f"{row.label} (copy)" if cell.copy else row.label}
        if table.counted and published:
            entries["published parameters"] = _millions(figure)
        entries["parameters"] = "" if parameters is None else f"{parameters:,}"
        if has_flops:
            theirs = figure.mflops if figure is not None else None
            entries["published multiply-adds"] = "" if theirs is None else f"{theirs:g}M"
            ours = planned_flops(*row.overrides) / 2e6 if row.overrides is not None else None
            entries["multiply-adds"] = "" if ours is None else f"{ours:.2f}M"
        entries[table.heading] = _figure(table, cell)
        entries["n"] = str(summary.n) if summary else ""
        if costs:
            entries["step, x dense"], entries["MiB"] = costs.get(row.label, ("", ""))
        if published:
            difference = summary.mean - figure.value if summary and figure else None
            entries["published"] = _published(figure, notes, table.counted)
            entries["ours - published"] = "" if difference is None else f"{difference:+.2f}"
        if timed:
            days = cell.gpu_days()
            measured = "not measured" if days is None else f"{days:.2g}"
            theirs = figure.gpu_days if figure is not None else None
            entries["GPU-days"] = measured if row.overrides is not None else ""
            entries["published GPU-days"] = "" if theirs is None else f"{theirs:g}"
        rows.append(entries)
    return grid([*rows[0]], [[*entries.values()] for entries in rows])


def _millions(figure: Figure | None) -> str:
    return f"{figure.params:g}M" if figure is not None and figure.params is not None else ""


def _figure(table: Table, cell: Cell) -> str:
    """Return the finished runs' figure, seeds that went wrong, and the missing ones' command."""
    summary = cell.summary(table)
    parts = [str(summary)] if summary else []
    wrong = {status: [*cell.having(status)] for status in ("diverged", "failed")}
    chosen = cell.values(cell.row.metric or table.metric)
    wrong["no epoch chosen"] = [seed for seed in cell.having("done") if seed not in chosen]
    parts += [
        f"{what}: seed {', '.join(map(str, seeds))}" for what, seeds in wrong.items() if seeds
    ]
    if missing := cell.missing(table):
        parts.append(f"`{cell.row.command(missing)}`")
    return "; ".join(parts)


def _published(figure: Figure | None, notes: list[str], counted: bool) -> str:
    if figure is None:
        return ""
    text = f"{figure.value:.2f}"
    if not counted and (millions := _millions(figure)):  # else in a column of their own
        text += f" ({millions})"
    _footnote(notes, f"Published figures: {figure.source}.")
    if figure.note:
        text += f" [{_footnote(notes, f'Mended: {figure.note}.')}]"
    return text


def _footnote(notes: list[str], note: str) -> int:
    """Return the note's number; add it if it is new."""
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _origin(cells: Sequence[Cell]) -> str:
    """Describe the runs' hardware, data, parts and uncommitted changes."""
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
    parts = Counter(schema.parts_of(run.config) for run in runs)
    for (ranks, grad_accum_steps), count in sorted(parts.items()):
        if (ranks, grad_accum_steps) != (1, 1):
            text += f"; {count} in {ranks} processes x {grad_accum_steps} parts"
    changed = sum(run.git.dirty is True for run in runs)
    return text + (f"; {changed} of a tree with uncommitted changes." if changed else ".")
