"""Data workers make the main process's batches, ignore signals and end with it."""

import multiprocessing
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from npas.tasks import base
from npas.tasks.base import Batch
from npas.tasks.common import workers as worker_module
from npas.utils.signals import SIGNALS


class Toy:
    """Yield batches that say which step they are and which process made them."""

    name = "toy"
    device = torch.device("cpu")

    def __init__(self, steps=12, at=None):
        self.steps = steps
        self.at = at or {}  # what happens before a step's batch is made

    def steps_per_epoch(self, batch_size):
        return self.steps

    def train_batches(self, epoch, batch_size, steps, rank=0, world=1):
        for step in steps:
            self.at.get(step, int)()
            made = {"process": torch.full((batch_size,), os.getpid()), "drawn": torch.rand(1)}
            yield Batch(torch.full((batch_size,), step), made, batch_size)


def fail(error):
    def raise_it():
        raise error

    return raise_it


def batches(toy, workers=2):
    return base.batches(toy, 0, 2, workers=workers)


def step_of(batch):
    return int(batch.inputs[0])


def maker_of(batch):
    return int(batch.targets["process"][0])


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    assert not multiprocessing.active_children()


def test_workers_ignore_what_asks_a_run_to_stop():
    found = []
    for batch in batches(Toy(30)):
        found.append((step_of(batch), maker_of(batch)))
        if 2 <= len(found) < 6:
            for number in SIGNALS:
                os.kill(found[-1][1], number)
                os.kill(found[-2][1], number)
    assert [step for step, _ in found] == list(range(30))
    assert len({maker for _, maker in found}) == 2


def train_under_fire(report):
    """Iterate while every process of the group gets signals, from before the workers are there."""
    os.setpgid(0, 0)
    got = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: got.append(number))
    over = threading.Event()

    def fire():
        while not over.is_set():
            for number in SIGNALS:
                os.killpg(0, number)
            time.sleep(0.0005)

    threading.Thread(target=fire, daemon=True).start()
    for _ in range(5):
        assert [step_of(batch) for batch in batches(Toy(6))] == list(range(6))
    over.set()
    assert set(got) == set(SIGNALS)
    Path(report).write_text("through")


def test_a_signal_to_the_whole_group_ends_no_worker_at_any_moment(tmp_path):
    # Spawned: beneath pytest's faulthandler, Python's handlers run on a stack that is too small.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=train_under_fire, args=(str(tmp_path / "report"),))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and (tmp_path / "report").read_text() == "through"


def test_giving_up_early_ends_the_workers_quickly():
    started = time.monotonic()
    iterator = batches(Toy(1000))
    next(iterator)
    iterator.close()
    assert not multiprocessing.active_children()
    for _ in batches(Toy(1000)):
        break
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="in its turn") as kept:
        list(batches(Toy(1000, at={3: fail(ValueError("in its turn"))})))
    assert kept.tb  # which still knows the iterator
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 12  # torch itself waits for 5, each time


def test_a_worker_in_the_middle_of_a_long_batch_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(worker_module, "GRACE_S", 0.1)
    iterator = batches(Toy(at={2: lambda: time.sleep(100), 3: lambda: time.sleep(100)}))
    assert [step_of(next(iterator)) for _ in range(2)] == [0, 1]
    started = time.monotonic()
    iterator.close()
    assert time.monotonic() - started < 4  # torch itself waits for 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_value_error_of_a_worker_is_raised_in_order(workers):
    iterator = batches(Toy(at={3: fail(ValueError("set task.density=0.1"))}), workers)
    assert [step_of(next(iterator)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError) as error:
        next(iterator)
    assert str(error.value) == "set task.density=0.1"
    assert not workers or "raise_it" in str(error.value.__cause__)  # where it was raised


def test_a_killed_worker_is_reported():
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited unexpectedly)"):
        for batch in batches(Toy(1000)):
            time.sleep(0.1)  # until they have made what is made ahead, and rest
            os.kill(maker_of(batch), signal.SIGKILL)
            time.sleep(0.1)


def train_forever(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    busy = Toy(1000, at={step: lambda: time.sleep(100) for step in range(2, 1000)})
    next(batches_held := batches(busy))
    ready.set()
    time.sleep(100)
    batches_held.close()


def test_workers_do_not_outlive_a_main_process_that_is_killed(fork):
    ended, held = os.pipe()  # for writing by the process and its workers: the end of all shows
    ready = multiprocessing.get_context("fork").Event()
    process = fork(train_forever, ready)
    os.close(held)
    assert ready.wait(60)
    assert not select.select([ended], [], [], 0)[0]
    process.kill()
    assert select.select([ended], [], [], 30)[0] and os.read(ended, 1) == b""
    os.close(ended)
