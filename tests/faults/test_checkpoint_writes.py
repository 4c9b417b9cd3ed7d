"""A checkpoint that was reported written survives any end of the process."""

import random
import signal
import time

import pytest
import torch
from processes import TIMEOUT, wait_until

from npas.training.checkpoint import Checkpoints, open_checkpoint

pytestmark = pytest.mark.fault

KILLS = 30


@pytest.mark.parametrize("times", [1, 2], ids=["each step once", "each step twice"])
def test_a_kill_during_a_write_loses_nothing_that_was_written(trainings, tmp_path, times):
    store, report = Checkpoints(tmp_path / "checkpoints"), tmp_path / "report"
    draw, cut_short, last = random.Random(times), 0, 0
    report.touch()
    for _ in range(KILLS):
        run = trainings.call(
            "inside:write_checkpoints", str(store.folder), str(report), last + 1, times
        )
        before = report.stat().st_size
        wait_until(lambda before=before: report.stat().st_size > before, "a checkpoint")
        until = time.monotonic() + draw.random() * 0.1  # a few writes long
        while time.monotonic() < until:
            # Whoever reads while another writes, as npas-eval does, finds whole ones.
            # The first one may be gone for a moment, while the same step replaces it.
            for path in sorted(store.folder.glob("step-????????"))[-1:]:
                try:
                    open_checkpoint(path)
                except ValueError:
                    assert not path.exists() or times == 2  # removed or replaced in the meantime
        run.signal(signal.SIGKILL)
        assert run.wait(TIMEOUT).code == 128 + signal.SIGKILL
        reported = int(report.read_text().split()[-1])
        cut_short += any(store.folder.glob("*.tmp-*"))
        newest = store.newest()
        assert newest is not None
        last = newest.state["step"]
        assert last in (reported, reported + 1)
        for name in ("model", "optimizer"):
            for tensor in newest.tensors(name).values():
                assert torch.equal(tensor, torch.full((20_000,), float(last)))
    assert cut_short > KILLS // 4  # or nothing was tested
    kept = [path for path in store.folder.glob("step-*") if ".tmp" not in path.name]
    assert len(kept) <= 4  # the newest two, the best, and one that a kill kept from being removed
