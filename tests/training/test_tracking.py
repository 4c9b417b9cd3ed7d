"""The log is complete without W&B, and goes on after a kill as if there had been none."""

import errno
import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from npas.training.tracking import Tracker


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_one_line_a_record_there_at_once(small, tmp_path: Path) -> None:
    with Tracker(small(), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1, "train/loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "train/loss": 0.5}]


def test_what_is_no_number_is_null(small, tmp_path: Path) -> None:
    with Tracker(small(), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1, "a": float("nan"), "b": float("inf"), "c": "text"})
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": "text"}]


@pytest.mark.parametrize(
    ("logged", "steps"), [(0, []), (1, [2]), (3, [2, 4, 4]), (4, [2, 4, 4, 6]), (9, [2, 4, 4, 6])]
)
def test_going_on_keeps_as_many_lines_as_were_logged(
    small, tmp_path: Path, logged: int, steps: list[int]
) -> None:
    # What was measured after an epoch has the step of the line before it.
    log = "".join(f'{{"step": {n}}}\n' for n in (2, 4, 4, 6)) + '{"step": 9, "tra'
    (tmp_path / "log.jsonl").write_text(log)
    with Tracker(small(), tmp_path, logged, None) as tracker:
        assert tracker.lines == len(steps)
        tracker.log({"step": 7})
        assert tracker.lines == len(steps) + 1
    assert [line["step"] for line in lines(tmp_path)] == [*steps, 7]


def test_a_searchs_lines_are_marked_and_stay_when_the_run_itself_begins(
    small, tmp_path: Path
) -> None:
    with Tracker(small(), tmp_path, 0, None, stage="search") as tracker:
        for step in (1, 2, 3):
            tracker.log({"step": step})
    with Tracker(small(), tmp_path, 2, None, stage="search") as tracker:
        tracker.log({"step": 3})
    search = [{"stage": "search", "step": step} for step in (1, 2, 3)]
    assert lines(tmp_path) == search
    with Tracker(small(), tmp_path, 0, None) as tracker:
        assert tracker.lines == 0
        tracker.log({"step": 1})
        tracker.log({"step": 2})
    assert lines(tmp_path) == [*search, {"step": 1}, {"step": 2}]
    with Tracker(small(), tmp_path, 1, None) as tracker:
        assert tracker.lines == 1
    assert lines(tmp_path) == [*search, {"step": 1}]
    with Tracker(small(), tmp_path, 1, None, stage="search") as tracker:
        assert tracker.lines == 1
    assert lines(tmp_path) == search[:1]


@pytest.mark.parametrize(
    "bad", [b'{"step": 2, "a": "\xc3', b"[1]", b"3", b"null", b'{"step": null}', b"{}", b"\x00"]
)
def test_a_damaged_line_is_left_out_and_counts_as_logged(small, tmp_path: Path, bad: bytes) -> None:
    search = [b'{"stage": "search", "step": 1}', bad]
    for before, kept in (([], []), (search, [1])):
        # The last line lacks its end.
        log = b"\n".join([*before, b'{"step": 1}', bad, b'{"step": 3}', b'{"step": 4}'])
        (tmp_path / "log.jsonl").write_bytes(log)
        with Tracker(small(), tmp_path, 3, None) as tracker:
            assert tracker.lines == 2
            tracker.log({"step": 4})
        assert [line["step"] for line in lines(tmp_path)] == [*kept, 1, 3, 4]


class FullDisk:
    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_wandbs_log_on_a_full_disk_is_one_line(
    small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger, handler = logging.getLogger("wandb"), logging.StreamHandler(FullDisk())

    def init(**settings: Any) -> None:
        logger.addHandler(handler)
        for _ in range(3):
            logger.warning("what wandb logs")
        raise RuntimeError("nor can it do anything else")

    module = ModuleType("wandb")
    vars(module).update(init=init, setup=lambda settings: None, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE")
    try:
        with Tracker(small(wandb={"mode": "offline"}), tmp_path, 0, None):
            pass
        logger.warning("at the end of the process")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err == ""
    said = [record.getMessage() for record in caplog.records if record.name.startswith("npas")]
    reason = os.strerror(errno.ENOSPC)
    assert said == [f"wandb cannot write its log file: [Errno {errno.ENOSPC}] {reason}"]
    assert "addHandler" not in vars(logger)
