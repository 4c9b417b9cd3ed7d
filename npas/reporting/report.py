"""One self-contained HTML page of results, which opens from disk.

page(Path("results"), None)           # the committed results
page(None, Path("runs"))              # a folder of runs

It contains committed tables and plots, what `npas-fold` and `npas-eval` made, and lists of runs.
The same files give the same page. Neither torch nor Hydra is imported unless runs are plotted.
"""

import base64
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from npas.reporting import by_budget, markdown, run_index
from npas.utils.files import reading
from npas.utils.json_data import read_json

TEMPLATE = Path(__file__).with_name("report.html")
WIDE = 900  # pixels: wider pictures are scrolled on a phone, not shrunk
PIXELS = 4 / 3  # per point
BUDGETS = ("0.02", "0.05", "0.1", "0.25", "0.5", "1", "2", "4")
SHARED = re.compile(r"SSN(?:, (?P<of>.+))?, budget (?P<budget>[\d.]+)")  # labels of rows


class Entry(NamedTuple):
    """A heading of a section with its content."""

    title: str
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
    templates.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    template = templates.get_template(TEMPLATE.name)
    return template.render(sections=sections, version=npas.__version__)


def _picture(path: Path, alt: str, caption: str) -> str:
    """Return a figure; "" without the file."""
    if not path.is_file():
        return ""
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
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]
) -> str:
    cells = [[markdown.plain(cell) for cell in row] for row in rows]
    return markdown.render("\n".join([f"# {caption}", "", *markdown.grid(heads, cells, left)]))[1]


def _page(path: Path, command: str, start: str = "") -> Entry:
    """Return a page of markdown, after its plot if it has one; `start` is its title if not."""
    with reading(path, "fix or delete it"):
        title, html = markdown.render(start + path.read_text(encoding="utf-8"))
    alt = f"Plot of {title}. The table below it has the figures."
    return Entry(title, command, _picture(path.with_suffix(".svg"), alt, f"{title}.") + html)


def _committed(results: Path) -> Iterator[Section]:
    measured: list[Entry] = []
    planned: list[Entry] = []
    for path in sorted(results.glob("tables/*.md")):
        entry = _page(path, f"make reproduce-table TABLE={path.stem}")
        (planned if "No results yet." in entry.html else measured).append(entry)
    yield Section("Results at a glance", [*_glance(sorted(results.glob("tables/*.md")))])
    yield Section("Tables and plots", measured)
    groups = sorted(results.glob("groups/*/*/groups.json"))
    yield Section("Learned groups", [_groups(path, results / "groups") for path in groups])
    runs = run_index.collect(results / "runs") if (results / "runs").is_dir() else []
    yield Section("Folded networks", [*_folds(results / "folds", runs)])
    yield Section("Sample pages", [*_samples(results)])
    title = "# MiniLM's sentence embeddings inside budgets\n\n"
    others = (
        (results / "minilm" / "embeddings.md", "python scripts/minilm_embeddings.py", title),
        (results / "zoo" / "README.md", "make zoo", ""),
    )
    yield Section("Other measurements", [_page(*own) for own in others if own[0].is_file()])
    yield Section(
        "Tables without runs",
        planned,
        "Published figures, and the commands that would put ours beside them. Counts of parameters"
        " are exact: they are planned without training.",
    )
    yield Section("Every run", [*_runs(runs, "results/runs", False)])


def _glance(pages: Sequence[Path]) -> Iterator[Entry]:
    """Show each network that was measured dense and shared, by budget, from pages of tables."""
    rows = []
    for path in pages:
        text = path.read_text(encoding="utf-8")
        figures, heading, column = dict[str, str](), "", 0
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            if cells[0] == "network" and not heading:
                column = next(i for i, head in enumerate(cells) if head.startswith("test "))
                heading = cells[column]
            elif heading and len(cells) > column and cells[column][:1].isdigit():
                label = cells[0].removesuffix(" (copy)")
                figures.setdefault(label, cells[column].partition(";")[0])
        by: dict[str, dict[str, str]] = {}  # by dense network and budget
        for label, figure in figures.items():
            shared = SHARED.fullmatch(label)
            dense = (shared["of"] or "dense network") if shared else ""
            if shared and dense in figures:
                by.setdefault(dense, {"dense": figures[dense]})[shared["budget"]] = figure
        title = text.removeprefix("# ").partition(":")[0]
        for dense, own in by.items():
            name = title if len(by) == 1 else f"{title}: {dense}"
            rows.append([name, heading, *(own.get(c, "") for c in ("dense", *BUDGETS))])
    if rows:
        caption = (
            "Test metric by budget, as part of the dense network's parameters: mean over seeds"
        )
        caption += " ± standard deviation of a single run, last epoch. Empty: not run."
        heads = ("experiment", "metric", "dense", *(f"{float(budget):.0%}" for budget in BUDGETS))
        yield Entry("What a budget costs", "", _table(caption, heads, rows, (0, 1)))


def _groups(path: Path, root: Path) -> Entry:
    folder = path.parent
    name = str(folder.relative_to(root))
    with reading(path, "it must be what a search for groups writes"):
        found = read_json(path)
        members: dict[str, list[str]] = {}
        for layer in found["layers"]:
            members.setdefault(layer["group"], []).append(layer["name"].removesuffix(".weight"))
        command = f"npas-train +exp={folder.parent.name} sharing.groups={found['method']}"
        command += f" sharing.num_groups={found['num_groups']} seed={found['seed']}"
    if (budget := re.match(r"budget-(.+)_seed-", folder.name)) is not None:
        command += f" budget={budget[1]}"
    alt = "Layers by depth, coloured by group, and the first two principal components of the"
    alt += " clustered vectors. The table lists the groups."
    shown = _picture(folder / "groups.svg", alt, f"Groups of {name}. n = 1 search.")
    rows = [[group, str(len(layers)), ", ".join(layers)] for group, layers in members.items()]
    shown += _table(f"Groups of {name}", ("group", "layers", "names"), rows, (0, 2))
    return Entry(name, command, shown)


def _folds(root: Path, runs: Sequence[run_index.Run]) -> Iterator[Entry]:
    """Yield the table of all folded networks below a folder, and the pictures of each."""
    known = {run.result.config_hash: run.folder for run in runs if run.result}
    if (overview := root / "README.md").is_file():
        yield _page(overview, "python scripts/fold_page.py")
    for path in sorted(root.rglob("fold.json")):
        name = str(path.parent.relative_to(root))
        with reading(path, "it must be what npas-fold writes"):
            fold = read_json(path)
            threshold = f"threshold={fold['threshold']}"
            if "chosen_on" in fold:
                threshold = f"threshold=auto tolerance={fold['tolerance']}"
            run = known.get(fold.get("config_hash"))
        where = "DIR" if run is None else f"runs/{'/'.join(Path(run).parts[-2:])}"
        pictures = {
            "lsm": "Heat maps of the similarity of layers, group by group",
            "lsm_epochs": "Heat maps of the similarity of layers over epochs of training",
            "folded": "Diagram of the folded network, with its loops",
        }
        shown = [
            _picture(path.with_name(f"{s}.svg"), t, f"{t}: {name}.") for s, t in pictures.items()
        ]
        yield Entry(name, f"npas-fold run={where} {threshold}", "".join(shown))


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
        yield Entry(path.stem, f"npas-eval run={where} show=16", shown)


def _runs(found: Sequence[run_index.Run], root: str, plotted: bool) -> Iterator[Entry]:
    """List runs; with `plotted`, also show their metrics by budget."""
    by_exp: dict[str, list[by_budget.Point]] = {}
    for point in by_budget.points(found) if plotted else ():
        by_exp.setdefault(point.series.partition(":")[0], []).append(point)
    for exp, own in by_exp.items():
        title = f"{exp} by budget"
        with TemporaryDirectory() as folder:
            alt = f"Plot of {title} against parameters. The table below it has the figures."
            by_budget.draw(own, Path(folder, "plot"), title)
            shown = _picture(Path(folder, "plot.svg"), alt, f"{title}.")
        shown += _table(title, by_budget.HEADS, [point.cells() for point in own], (0, 1, 3))
        yield Entry(title, f"npas-runs root={root} exp={exp} status=done", shown)
    rows = []
    for run in found:
        cells = run.cells() | {"folder": Path(run.folder).name}
        cells["value"] = f"{cells['value']} {cells.pop('metric')}".strip()
        rows.append(cells)
    if rows:
        title = f"{len(rows)} runs in {root}, with their last epochs' values on the test split"
        shown = _table(title, [*rows[0]], [[*cells.values()] for cells in rows], (0, 1, 3, 7))
        yield Entry(f"Runs in {root}", f"npas-runs root={root}", shown)
