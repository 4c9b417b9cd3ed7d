"""One self-contained HTML page of results, which opens from disk.

page(Path("results"), None)           # the committed results
page(None, Path("runs"))              # a folder of runs

It contains committed tables and plots, what `npas-fold` and `npas-eval` made, and lists of runs.
The same files give the same page. Neither torch nor Hydra is imported unless runs are plotted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from npas.reporting import by_budget, report_folds, report_markdown, run_index
from npas.reporting.report_markdown import Grid, Page, slug
from npas.reporting.report_parts import Entry, Section, Table, file_of, picture
from npas.utils.printing import figure as with_unit

TEMPLATE = Path(__file__).with_name("report.html")
WIDE = 900  # pixels: wider pictures are scrolled on a phone, not shrunk
BUDGETS = ("0.02", "0.05", "0.1", "0.25", "0.5", "1", "2", "4")
SHARED = re.compile(r"SSN(?:, (?P<of>.+))?, budget (?P<budget>[\d.]+)")


def page(results: Path | None, runs: Path | None) -> str:
    """Return the page of committed results, a folder of runs, or both.

    Raises ValueError if there is nothing to report or a file is damaged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import npas

    sections = [*_committed(results)] if results is not None else []
    if runs is not None:
        sections.append(_runs(run_index.collect(runs), str(runs), True))
    sections = [section for section in sections if section.entries]
    if not sections:
        raise ValueError(
            "there is nothing to report: set results= to a folder with tables/ or runs/, or runs="
            " to a folder of runs"
        )
    templates = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return templates.get_template(TEMPLATE.name).render(
        sections=sections, version=npas.__version__, wide=WIDE
    )


# --- committed results


def _committed(results: Path) -> Iterator[Section]:
    pages = {path.stem: _page(path, path.stem) for path in sorted(results.glob("tables/*.md"))}
    filled = {name: own for name, own in pages.items() if _measured(own)}
    yield Section("Results at a glance", _glance(filled))
    tables = [_table_entry(results / "tables", name, own) for name, own in filled.items()]
    yield Section("Tables and plots", tables)
    groups = sorted(results.glob("groups/*/*/groups.json"))
    yield Section(
        "Learned groups", [report_folds.groups(path.parent, results / "groups") for path in groups]
    )
    runs = run_index.collect(results / "runs") if (results / "runs").is_dir() else []
    yield from report_folds.folds(results / "folds", _by_hash(runs))
    yield _samples(results)
    yield Section("Other measurements", [*_others(results)])
    empty = [
        _table_entry(results / "tables", n, own) for n, own in pages.items() if n not in filled
    ]
    yield Section(
        "Tables without runs",
        empty,
        "Published figures, and the commands that would put ours beside them. Counts of parameters"
        " are exact: they are planned without training.",
    )
    yield _runs(runs, "results/runs", False)


def _page(path: Path, name: str) -> Page:
    try:
        return report_markdown.read(path.read_text(encoding="utf-8"), name)
    except ValueError as error:  # damaged, or not of npas
        raise ValueError(f"{path} cannot be read ({error}): fix or delete it") from None


def _by_hash(runs: Sequence[run_index.Run]) -> dict[str, run_index.Run]:
    """Return the runs that have a result by the hash of their config."""
    results = ((run.result or {}, run) for run in runs)
    return {result["config_hash"]: run for result, run in results if "config_hash" in result}


def _measured(own: Page) -> list[int]:
    """Return the n of a table's rows with figures."""
    return [int(n) for grid in _results_of(own) for n in grid.column("n") if n.isdecimal()]


def _results_of(own: Page) -> list[Grid]:
    """Return a table's grids of networks with their n."""
    return [grid for grid in own.grids if grid.heads[0] == "network" and "n" in grid.heads]


def _range(counts: Iterable[int]) -> str:
    """Return the numbers of runs of points as "3" or "1 to 3"."""
    counts = sorted(set(counts))
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))


def _glance(filled: Mapping[str, Page]) -> list[Entry]:
    """Return the tables' figures by budget, if there are any."""
    rows = [(name, *found) for name, own in filled.items() for found in _by_budget(own)]
    if not rows:
        return []
    budgets = [budget for budget in BUDGETS if any(budget in found for *_, found in rows)]
    cells = [
        [label, heading, found.get("dense", ""), *(found.get(b, "") for b in budgets)]
        for _, label, heading, found in rows
    ]
    table = Table(
        "Test metric by budget, as part of the dense network's parameters",
        ("experiment", "metric", "dense", *(f"{float(budget):.0%}" for budget in budgets)),
        cells,
        range(2, 3 + len(budgets)),
        {label: name for name, label, *_ in rows},
    )
    text = (
        "Mean over n seeds ± standard deviation of a single run, last epoch; the tables have n."
        " Empty: not run."
    )
    return [Entry("What a budget costs", "glance-budgets", text, tables=[table])]


def _by_budget(own: Page) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield name, metric and figures by budget of each network measured dense and shared."""
    for grid in _results_of(own)[:1]:
        heading = next(head for head in grid.heads if head.startswith("test "))
        labels = [label.removesuffix(" (copy)") for label in grid.column("network")]
        values = [value.partition(";")[0] for value in grid.column(heading)]
        figures = {k: v for k, v in zip(labels, values, strict=True) if not v.startswith("`")}
        found: dict[str, dict[str, str]] = {}
        for label, value in figures.items():
            shared = SHARED.fullmatch(label)
            dense = (shared["of"] or "dense network") if shared else ""
            if shared and dense in figures:
                found.setdefault(dense, {"dense": figures[dense]})[shared["budget"]] = value
        for dense, by in found.items():
            title = own.title.partition(":")[0]
            yield title if len(found) == 1 else f"{title}: {dense}", heading, by


def _table_entry(folder: Path, name: str, own: Page) -> Entry:
    command = f"make reproduce-table TABLE={name}"
    pictures = []
    if (counts := _measured(own)) and (source := file_of(folder / name)) is not None:
        alt = f"Plot of {own.title}. The table below it has the figures."
        caption = f"{own.title}. n = {_range(counts)} runs per point."
        pictures.append(picture(source, alt, caption))
    return Entry(own.title, name, "", command, pictures, html=own.html)


# --- pictures, other measurements, runs


def _samples(results: Path) -> Section:
    """Return npas-eval's committed pages; `simnet_dense_seed-0` is of +exp=simnet_scenes."""
    entries = []
    for path in sorted(results.glob("scenes/*.png")):
        head, _, rest = path.stem.partition("_")
        exp = f"{head}_scenes"
        run = next(results.glob(f"runs/{exp}/budget-{rest}_*"), None)
        where = f"runs/{exp}/{run.name}" if run is not None else "DIR"
        alt = f"Scenes with the truth and the outputs of the network {path.stem}: green is the"
        alt += " truth or the right answer, blue the chosen one, red a wrong one."
        caption = f"Samples of the test split with outputs of {path.stem.replace('_', ', ')}."
        shown = [picture(path, alt, f"{caption} n = 1 run.")]
        command = f"npas-eval run={where} show=16"
        entries.append(Entry(path.stem, f"samples-{slug(path.stem)}", "", command, shown))
    return Section("Sample pages", entries)


def _others(results: Path) -> Iterator[Entry]:
    files = {
        "minilm/embeddings.md": "python scripts/minilm_embeddings.py",
        "zoo/README.md": "make zoo",
    }
    titles = {"minilm": "MiniLM's sentence embeddings inside budgets"}
    for file, command in files.items():
        if (path := results / file).is_file():
            name, text = path.parent.name, path.read_text(encoding="utf-8")
            text = f"# {titles[name]}\n\n{text}" if name in titles else text
            own = report_markdown.read(text, name)
            shown = []
            if (plot := path.with_suffix(".svg")).is_file():
                caption = "Mean and standard deviation over the table's seeds."
                alt = f"{own.title}: the table's cosines against parameters, a line per method."
                shown = [picture(plot, alt, caption)]
            yield Entry(own.title, name, "", command, shown, html=own.html)


def _runs(found: Sequence[run_index.Run], root: str, plotted: bool) -> Section:
    """List runs; with `plotted`, also show their metrics by budget."""
    entries = []
    points = by_budget.points(found) if plotted else []
    for exp in dict.fromkeys(point.series.partition(":")[0] for point in points):
        own = [point for point in points if point.series.partition(":")[0] == exp]
        title = f"{exp} by budget"
        with TemporaryDirectory() as folder:
            drawn = by_budget.draw(own, Path(folder, "plot"), title)
            alt = f"Plot of {title} against parameters. The table below it has the figures."
            text = f"{title}. n = {_range(len(point.values) for point in own)} runs per point."
            pictures = [picture(p, alt, text) for p in drawn if p.suffix == ".svg"]
        grid = Table(title, by_budget.HEADS, [point.cells() for point in own], (2, 4, 5))
        command = f"npas-runs root={root} exp={exp} status=done"
        entries.append(Entry(title, f"runs-{slug(exp)}", "", command, pictures, [grid]))
    columns = [column for column in run_index.COLUMNS if column != "metric"]
    rows = [[_cell(run, column) for column in columns] for run in found]
    if rows:
        grid = Table(f"Runs in {root}", columns, rows, (2, 4, 5, 6))
        text = f"{len(rows)} runs. Values are of the last epoch on the test split."
        listed = f"npas-runs root={root}"
        entries.append(Entry(f"Runs in {root}", f"all-{slug(root)}", text, listed, tables=[grid]))
    return Section("Every run" if not plotted else "Runs", entries)


def _cell(run: run_index.Run, column: str) -> str:
    value = getattr(run, column)
    if value is None:
        return ""
    if column == "value":
        return f"{with_unit(run.metric or '', value)} {run.metric}"
    if column == "folder":
        return Path(run.folder).name
    return f"{value:,.0f}" if column in ("used", "seconds") else str(value)
