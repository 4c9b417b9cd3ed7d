"""Kill a short training at random times and check that it ends like an undisturbed one.

    python scripts/kill_runs.py --kills 20
    python scripts/kill_runs.py --kills 200 --out results/reliability/digits-kills.json
    python scripts/kill_runs.py --kills 50 --seed 1 data.workers=2 trainer.grad_accum_steps=2

The training takes about a second on the digits with `deterministic=true`; overrides of npas-train
may be added. It first runs undisturbed. Then it is started, killed at a uniformly random time by
SIGKILL or by one of the signals that request a stop, and started again with the same command until
it is done; one in three is killed again. The result is compared with the undisturbed run's:
`result.json` except for `npas.reporting.results.VARYING`, weights and state of the last checkpoint
bit by bit, and the log except for times. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench import write
from forked import Forks

OVERRIDES = (
    "model.depth=10",
    "model.width=0.5",
    "model.dropout=0.1",
    "budget=0.5",
    "epochs=5",
    "batch_size=312",
    "data.val_fraction=0.1",
    "optim.milestones=[2,4]",
    "optim.ema_decay=0.9",
    "deterministic=true",
    "trainer.device=cpu",
    "trainer.log_every=2",
    "trainer.checkpoint_every=3",
    "wandb.mode=disabled",
)
STOPPING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")  # npas-train saves first
PREEMPTED = 75
AGAIN = 1 / 3  # fraction of killed runs that are killed again
TIMEOUT = 120.0  # seconds, far more than a run takes


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="overrides of npas-train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of times and signals")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    return parser.parse_args()


def main() -> int:
    """Run the experiment, print and write the results; return the exit code."""
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    arguments = parse()
    overrides, started = [*OVERRIDES, *arguments.overrides], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Forks() as forks:
        found = experiment(forks, overrides, arguments.kills, arguments.seed, Path(scratch))
    summary = found["summary"]
    print(
        f"{summary['kills']} kills of {summary['runs']} runs, each of {summary['run_s']:.1f} s"
        f" undisturbed, in {time.monotonic() - started:.0f} s:"
    )
    for name, number in {**summary["signals"], **summary["where"]}.items():
        print(f"  {number:4}  {name}")
    print(
        f"{summary['runs_that_differ']} runs differ from the undisturbed one,"
        f" {summary['runs_with_rubbish']} left an unfinished file"
    )
    if arguments.out:
        write(arguments.out, overrides=overrides, seed=arguments.seed, **found)
    return 1 if summary["runs_that_differ"] else 0


def experiment(
    forks: Forks, overrides: list[str], kills: int, seed: int, scratch: Path
) -> dict[str, Any]:
    """Kill runs `kills` times in total; return all trials and a summary."""
    draw, trials = random.Random(seed), []
    expected, seconds = undisturbed(forks, overrides, scratch)
    while (left := kills - sum(len(each["kills"]) for each in trials)) > 0:
        home = scratch / f"trial-{len(trials)}"
        trials.append(trial(forks, overrides, home, expected, seconds, draw, left))
        if trials[-1]["differing"]:
            print(f"trial {len(trials)}: {trials[-1]}", file=sys.stderr, flush=True)
    return {"summary": {"run_s": round(seconds, 3), **summarize(trials)}, "trials": trials}


def undisturbed(forks: Forks, overrides: list[str], scratch: Path) -> tuple[Path, float]:
    """Train twice without disturbance; return the run's folder and its seconds."""
    for name in ("first", "second"):
        home = scratch / name
        started = time.monotonic()
        run = forks.start("npas.cli.train:main", overrides, folder=home / "process", cwd=home)
        ended = run.wait(TIMEOUT)
        seconds = time.monotonic() - started
        if ended.code != 0:
            sys.exit(f"the undisturbed run ended with {ended.code}:\n{ended.err}")
    found = differences(folder_in(scratch / "first"), folder_in(scratch / "second"))
    if found:
        sys.exit(f"two undisturbed runs differ: {', '.join(found)}")
    return folder_in(scratch / "second"), seconds


def trial(
    forks: Forks,
    overrides: list[str],
    home: Path,
    expected: Path,
    seconds: float,
    draw: random.Random,
    left: int,
) -> dict[str, Any]:
    """Kill a run up to `left` times, let it end and compare it; return what happened."""
    kills: list[dict[str, Any]] = []
    starts, kill_this = 0, True
    while True:
        starts += 1
        process = home / f"process-{starts}"
        run = forks.start("npas.cli.train:main", overrides, folder=process, cwd=home)
        number = signal.SIGKILL if draw.random() < 0.5 else signal.Signals[draw.choice(STOPPING)]
        moment = draw.random() * seconds
        if kill_this:
            time.sleep(moment)
        late = run.has_ended
        if kill_this and not late:
            run.signal(number)
        ended = run.wait(TIMEOUT)
        was_killed = kill_this and not late and ended.code != 0
        if was_killed:
            kill = {"signal": number.name, "after_s": round(moment, 3), "exit_code": ended.code}
            kills.append(kill | whereabouts(home))
        elif ended.code == 0:
            break
        if ended.code not in (PREEMPTED, 128 + number) or not was_killed:
            said = ended.err.splitlines()[-20:]
            found = [f"exit code {ended.code}"]
            return {"kills": kills, "starts": starts, "differing": found, "said": said}
        kill_this = len(kills) < left and draw.random() < AGAIN
    return {
        "kills": kills,
        "starts": starts,
        "differing": differences(folder_in(home), expected),
        "left_behind": left_behind(folder_in(home)),
    }


def whereabouts(home: Path) -> dict[str, Any]:
    """Return the last logged step and the newest checkpoint's step of a killed run."""
    folders = [path for path in home.glob("runs/[!.]*/*") if path.is_dir()]
    steps = logged_steps(folders[0]) if folders else []
    saved = [int(p.name[5:]) for f in folders for p in f.glob("checkpoints/step-????????")]
    return {"step": max(steps, default=None), "checkpoint": max(saved, default=None)}


def logged_steps(folder: Path) -> list[int]:
    """Return the steps in the complete lines of a run's log."""
    log = folder / "log.jsonl"
    text = log.read_text() if log.exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if "\n" in line]


def folder_in(home: Path) -> Path:
    """Return the folder of the only run in `home`."""
    (folder,) = (path for path in home.glob("runs/[!.]*/*") if path.is_dir())
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of everything that differs between two runs and must not."""
    from npas.reporting import results
    from npas.training.checkpoint import Checkpoints

    found = [f"result.{name}" for name in results.same(results.read(one), results.read(other))]
    ours, theirs = (Checkpoints(run / "checkpoints").newest() for run in (one, other))
    assert ours is not None and theirs is not None
    files = [tensor_files(checkpoint.folder) for checkpoint in (ours, theirs)]
    names = sorted({*files[0], *files[1]})
    found += [name for name in names if files[0].get(name) != files[1].get(name)]
    if progress(ours) != progress(theirs):
        found.append("progress")
    return found if logged(one) == logged(other) else [*found, "log.jsonl"]


def left_behind(run: Path) -> list[str]:
    """Return the names of temporary files that no process removed."""
    return sorted(path.name for path in run.rglob("*") if ".tmp" in path.name)


def tensor_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a checkpoint's tensor files."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def progress(checkpoint: Any) -> dict[str, Any]:
    """Return a checkpoint's progress and metrics, except for times."""
    varying = ("elapsed_s", "wandb_id")
    return {k: v for k, v in checkpoint.state["progress"].items() if k not in varying}


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, except for times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def summarize(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Count kills by signal and by progress."""
    kills = [kill for each in trials for kill in each["kills"]]
    where = Counter(
        "before the first step was logged"
        if kill["step"] is None
        else "before the first checkpoint"
        if kill["checkpoint"] is None
        else "after the first checkpoint"
        for kill in kills
    )
    return {
        "kills": len(kills),
        "runs": len(trials),
        "signals": dict(sorted(Counter(kill["signal"] for kill in kills).items())),
        "where": dict(sorted(where.items())),
        "most_kills_of_a_run": max(len(each["kills"]) for each in trials),
        "runs_that_differ": sum(bool(each["differing"]) for each in trials),
        "runs_with_rubbish": sum(bool(each.get("left_behind")) for each in trials),
    }


if __name__ == "__main__":
    sys.exit(main())
