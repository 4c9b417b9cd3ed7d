"""Run npas-train in processes of its own, read what it wrote, and compare runs."""

import socket
import time

from forked import Ended, Forks, Run
from kill_runs import differences, left_behind, logged

from npas.reporting import results
from npas.training.checkpoint import Checkpoints

__all__ = ["Ended", "Forks", "Run", "differences", "left_behind", "logged"]

# Twelve steps in three epochs, within a second; dropout, so that torch's generator matters. The
# batch divides by 2, 3 and 4.
OVERRIDES = (
    "model.depth=10",
    "model.width=0.5",
    "model.dropout=0.1",
    "budget=0.5",
    "epochs=3",
    "batch_size=312",
    "data.val_fraction=0.1",
    "optim.milestones=[2]",
    "deterministic=true",
    "trainer.device=cpu",
    "trainer.log_every=1",
    "wandb.mode=disabled",
)
STEPS = 12
PREEMPTED = 75
TIMEOUT = 120.0  # seconds that no run here takes, on a busy machine either


class Trainings:
    """Start trainings in forks of one process; each test has its own, in its own folder."""

    def __init__(self, forks, home):
        self.forks = forks
        self.home = home
        self.started = 0

    @property
    def root(self):
        """Return the folder of all runs."""
        return self.home / "runs"

    @property
    def folder(self):
        """Return the folder of the only run."""
        return folder_in(self.root)

    def lines(self):
        """Count the whole lines of the only run's log, perhaps of none yet."""
        return sum(path.read_text().count("\n") for path in self.root.glob("[!.]*/*/log.jsonl"))

    def result(self):
        """Return what the only run's result file says."""
        return results.read(self.folder)

    def check_ended(self, expected, *overrides, ranks=1):
        """Check that the same command ends the run, equal to one that nothing disturbed."""
        ended = self.run_ranks(ranks, *overrides) if ranks > 1 else [self.run(*overrides)]
        assert [each.code for each in ended] == [0] * ranks, "".join(each.err for each in ended)
        assert differences(self.folder, expected) == []
        assert left_behind(self.folder) == []

    def start(self, *overrides, fault=None, env=None):
        """Start npas-train with these overrides after `OVERRIDES`; `fault` as in `inside.make`."""
        return self.call("inside:train", [*OVERRIDES, *overrides], fault, env=env)

    def run(self, *overrides, fault=None):
        """Run npas-train to its end."""
        return self.start(*overrides, fault=fault).wait(TIMEOUT)

    def start_ranks(self, world, *overrides, faults=None):
        """Start npas-train as torchrun starts its workers: `world` processes that are to meet."""
        port = free_port()
        return [
            self.start(*overrides, fault=(faults or {}).get(rank), env=torchrun(rank, world, port))
            for rank in range(world)
        ]

    def run_ranks(self, world, *overrides, faults=None):
        """Run npas-train in `world` processes to their end."""
        return [run.wait(TIMEOUT) for run in self.start_ranks(world, *overrides, faults=faults)]

    def execute(self, *program, env=None):
        """Start a program of its own: nothing is forked."""
        return self.call("inside:execute", list(program), env=env)

    def call(self, function, *arguments, env=None):
        """Call a function of `inside` in a new process."""
        self.started += 1
        folder = self.home / f"process-{self.started}"
        return self.forks.start(function, *arguments, folder=folder, cwd=self.home, env=env)


def torchrun(rank, world, port):
    """Return the variables that torchrun sets, on one machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_until(holds, what, timeout=TIMEOUT):
    """Wait until `holds()` is true; AssertionError says what never came."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout, f"{what}: not within {timeout} s"
        time.sleep(0.01)


def folder_in(root):
    """Return the folder of the only run below a root."""
    (folder,) = (path for path in root.glob("[!.]*/*") if path.is_dir())
    return folder


def newest(folder):
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    return found
