"""One self-contained HTML page of results, which opens from disk.

page(Path("results"), None)           # the committed results
page(None, Path("runs"))              # a folder of runs

It contains committed tables and plots, what `npas-fold` and `npas-eval` made, and lists of runs.
The same files give the same page. Neither torch nor Hydra is imported unless runs are plotted.
"""

import base64
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from npas.reporting import by_budget, markdown, run_index
from npas.reporting.markdown import Page, plain, slug
from npas.utils.files import reading
from npas.utils.json_data import read_json
from npas.utils.printing import figure as with_unit

TEMPLATE = Path(__file__).with_name("report.html")
WIDE = 900  # pixels: wider pictures are scrolled on a phone, not shrunk
PIXELS = 4 / 3  # per point
BUDGETS = ("0.02", "0.05", "0.1", "0.25", "0.5", "1", "2", "4")
SHARED = re.compile(r"SSN(?:, (?P<of>.+))?, budget (?P<budget>[\d.]+)")


class Entry(NamedTuple):
    """A heading of a section with its content."""

    title: str
    anchor: str
    text: str
    command: str  # the command that reproduces it
    html: str


class Section(NamedTuple):
    """A part of the page, listed in its contents."""

    title: str
    entries: Sequence[Entry]
    text: str = ""


def page(results: Path | None, runs: Path | None) -> str:
    """Return the page of committed results, a folder of runs, or both.

    Raises ValueError if there is nothing to report or a file is damaged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import npas

    sections = [*_committed(results)] if results is not None else []
    if runs is not None:
        sections.append(Section("Runs", [*_runs(run_index.collect(runs), str(runs), True)]))
    sections = [section for section in sections if section.entries]
    if not sections:
        raise ValueError(
            "there is nothing to report: set results= to a folder with tables/ or runs/, or runs="
            " to a folder of runs"
        )
    templates = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    templates.filters["slug"] = slug
    template = templates.get_template(TEMPLATE.name)
    return template.render(sections=sections, version=npas.__version__)


# --- parts of entries


def _file_of(stem: Path) -> Path | None:
    """Return the .svg file of this name, else the .png file; None if there is neither."""
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png"))
    return next((path for path in found if path.is_file()), None)


def _picture(path: Path, alt: str, caption: str) -> str:
    data, kind = path.read_bytes(), "png"
    width = height = 0.0
    if path.suffix == ".svg":
        kind = "svg+xml"
        if size := re.search(rb'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', data):
            width, height = (float(side) * PIXELS for side in size.groups())
    elif data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24:
        width, height = struct.unpack(">II", data[16:24])
    if not width or not height:
        raise ValueError(f"{path} is not a valid picture: draw it again, or delete it")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    alt, caption = escape(alt), escape(caption)
    frame = f' class="scroll wide" role="region" aria-label="{caption}" tabindex="0"'
    size_of = f'width="{round(width)}" height="{round(height)}"'
    image = f'<img src="{source}" {size_of} alt="{alt}">'
    return (
        f"<figure>\n<div{frame if round(width) > WIDE else ''}>{image}</div>\n"
        f"<figcaption>{caption}</figcaption>\n</figure>\n"
    )


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int],
    links: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Render a table; `links` are ids by the first cells of rows."""
    links = links or {}
    cells = [[plain(cell) for cell in row] for row in rows]
    for row in cells:
        row[0] = f"[{row[0]}](#{links[row[0]]})" if row[0] in links else row[0]
    text = "\n".join([f"# {caption}", "", *markdown.grid(heads, cells, left)])
    return markdown.read(text, "", {f"#{name}": name for name in links.values()}).html


# --- committed results


def _committed(results: Path) -> Iterator[Section]:
    pages = {}
    for path in sorted(results.glob("tables/*.md")):
        with reading(path, "fix or delete it"):
            pages[path.stem] = markdown.read(path.read_text(encoding="utf-8"), path.stem)
    entries = {name: _table_entry(results / "tables", name, own) for name, own in pages.items()}
    filled = {name: own for name, own in pages.items() if _measured(own)}
    yield Section("Results at a glance", [*_glance(filled)])
    yield Section("Tables and plots", [entries[name] for name in filled])
    groups = sorted(results.glob("groups/*/*/groups.json"))
    yield Section("Learned groups", [_groups(path, results / "groups") for path in groups])
    runs = run_index.collect(results / "runs") if (results / "runs").is_dir() else []
    yield from _folds(results / "folds", runs)
    yield Section("Sample pages", [*_samples(results)])
    yield Section("Other measurements", [*_others(results)])
    yield Section(
        "Tables without runs",
        [entry for name, entry in entries.items() if name not in filled],
        "Published figures, and the commands that would put ours beside them. Counts of parameters"
        " are exact: they are planned without training.",
    )
    yield Section("Every run", [*_runs(runs, "results/runs", False)])


def _results_of(own: Page) -> list[list[dict[str, str]]]:
    """Return a table's grids of networks with their n."""
    return [rows for rows in own.grids if next(iter(rows[0])) == "network" and "n" in rows[0]]


def _measured(own: Page) -> list[int]:
    return [int(row["n"]) for rows in _results_of(own) for row in rows if row["n"].isdecimal()]


def _range(counts: Iterable[int]) -> str:
    """Return the numbers of runs of points as "3" or "1 to 3"."""
    counts = sorted(set(counts))
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))


def _glance(filled: Mapping[str, Page]) -> Iterator[Entry]:
    rows = [(name, *found) for name, own in filled.items() for found in _by_budget(own)]
    if not rows:
        return
    budgets = [budget for budget in BUDGETS if any(budget in found for *_, found in rows)]
    columns = ("dense", *budgets)
    table = _table(
        "Test metric by budget, as part of the dense network's parameters",
        ("experiment", "metric", "dense", *(f"{float(budget):.0%}" for budget in budgets)),
        [[label, heading, *(by.get(c, "") for c in columns)] for _, label, heading, by in rows],
        (0, 1),
        {plain(label): name for name, label, *_ in rows},
    )
    text = (
        "Mean over n seeds ± standard deviation of a single run, last epoch; the tables have n."
        " Empty: not run."
    )
    yield Entry("What a budget costs", "glance-budgets", text, "", table)


def _by_budget(own: Page) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield name, metric and figures by budget of each network measured dense and shared."""
    for rows in _results_of(own)[:1]:
        heading = next(head for head in rows[0] if head.startswith("test "))
        figures = {
            row["network"].removesuffix(" (copy)"): row[heading].partition(";")[0]
            for row in rows
            if not row[heading].startswith("`")
        }
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
    shown = ""
    if (counts := _measured(own)) and (source := _file_of(folder / name)) is not None:
        alt = f"Plot of {own.title}. The table below it has the figures."
        shown = _picture(source, alt, f"{own.title}. n = {_range(counts)} runs per point.")
    return Entry(own.title, name, "", f"make reproduce-table TABLE={name}", shown + own.html)


# --- groups and folds


def _groups(path: Path, root: Path) -> Entry:
    folder = path.parent
    name = str(folder.relative_to(root))
    with reading(path, "it must be what a search for groups writes"):
        found = read_json(path)
        members: dict[str, list[str]] = {}
        for layer in found["layers"]:
            members.setdefault(layer["group"], []).append(layer["name"].removesuffix(".weight"))
        method, number, seed = found["method"], found["num_groups"], found["seed"]
        text = f"{number} groups found in {found['epochs']} epochs of seed {seed}. n = 1."
    shown = ""
    if (source := _file_of(folder / "groups")) is not None:
        alt = f"Layers by depth, coloured by group, and {len(members)} groups in a plane of the"
        alt += " first two principal components of the clustered vectors. The table lists the"
        shown = _picture(source, f"{alt} groups.", f"Groups of {name}. n = 1 search.")
    rows = [[group, str(len(layers)), ", ".join(layers)] for group, layers in members.items()]
    shown += _table(f"Groups of {name}", ("group", "layers", "names"), rows, (0, 2))
    command = f"npas-train +exp={folder.parent.name} sharing.groups={method}"
    command += f" sharing.num_groups={number} seed={seed}"
    if (budget := re.match(r"budget-(.+)_seed-", folder.name)) is not None:
        command += f" budget={budget[1]}"
    text = f"Groups by sharing.groups={method}: {text}"
    return Entry(name, f"groups-{slug(name)}", text, command, shown)


def _folds(root: Path, runs: Sequence[run_index.Run]) -> Iterator[Section]:
    """Yield sections on layer similarity and on the folded networks below a folder."""
    known = {(run.result or {}).get("config_hash"): run.folder for run in runs if run.result}
    similar, folded, links = [], [], {}
    for path in sorted(root.rglob("fold.json")):
        name = str(path.parent.relative_to(root))
        with reading(path, "it must be what npas-fold writes"):
            one, other = _fold(read_json(path), path.parent, name, known)
        similar.append(one)
        folded.append(other)
        links[f"{name}/folded.png"] = other.anchor
    text = "abs(cosine) of two layers' coefficients: layers above a threshold are folded into one,"
    yield Section("Layer similarity", similar, f"{text} as the next section shows.")
    if (overview := root / "README.md").is_file() and folded:
        own = markdown.read(overview.read_text(encoding="utf-8"), "folds", links)
        command = "python scripts/fold_page.py"
        folded.insert(0, Entry(own.title, "folds-all", "", command, own.html))
    yield Section("Folded networks", folded)


def _fold(
    fold: dict[str, Any], folder: Path, name: str, known: Mapping[Any, str]
) -> tuple[Entry, Entry]:
    def picture(stem: str, alt: str, title: str) -> str:
        source = _file_of(folder / stem)
        return _picture(source, alt, f"{title}: {name}.") if source is not None else ""

    run, limit = known.get(fold.get("config_hash")), fold["threshold"]
    where = "DIR" if run is None else f"runs/{'/'.join(Path(run).parts[-2:])}"
    threshold = f"threshold={limit}"
    if "chosen_on" in fold:
        threshold = f"threshold=auto tolerance={fold['tolerance']}"
    matrices = [own["matrix"] for own in fold["similarity"]]
    pairs = [v for rows in matrices for i, row in enumerate(rows) for v in row[i + 1 :]]
    pairs = [value for value in pairs if value is not None]
    few = f"{len(matrices)} groups" if len(matrices) > 1 else "one group"
    text = f"{len(pairs)} pairs of layers in {few} can be compared: their mean is"
    agree = sum(value >= limit for value in pairs)
    text = f"{text} {fmean(pairs):.2f}, {agree} reach {limit}. n = 1 network."
    alt = f"Heat maps of the similarity of layers of {name}, group by group: {text}"
    maps = picture("lsm", alt, "Similarity of layers")
    alt = f"The heat maps of {name} after epochs of training."
    maps += picture("lsm_epochs", alt, "Over epochs")
    metric, values = fold["metric"], fold["metrics"]
    before, after = (with_unit(metric, values[k][metric]) for k in ("before", "folded"))
    loops = [
        f"{', '.join(block['blocks'])} of {block['container'] or 'the network'} became"
        f" {block['period']} run {block['times']} times"
        for block in fold["blocks"]
        if block["times"] > 1
    ]
    looped = f"Blocks {'; '.join(loops)}." if loops else "No blocks loop."
    summary = (
        f"{fold['layers_before']} layers became {fold['layers']},"
        f" {fold['parameters_before']:,} parameters {fold['parameters']:,};"
        f" {fold['split']} {metric} {before} before and {after} after. n = 1 network. {looped}"
    )
    drawn = picture("folded", f"Diagram of the folded network {name}. {looped}", "Folded")
    command = f"npas-fold run={where} {threshold}"
    return (
        Entry(name, f"similarity-{slug(name)}", text, command, maps),
        Entry(name, f"fold-{slug(name)}", summary, command, drawn),
    )


# --- pictures, other measurements, runs


def _samples(results: Path) -> Iterator[Entry]:
    """Yield npas-eval's committed pages; `simnet_dense_seed-0` is of +exp=simnet_scenes."""
    for path in sorted(results.glob("scenes/*.png")):
        head, _, rest = path.stem.partition("_")
        run = next(results.glob(f"runs/{head}_scenes/budget-{rest}_*"), None)
        where = f"runs/{head}_scenes/{run.name}" if run is not None else "DIR"
        alt = f"Scenes with the truth and the outputs of the network {path.stem}: green is the"
        alt += " truth or the right answer, blue the chosen one, red a wrong one."
        caption = f"Samples of the test split with outputs of {path.stem.replace('_', ', ')}."
        shown = _picture(path, alt, f"{caption} n = 1 run.")
        command = f"npas-eval run={where} show=16"
        yield Entry(path.stem, f"samples-{slug(path.stem)}", "", command, shown)


def _others(results: Path) -> Iterator[Entry]:
    title = "# MiniLM's sentence embeddings inside budgets\n\n"
    for file, start, command in (
        ("minilm/embeddings.md", title, "python scripts/minilm_embeddings.py"),
        ("zoo/README.md", "", "make zoo"),
    ):
        if (path := results / file).is_file():
            name = path.parent.name
            own, shown = markdown.read(start + path.read_text(encoding="utf-8"), name), ""
            if (plot := path.with_suffix(".svg")).is_file():
                caption = "Mean and standard deviation over the table's seeds."
                alt = f"{own.title}: the table's cosines against parameters, a line per method."
                shown = _picture(plot, alt, caption)
            yield Entry(own.title, name, "", command, shown + own.html)


def _runs(found: Sequence[run_index.Run], root: str, plotted: bool) -> Iterator[Entry]:
    """List runs; with `plotted`, also show their metrics by budget."""
    by_exp: dict[str, list[by_budget.Point]] = {}
    for point in by_budget.points(found) if plotted else ():
        by_exp.setdefault(point.series.partition(":")[0], []).append(point)
    for exp, own in by_exp.items():
        title = f"{exp} by budget"
        with TemporaryDirectory() as folder:
            alt = f"Plot of {title} against parameters. The table below it has the figures."
            text = f"{title}. n = {_range(len(point.values) for point in own)} runs per point."
            drawn = by_budget.draw(own, Path(folder, "plot"), title)
            shown = "".join(_picture(p, alt, text) for p in drawn if p.suffix == ".svg")
        shown += _table(title, by_budget.HEADS, [point.cells() for point in own], (0, 1, 3))
        command = f"npas-runs root={root} exp={exp} status=done"
        yield Entry(title, f"runs-{slug(exp)}", "", command, shown)
    rows = []
    for run in found:
        cells = run.cells() | {"folder": Path(run.folder).name}
        cells["value"] = f"{cells['value']} {cells.pop('metric')}".strip()
        rows.append(cells)
    if rows:
        title, text = f"Runs in {root}", "Values are of the last epoch on the test split."
        shown = _table(title, [*rows[0]], [[*cells.values()] for cells in rows], (0, 1, 3, 7))
        text = f"{len(rows)} runs. {text}"
        yield Entry(title, f"all-{slug(root)}", text, f"npas-runs root={root}", shown)
