"""Draw a folded network: which of its blocks loop, how often, and what each iteration keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One loop of a container, or one of its blocks that does not loop: "container" and the names of
# its "blocks"; "period" of them remain and run "times" times; "own" values are kept for each
# iteration, all of them together.
Blocks = Mapping[str, Any]

STEP, WIDTH, HEIGHT = 1.5, 1.2, 0.7  # from box to box, and of a box
LINE, NOTE = 1.9, 0.13  # what a line of boxes takes from top to bottom, and a line of its note
LEFT = 2.0  # of the first box
MOST_BOXES = 10  # in one line; a loop is never broken
LOOPED, PLAIN = "#cfe3f7", "#f2f2f2"


@dataclass(frozen=True)
class _Line:
    label: str
    entries: tuple[Blocks, ...]
    note: str

    @property
    def height(self) -> float:
        return LINE + NOTE * self.note.count("\n")


def draw(
    blocks: Sequence[Blocks], tied: Sequence[Sequence[str]], stem: str | Path, title: str
) -> list[Path]:
    """Write `stem.png` and `stem.svg`: a row of boxes for each container, loops with an arrow back.

    `tied` names layers that have one weight; those that no loop explains are written below the
    boxes. Nothing is written where there is neither. Without matplotlib only a warning is given.
    """
    lines = list(_lines(blocks, tied))
    if not lines or not plots.possible(stem):
        return []
    # The object interface leaves the program's own plots and backend alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    boxes = max(sum(entry["period"] for entry in line.entries) for line in lines)
    across = max(LEFT + STEP * boxes + 0.4, 7.5)
    lines = [
        replace(line, note=_wrapped(" ", line.note.split(" "), int((across - LEFT) * 16)))
        for line in lines
    ]
    down = sum(line.height for line in lines)
    with rc_context({"svg.hashsalt": title}):  # the same file from the same network
        figure = Figure(figsize=(across, down + 0.6))
        axes = figure.add_axes((0, 0, 1, down / (down + 0.6)))  # in inches, as the fonts are
        axes.set(xlim=(0, across), ylim=(-down, 0))
        axes.set_axis_off()
        top = 0.0
        for line in lines:
            _draw_line(axes, line, top - LINE / 2)
            top -= line.height
        figure.suptitle(title, fontsize="medium")
        return plots.save(figure, stem)


def remaining(blocks: Sequence[Blocks]) -> tuple[int, int]:
    """Count the blocks that run, one after another, and the modules that are left of them."""
    return sum(len(entry["blocks"]) for entry in blocks), sum(entry["period"] for entry in blocks)


def unexplained(blocks: Sequence[Blocks], tied: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the sets of tied layers that are more than one layer of a loop's block run again."""

    def place(layer: str) -> tuple[object, ...]:
        for index, entry in enumerate(blocks):
            for i, block in enumerate(entry["blocks"]):
                start = ".".join(filter(None, (entry["container"], block))) + "."
                if entry["times"] > 1 and layer.startswith(start):
                    return index, i % entry["period"], layer.removeprefix(start)
        return (layer,)

    return [list(layers) for layers in tied if len({place(layer) for layer in layers}) > 1]


def _lines(blocks: Sequence[Blocks], tied: Sequence[Sequence[str]]) -> Iterator[_Line]:
    left = unexplained(blocks, tied)
    for container, found in groupby(blocks, key=lambda entry: entry["container"]):
        entries = list(found)
        before, after = remaining(entries)
        start = f"{container}." if container else ""
        names = [f"{start}{name}." for entry in entries for name in entry["blocks"]]
        here = [layers for layers in left if any(layers[0].startswith(name) for name in names)]
        left = [layers for layers in left if layers not in here]
        note = _note(here, start)
        label = f"{container or 'network'}\n{before} blocks"
        if after != before:
            label += f",\n{after} left"
        broken = list(_break(entries))
        for i, part in enumerate(broken):
            yield _Line(label if i == 0 else "", part, note if i == len(broken) - 1 else "")
    if left:
        yield _Line("elsewhere", (), _note(left, ""))


def _note(tied: Sequence[Sequence[str]], start: str) -> str:
    sets = [
        " = ".join(layer.removeprefix(start).removesuffix(".weight") for layer in layers)
        for layers in tied
    ]
    return f"one weight: {'; '.join(sets)}" if sets else ""


def _break(entries: Sequence[Blocks]) -> Iterator[tuple[Blocks, ...]]:
    line: list[Blocks] = []
    for entry in entries:
        if line and sum(e["period"] for e in [*line, entry]) > MOST_BOXES:
            yield tuple(line)
            line = []
        line.append(entry)
    yield tuple(line)


def _draw_line(axes: Axes, line: _Line, y: float) -> None:
    axes.text(0.1, y, line.label, va="center", fontsize=9)
    x = LEFT
    for index, entry in enumerate(line.entries):
        first = x
        for i in range(entry["period"]):
            if index or i:
                _arrow(axes, [(x - STEP + WIDTH, y), (x, y)])
            names = entry["blocks"][i :: entry["period"]]
            _box(axes, x, y, _wrapped(" = ", names, 16), LOOPED if entry["times"] > 1 else PLAIN)
            x += STEP
        if entry["times"] > 1:
            _loop(axes, entry, first, x - STEP + WIDTH, y)
    if line.note:
        axes.text(LEFT, y - HEIGHT / 2 - 0.36, line.note, va="top", fontsize=7)


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (x + 0.05, y - HEIGHT / 2 + 0.05)
    style = "round,pad=0.05,rounding_size=0.1"
    size = (WIDTH - 0.1, HEIGHT - 0.1)
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=colour, ec="0.3", lw=1))
    font = 9 if len(text) < 17 else 6.5
    axes.text(x + WIDTH / 2, y, text, ha="center", va="center", fontsize=font)


def _loop(axes: Axes, entry: Blocks, left: float, right: float, y: float) -> None:
    """Draw the way back from the last box to the first, above them, and what iterations keep."""
    top = y + HEIGHT / 2
    start, end = right - 0.2, left + 0.2
    _arrow(axes, [(start, top), (start, top + 0.3), (end, top + 0.3), (end, top)])
    times = f"\N{MULTIPLICATION SIGN}{entry['times']}"
    axes.text((left + right) / 2, top + 0.34, times, ha="center", va="bottom", fontsize=11)
    if entry["own"]:
        kept = (
            f"own norms, biases, statistics\nfor each of {entry['times']}, {entry['own']:,} in all"
        )
        middle, below = (left + right) / 2, y - HEIGHT / 2 - 0.05
        axes.text(middle, below, kept, ha="center", va="top", fontsize=6)


def _arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    patch = FancyArrowPatch(
        path=Line(list(points)),
        arrowstyle="-|>",
        mutation_scale=10,
        linewidth=1.0,
        color="0.3",
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(patch)


def _wrapped(joint: str, words: Sequence[str], width: int) -> str:
    """Join the words in lines of about `width` characters."""
    lines = [""]
    for i, word in enumerate(words):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word + (joint if i + 1 < len(words) else "")
    return "\n".join(line.rstrip() for line in lines)
