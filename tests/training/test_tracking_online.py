"""W&B's real client tracks one run offline, and never holds up or ends a training."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# One process that trains, as far as the journal can tell.
CHILD = """
import json, logging, sys
from pathlib import Path
from npas.reporting.compose import compose
from npas.training import build, tracking
from npas.training.journal import Journal
from npas.training.optim import build_optimizer
from npas.training.state import TrainState

logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
asked = json.loads(sys.argv[1])
for name in ("INIT_S", "FINISH_S") if asked["hurries"] else ():
    setattr(tracking, name, 1)
overrides = (f"wandb.mode={asked['mode']}", "wandb.project=p", "wandb.tags=[a,b]")
config = compose("budget=dense", "trainer.device=cpu", "wandb.artifacts=true", *overrides)
experiment = build(config)
state = TrainState(experiment, build_optimizer(experiment.model, config.optim), Path("run"))
state.progress.logged = asked["logged"]
with Journal(state, steps_per_epoch=5, most_s=None) as journal:
    for step in asked["steps"]:
        state.progress.step = step
        journal.report({"train/loss": 1 / step})
    state.save()
    journal.outcome(asked["status"])
print("trained on")
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that runs the child above, and gives back how it ended."""

    def run(*steps, url="http://127.0.0.1:9", key=True, **asked):  # where nobody listens
        defaults = {"mode": "offline", "logged": 0, "status": "done", "hurries": False}
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        env |= {"HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "WANDB_BASE_URL": url}
        return subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps({**defaults, "steps": steps, **asked})],
            env=env | ({"WANDB_API_KEY": "0123456789" * 4} if key else {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def warnings(text):
    return [line for line in text.splitlines() if line.startswith("WARNING")]


def logged():
    lines = Path("run/log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_run_that_was_stopped_goes_on_as_the_same_one_without_account_or_network(start):
    for steps, status in (((1, 2), "preempted"), ((3, 4), "done")):
        done = start(*steps, key=False, status=status, logged=steps[0] - 1)
        assert (done.returncode, done.stdout, done.stderr) == (0, "trained on\n", "")
        time.sleep(1)  # the folders' names are in seconds
    assert logged() == [1, 2, 3, 4]
    run = Path("run/wandb_id").read_text().strip()
    parts = [*Path("run/wandb").glob("offline-run-*")]
    assert len(parts) == 2
    assert {file.name for part in parts for file in part.glob("*.wandb")} == {f"run-{run}.wandb"}


def test_a_server_that_never_answers_holds_nothing_up(start):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        started = time.monotonic()
        done = start(1, 2, url=url, mode="online", hurries=True)
        assert time.monotonic() - started < 60
    assert done.returncode == 0 and done.stdout.startswith("trained on\n")
    assert len(warnings(done.stderr)) == 1 and logged() == [1, 2]
