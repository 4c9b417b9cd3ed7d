"""A progress bar with the time left, for loops that take more than two seconds.

    for layer in track(layers, "fitting"):
        ...

It is shown on terminals and in notebooks.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import Any, TypeVar

from npas.utils import processes
from npas.utils.printing import print_line

AFTER_S = 2.0
BETWEEN_S = 0.2  # between updates of the bar
BETWEEN_LINES_S = 5.0
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
    """A bar within a `with` block, hidden while another one is shown; `what` may change.

    With `lines` it prints a line every few seconds where it cannot be shown. The work is stopped
    after `most_s` seconds, finished or not.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        done: int = 0,
        lines: bool = False,
        most_s: float = math.inf,
    ) -> None:
        self.what, self.total, self.done, self.lines = what, total, done, lines
        self.most_s = most_s
        self.first, self.started = done, time.monotonic()
        self.due = self.started + (BETWEEN_LINES_S if lines else AFTER_S)
        self.drawn: Any = None  # a rich.progress.Progress
        self.handle: Any = None  # of a notebook's display

    def __enter__(self) -> Bar:
        return self

    def advance(self, amount: int = 1) -> None:
        """Count finished items; draw the bar or print a line if it is time."""
        self.done += amount
        now = time.monotonic()
        if now < self.due:
            return
        if self.drawn is None and not _shown and processes.is_main_process():
            self._begin()
        if self.drawn is None and self.lines and self.total is not None:
            left = f"{self._left_s(now):.0f} s left"
            parts = filter(None, (f"step {self.done}/{self.total}", self.what, left))
            print_line("  ".join(parts), sys.stderr)
            self.due = now + BETWEEN_LINES_S
        else:
            self._draw()
            self.due = now + BETWEEN_S

    def _left_s(self, now: float) -> float:
        """Estimate the seconds left, from the mean time per item of this process."""
        assert self.total is not None
        passed_s = now - self.started
        left_s = passed_s / max(1, self.done - self.first) * (self.total - self.done)
        return max(0.0, min(left_s, self.most_s - passed_s))

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(file=sys.stderr)
        if not console.is_terminal and not console.is_jupyter:
            return
        texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[left]")]
        self.drawn = Progress(
            *(texts[0], BarColumn(), MofNCompleteColumn(), texts[1]),
            console=console,
            auto_refresh=False,
            transient=not self.lines,
            redirect_stdout=self.lines,
            redirect_stderr=self.lines,
        )
        self.drawn.add_task(self.what, total=self.total, completed=self.done, left="")
        _shown.append(self)
        if console.is_jupyter:  # rich's own live display would need ipywidgets
            from IPython.display import display

            self.handle = display(self.drawn, display_id=True)
        else:
            with contextlib.suppress(OSError):  # a closed terminal must not end the work
                self.drawn.start()

    def _draw(self) -> None:
        if self.drawn is None:
            return
        left = ""
        if self.total is not None:
            left = str(timedelta(seconds=round(self._left_s(time.monotonic()))))
        self.drawn.update(
            self.drawn.task_ids[0], completed=self.done, description=self.what, left=left
        )
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
