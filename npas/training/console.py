"""Show how a training goes: a bar on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from npas.utils.printing import print_line

SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """Count steps on stderr, with the figures that were logged last."""

    def __init__(
        self, total: int, done: int, stage: str = "train", file: TextIO | None = None
    ) -> None:
        self.total = total
        self.prefix = "" if stage == "train" else f"{stage} "
        self.figures = ""
        self.started, self.first = time.monotonic(), done
        self.last_line = self.started
        self.file = file or sys.stderr
        console = Console(file=self.file)
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self.task = self.bar.add_task("", total=total, completed=done)

    def step(self, step: int) -> None:
        """Report that `step` steps are done."""
        if self.bar is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone ends no training
                self.bar.update(self.task, completed=step)
        elif (now := time.monotonic()) - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            at = f"{self.prefix}step {step}/{self.total}"
            print_line(f"{at}  {self.figures}  {left:.0f} s left", self.file)

    def show(self, record: dict[str, Any]) -> None:
        """Show the figures of a logged record."""
        shown = {k: v for k, v in record.items() if k.startswith(("train/", "val/"))}
        self.figures = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
        self.figures = f"epoch {record['epoch']}  {self.figures}"
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.update(self.task, description=f"{self.prefix}{self.figures}")

    def __enter__(self) -> "ProgressDisplay":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
