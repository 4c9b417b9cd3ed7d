"""Format figures and tables, and print lines even to a closed terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from html import escape
from threading import RLock
from typing import NamedTuple, TextIO

from tqdm import tqdm

LOSSES = ("loss", "bits_per_byte", "perplexity")  # lower is better; other metrics are in percent


def figure(metric: str, value: float | None) -> str:
    """Return a metric's value with its unit, as "71.67%"; losses have no unit and more digits."""
    if value is None:
        return "no number"
    return f"{value:.4f}" if metric.removeprefix("val/") in LOSSES else f"{value:.2f}%"


class Drawn(tqdm):
    """A bar of tqdm without its thread and its lock between processes: data workers are forked."""

    monitor_interval = 0


Drawn.set_lock(RLock())


def print_line(line: str, file: TextIO) -> None:
    """Print a line and flush; once the file is closed, discard this line and all later ones."""
    try:
        with Drawn.external_write_mode(file):  # not into a progress bar
            print(line, file=file, flush=True)
    except OSError:  # a closed pipe or terminal
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)


def columns(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Align rows of cells, the columns in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class Grid(NamedTuple):
    """A table whose first row is its head; the columns in `right` are aligned to the right."""

    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()


class Shown(str):
    """Text that notebooks show as HTML: grids as tables, other parts preformatted."""

    parts: tuple[Grid | str, ...]

    def __new__(cls, *parts: Grid | str) -> Shown:
        texts = ["\n".join(columns(*p)) if isinstance(p, Grid) else p for p in parts]
        self = super().__new__(cls, "\n\n".join(texts))
        self.parts = parts
        return self

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "\n".join(_html(part) for part in self.parts)


def _html(part: Grid | str) -> str:
    if not isinstance(part, Grid):
        return f"<pre>{escape(part)}</pre>"

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ["right" if i in part.right else "left" for i in range(len(cells))]
        each = (
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag.split()[0]}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(each)}</tr>"

    head, *rows = part.rows
    body = "".join(row(cells, "td") for cells in rows)
    heads = row(head, 'th scope="col"')
    return f"<table><thead>{heads}</thead><tbody>{body}</tbody></table>"
