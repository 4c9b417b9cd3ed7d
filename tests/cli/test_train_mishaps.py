"""After any failure a run's folder is consistent, and the same command completes the run."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from command_line import SMALL
from safetensors import SafetensorError

from npas.config import run_dir
from npas.reporting import results
from npas.reporting.compose import compose
from npas.tasks import digits
from npas.utils.files import locked
from npas.utils.signals import Preempted

OVERRIDES = ("npas-train", *SMALL, "budget=0.5")
NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture
def folder():
    """Return the folder of these arguments' run."""
    return run_dir(compose(*OVERRIDES[1:]))


def lock_of(folder):
    return folder.with_name(f".{folder.name}.lock")


def interrupted(*anything):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_forced_run_that_is_stopped_or_cannot_begin_does_not_pass_as_finished(
    run, folder, monkeypatch
):
    def missing(self):
        raise ValueError("no data")

    run(*OVERRIDES, code=0)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(digits.Task, "read", missing)
        answer = run(*OVERRIDES, "force=true")
    assert (answer.code, answer.out) == (2, "")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with monkeypatch.context() as patch:
        patch.setattr("npas.training.train", interrupted)
        answer = run(*OVERRIDES, "force=true")
    assert answer.code == 130
    assert answer.err == "npas-train: interrupted; the same command resumes the run\n"
    assert not (folder / "result.json").exists()
    assert run(*OVERRIDES).out.splitlines()[-1].startswith("done: ")
    assert results.read(folder).status == "done"


def test_a_run_is_trained_by_one_process_at_a_time(run, folder, monkeypatch):
    with locked(lock_of(folder)):
        answer = run(*OVERRIDES)
    assert (answer.code, answer.out) == (2, "")
    line = f"{folder} is being trained by another process: wait for it, or set run_root"
    assert answer.err == f"npas-train: {line}\n" and not folder.exists()

    def held(*anything):
        with pytest.raises(BlockingIOError), locked(lock_of(folder), wait=False):
            raise AssertionError("another got in")
        raise KeyboardInterrupt

    lock_of(folder).parent.mkdir(parents=True)
    lock_of(folder).touch()  # one that was left blocks nobody
    monkeypatch.setattr("npas.training.train", held)
    assert run(*OVERRIDES).code == 130
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("damaged", [b"", b"[1]", b'{"status": "do', b"\xff\xfe{"])
def test_a_damaged_result_counts_as_unfinished(run, folder, damaged, monkeypatch):
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(damaged)
    (folder / "config.yaml1a2b.tmp").touch()  # what a killed process was writing
    monkeypatch.setattr("npas.training.train", interrupted)
    answer = run(*OVERRIDES)
    assert answer.code == 130
    assert "warning: the run counts as unfinished: " in answer.err
    assert "Traceback" not in answer.err
    assert not list(folder.glob("*.tmp")) and not (folder / "result.json").exists()


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/nowhere"])
def test_a_run_root_that_cannot_hold_runs_is_named(run, root):
    Path("file").touch()
    answer = run(*OVERRIDES, f"run_root={root}")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"npas-train: run_root={root} is not a writable folder")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("npas.training.train", OSError(errno.ENOSPC, NO_SPACE)),
        ("npas.training.train", SafetensorError(f"I/O error: {NO_SPACE}")),
        ("npas.reporting.results.write", OSError(errno.ENOSPC, NO_SPACE)),
        ("npas.utils.files.write_whole", OSError(errno.ENOSPC, NO_SPACE)),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_has_failed(run, folder, monkeypatch, what, error):
    def full(*anything):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(what, full)
        answer = run(*OVERRIDES)
    assert answer.code == 1
    message = (
        f"{folder} cannot be written ({NO_SPACE}): free space and run the same command: it resumes"
    )
    if what == "npas.training.train":
        message = f"{NO_SPACE}: free space and run the same command: it resumes; {folder}"
        assert results.read(folder).status == "failed"
    assert answer.err == f"npas-train: failed: {message}\n"
    assert not list(folder.glob("*.tmp"))
    if what == "npas.utils.files.write_whole":
        run(*OVERRIDES, code=0)


@pytest.fixture
def terminated():
    """Note the SIGTERMs that this process gets beside the commands it runs."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_stop_that_a_library_turns_into_another_error_is_still_a_stop(
    run, monkeypatch, terminated
):
    def check(raw):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except Preempted:
            raise AttributeError("what a library makes of it") from None

    monkeypatch.setattr("npas.cli.experiments.check", check)
    answer = run("npas-train")
    assert answer.code == 75
    assert answer.err == "npas-train: stopped by a signal; the same command resumes the run\n"
    assert terminated == [signal.SIGTERM]


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_just_before_or_after_the_command_is_a_stop_too(
    run, monkeypatch, terminated, before
):
    def main(command, argv):
        if before:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr("npas.cli.entry.main", main)
    answer = run("npas-train")
    assert answer.code == 75 and terminated == [signal.SIGTERM]
    assert answer.err == "npas-train: stopped by a signal; the same command resumes the run\n"


def test_ctrl_c_ends_the_program_that_called_the_command(run, monkeypatch):
    def check(raw):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr("npas.cli.experiments.check", check)
    # A shell's background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run("npas-train")
    finally:
        signal.signal(signal.SIGINT, before)
