"""Progress is a bar on a terminal and a few plain lines elsewhere."""

import io

import pytest

from npas.training import console
from npas.training.console import ProgressDisplay

RECORD = {"step": 5, "epoch": 0.5, "train/loss": 0.123456, "lr": 0.1}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_a_plain_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    file = io.StringIO()
    with ProgressDisplay(total=20, done=0, file=file) as display:
        display.show(RECORD)
        for step in range(1, 21):
            display.step(step)
    printed = file.getvalue().splitlines()
    assert len(printed) == 4
    assert printed[0] == "step 5/20  epoch 0.5  train/loss 0.1235  15 s left"
    assert "\x1b" not in file.getvalue() and "\r" not in file.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    with ProgressDisplay(total=20, done=10, file=file) as display:
        display.show(RECORD)
        display.step(20)
    assert "20/20" in file.getvalue()
    assert "train/loss 0.1235" in file.getvalue()


def test_time_left_counts_from_where_this_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    file = io.StringIO()
    display = ProgressDisplay(total=120, done=100, file=file)
    display.step(110)
    assert file.getvalue().rstrip().endswith("10 s left")


def test_a_search_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    file = io.StringIO()
    with ProgressDisplay(total=20, done=0, stage="search", file=file) as display:
        display.step(1)
    assert file.getvalue().startswith("search step 1/20")
