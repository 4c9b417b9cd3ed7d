"""Long work shows its progress on a terminal and in a notebook, and nowhere else."""

import io
import sys
import types

import pytest

from npas.utils import progress
from npas.utils.printing import print_line
from npas.utils.progress import track


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def shown(monkeypatch, is_terminal, items=range(10)):
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(list(track(items, "reading"))) == 10
    return stream.getvalue()


def test_a_terminal_and_a_notebook_show_a_bar_once_it_takes_long(monkeypatch):
    assert shown(monkeypatch, is_terminal=True) == ""  # done before it takes long
    monkeypatch.setattr(progress, "AFTER_S", 0)
    monkeypatch.setattr(progress, "BETWEEN_S", 0)
    printed = shown(monkeypatch, is_terminal=True)
    assert "reading" in printed and "/10" in printed and " s left" in printed
    assert "reading" in shown(monkeypatch, is_terminal=True, items=iter(range(10)))
    assert shown(monkeypatch, is_terminal=False) == ""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert "reading" in shown(monkeypatch, is_terminal=False)
    monkeypatch.setattr(progress.processes, "is_main_process", lambda: False)
    assert shown(monkeypatch, is_terminal=True) == ""


def test_a_line_beside_a_bar_is_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream(True))
    monkeypatch.setattr(progress, "AFTER_S", 0)
    for _ in track(range(3), "reading"):
        print_line("a warning", stream)
    assert "\ra warning\n" in stream.getvalue()


@pytest.mark.parametrize(("most_s", "left"), [(100, "5 s"), (8, "3 s"), (2, "0 s")])
def test_a_training_prints_lines_where_it_cannot_show_a_bar(monkeypatch, most_s, left):
    now = iter(range(10_000))  # a second passes at each look at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(sys, "stderr", stream := Stream(False))
    with progress.Bar("loss 0.1", 20, done=10, lines=True, most_s=most_s) as bar:
        for _ in range(9):
            bar.advance()
    # The time left counts from where this process began, and ends with a limited training.
    assert stream.getvalue() == f"step 15/20  loss 0.1  {left} left\n"
