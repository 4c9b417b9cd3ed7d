"""Print figures with units, tables, and lines so that a reader who has gone ends no training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from typing import TextIO

LOSSES = ("loss", "bits_per_byte", "perplexity")  # less is better; all other metrics are in percent


def figure(metric: str, value: float | None) -> str:
    """Return a metric's value with its unit, as "71.67%"; losses have none, and more digits."""
    if value is None:
        return "no number"
    return f"{value:.4f}" if metric.removeprefix("val/") in LOSSES else f"{value:.2f}%"


def print_line(line: str, file: TextIO) -> None:
    """Print a line at once; where nobody reads it any more, this and all later ones are lost."""
    try:
        print(line, file=file, flush=True)
    except OSError:  # a closed pipe, a terminal that is gone
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)


def columns(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Align rows of cells; the columns in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
