"""Long work shows its progress on a terminal and in a notebook, and nowhere else."""

import io
import sys
import types

import pytest

from npas.utils import progress
from npas.utils.progress import track


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let a second pass at each look at the clock."""
    now = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setenv("TERM", "xterm")
    yield
    assert not progress._shown


def shown(monkeypatch, is_terminal, count=10):
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track(range(count), "reading")) == [*range(count)]
    return stream.getvalue()


def test_a_terminal_shows_a_bar_once_it_takes_long(monkeypatch):
    printed = shown(monkeypatch, is_terminal=True)
    assert "reading" in printed and "10/10" in printed and " 1/10" not in printed
    assert shown(monkeypatch, is_terminal=False) == ""
    assert shown(monkeypatch, is_terminal=True, count=1) == ""  # done before it takes long
    monkeypatch.setattr(progress.processes, "is_main_process", lambda: False)
    assert shown(monkeypatch, is_terminal=True) == ""


def test_inner_loops_stay_hidden_and_what_breaks_off_leaves_nothing(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    for i in track(iter(range(9)), "outer"):  # of unknown length
        assert i < 3 or sum(track([1] * 9, "inner")) == 9
        if i == 7:
            break
    with pytest.raises(KeyError):
        for _ in track(range(9), "failing"):
            {}["nothing"]
    printed = stream.getvalue()
    assert "outer" in printed and "inner" not in printed and "failing" not in printed


def test_a_training_prints_lines_where_it_cannot_show_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream(False))
    with progress.Bar("loss 0.1", 20, done=10, lines=True) as bar:
        for _ in range(10):
            bar.advance()
    # The time left counts from where this process began.
    assert stream.getvalue().splitlines()[0] == "step 15/20  loss 0.1  5 s left"
    assert stream.getvalue().count("\n") == 2 and "\x1b" not in stream.getvalue()


def test_the_time_left_ends_with_the_clock_of_a_limited_training(monkeypatch):
    for most_s, left in ((100, "5 s"), (8, "3 s"), (2, "0 s")):
        monkeypatch.setattr(sys, "stderr", stream := Stream(False))
        with progress.Bar("", 10, lines=True, most_s=most_s) as bar:
            for _ in range(5):
                bar.advance()
        assert stream.getvalue() == f"step 5/10  {left} left\n"  # nothing was reported yet
    monkeypatch.setattr(sys, "stderr", stream := Stream(True))
    with progress.Bar("loss 0.1", 10**6, most_s=30) as bar:
        for _ in range(5):
            bar.advance()
    assert "0:00:2" in stream.getvalue() and "days" not in stream.getvalue()


def test_a_notebook_shows_it_in_place(monkeypatch):
    seen = []
    handle = types.SimpleNamespace(update=seen.append)
    fake = types.ModuleType("IPython.display")
    fake.display = lambda thing, display_id: handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert shown(monkeypatch, is_terminal=False) == ""
    bundle = seen[-1]._repr_mimebundle_((), ())
    assert "10/10" in bundle["text/plain"] and "reading" in bundle["text/html"]
