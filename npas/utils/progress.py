"""A progress bar with the time left, for loops that take more than two seconds.

    for layer in track(layers, "fitting"):
        ...

It is shown on terminals and in notebooks.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from npas.utils import processes
from npas.utils.printing import Drawn, print_line

AFTER_S = 2.0
BETWEEN_S = 0.2  # between updates of the bar
BETWEEN_LINES_S = 5.0
T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; `total` is their number if they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """A bar within a `with` block; its text `what` may change.

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
        self.what, self.total, self.first, self.done, self.most_s = what, total, done, done, most_s
        self.started = time.monotonic()
        self.due = self.started + BETWEEN_LINES_S
        is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.is_shown = is_seen and processes.is_main_process()
        self.lines = lines and not self.is_shown
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self.bar = Drawn(
            desc=what, total=total, initial=done, file=sys.stderr, disable=not self.is_shown,
            delay=AFTER_S, leave=lines, dynamic_ncols=True, mininterval=BETWEEN_S, miniters=1,
            bar_format=form if total else None,
        )  # fmt: skip

    def __enter__(self) -> Bar:
        return self

    def advance(self, amount: int = 1) -> None:
        """Count finished items; draw the bar or print a line if it is time."""
        self.done += amount
        now = time.monotonic()
        if self.is_shown:
            self.bar.set_description_str(self.what, refresh=False)
            self.bar.set_postfix_str(self._left(now), refresh=False)
            self.bar.update(amount)
        elif self.lines and now >= self.due:
            parts = filter(None, (f"step {self.done}/{self.total}", self.what, self._left(now)))
            print_line("  ".join(parts), sys.stderr)
            self.due = now + BETWEEN_LINES_S

    def _left(self, now: float) -> str:
        """Return the time left, estimated from the mean time per item of this process."""
        if not self.total:
            return ""
        passed_s = now - self.started
        left_s = passed_s / max(1, self.done - self.first) * (self.total - self.done)
        return f"{max(0.0, min(left_s, self.most_s - passed_s)):.0f} s left"

    def __exit__(self, *error: object) -> None:
        self.bar.close()
