"""A progress bar with the time left, for loops that take more than two seconds.

    for layer in track(layers, "fitting"):
        ...

It is shown on terminals and in notebooks, if rich is installed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from npas.utils import processes

AFTER_S = 2.0
BETWEEN_S = 0.2  # between updates of the bar
T = TypeVar("T")
_shown: list[Bar] = []  # at most one at a time


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; `total` is their number if they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """A bar within a `with` block, hidden while another one is shown."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.last = time.monotonic() + AFTER_S - BETWEEN_S
        self.drawn: Any = None  # a rich.progress.Progress
        self.handle: Any = None  # of a notebook's display

    def __enter__(self) -> Bar:
        return self

    def advance(self, amount: int = 1) -> None:
        """Count finished items; draw the bar if it is time."""
        self.done += amount
        now = time.monotonic()
        if now - self.last < BETWEEN_S:
            return
        self.last = now
        if self.drawn is None and not _shown and processes.is_main_process():
            self._begin()
        if self.drawn is not None:
            self._draw()

    def _begin(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Left
        except ImportError:
            return
        console = Console(file=sys.stderr)
        if not console.is_terminal and not console.is_jupyter:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
        self.drawn = Progress(
            *columns,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.drawn.add_task(self.what, total=self.total)
        _shown.append(self)
        if console.is_jupyter:  # rich's own live display would need ipywidgets
            from IPython.display import display

            self.handle = display(self.drawn, display_id=True)
        else:
            with contextlib.suppress(OSError):  # a closed terminal must not end the work
                self.drawn.start()

    def _draw(self) -> None:
        self.drawn.update(self.drawn.task_ids[0], completed=self.done)
        if self.handle is not None:
            self.handle.update(self.drawn)
        else:
            with contextlib.suppress(OSError):
                self.drawn.refresh()

    def __exit__(self, *error: object) -> None:
        if self.drawn is None:
            return
        _shown.remove(self)
        self._draw()
        if self.handle is None:
            with contextlib.suppress(OSError):
                self.drawn.stop()
