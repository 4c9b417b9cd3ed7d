"""The Slurm scripts are valid bash and requeue preempted runs only."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "scripts" / "slurm").iterdir())
BATCHES = [path for path in SCRIPTS if path.suffix == ".sbatch"]
# Stand in for Slurm's commands and ours: each notes its arguments; npas-train ends as asked,
# or stops with 75 when asked to wait for a signal.
PROGRAMS = {
    "scontrol": 'echo "scontrol $*" >>"$NOTES"; echo node1',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": 'echo "torchrun $*" >>"$NOTES"; echo "npas-train: $SAYS: x"; exit "$ENDS"',
    "npas-train": (
        'echo "npas-train $*" >>"$NOTES"; trap "exit 75" USR1;'
        ' while [ "$ENDS" = signal ]; do sleep 0.05; done; exit "$ENDS"'
    ),
}


@pytest.fixture
def environ(tmp_path):
    """Return an environment in which the synthetic data are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    path = f"{folder}:{os.environ['PATH']}"
    return {**os.environ, **slurm, "PATH": path, "NOTES": str(tmp_path / "notes"), "SAYS": "done"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_does_and_how_to_submit_it(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    head = path.read_text().split("\nset -")[0]
    how = "sbatch" if path in BATCHES else "bash"
    assert re.search(rf"^#   {how} scripts/slurm/{re.escape(path.name)} \+exp=\w+", head, re.M)
    if path in BATCHES:
        assert re.search(r"^#SBATCH --signal=(B:)?USR1@\d+$", head, re.M)
        assert "#SBATCH --requeue" in head


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.name)
@pytest.mark.parametrize(("ends", "says"), [("0", "done"), ("1", "failed"), ("75", "preempted")])
def test_only_what_was_preempted_goes_back_to_the_queue(environ, tmp_path, path, ends, says):
    # torchrun's own code is 1 whatever its processes ended with: what they wrote counts.
    code = "1" if ends == "75" and "torchrun" in path.name else ends
    environ |= {"ENDS": code, "SAYS": says}
    command = ["bash", str(path), "+exp=digits", "seed=1"]
    ended = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, timeout=20)
    assert ended.returncode == int(code)
    notes = (tmp_path / "notes").read_text()
    assert ("scontrol requeue 77" in notes) == (says == "preempted")
    assert "+exp=digits seed=1" in notes


def test_one_machine_passes_the_signal_on_and_waits_for_the_end(environ, tmp_path):
    (path,) = (path for path in BATCHES if path.stem == "one_node")
    environ["ENDS"] = "signal"
    job = subprocess.Popen(["bash", str(path), "+exp=digits"], env=environ, cwd=tmp_path)
    while not (tmp_path / "notes").exists():
        time.sleep(0.02)
    time.sleep(0.2)  # until the trap is set
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 75
    notes = (tmp_path / "notes").read_text()
    assert "scontrol requeue 77" in notes and "trainer.devices=4" in notes


def test_a_sweep_goes_to_submitit_with_its_overrides(environ, tmp_path):
    (path,) = (path for path in SCRIPTS if path not in BATCHES)
    environ["ENDS"] = "0"
    command = ["bash", str(path), "+exp=digits", "budget=0.1,0.5", "seed=0,1"]
    assert subprocess.run(command, env=environ, cwd=tmp_path, timeout=20).returncode == 0
    notes = (tmp_path / "notes").read_text()
    assert "npas-train -m +exp=digits budget=0.1,0.5 seed=0,1 trainer.devices=1" in notes
    assert "hydra/launcher=submitit_slurm" in notes
