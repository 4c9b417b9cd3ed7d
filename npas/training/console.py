"""Training progress on stderr: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from npas.utils.printing import print_line

SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """Show finished steps and the latest logged figures within a `with` block."""

    def __init__(self, total: int, done: int, file: TextIO | None = None) -> None:
        self.total = total
        self.figures = ""
        self.started, self.first = time.monotonic(), done
        self.last_line = self.started
        self.file = file or sys.stderr
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(
            *columns, TextColumn("{task.description}"), console=Console(file=self.file)
        )
        self.task = self.bar.add_task("", total=total, completed=done)
        self.is_terminal = self.bar.console.is_terminal

    def step(self, step: int) -> None:
        """Report that `step` steps are done."""
        if self.is_terminal:
            with contextlib.suppress(OSError):  # a closed terminal must not end the training
                self.bar.update(self.task, completed=step, description=self.figures)
        elif (now := time.monotonic()) - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            print_line(f"step {step}/{self.total}  {self.figures}  {left:.0f} s left", self.file)

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record's figures from the next step on."""
        shown = {k: v for k, v in record.items() if k.startswith(("train/", "val/"))}
        figures = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
        self.figures = f"epoch {record['epoch']}  {figures}"

    def __enter__(self) -> ProgressDisplay:
        if self.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_terminal:
            with contextlib.suppress(OSError):
                self.bar.stop()
