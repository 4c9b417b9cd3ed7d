"""Measure what a shared network gains from pre-trained weights.

    python scripts/second_way.py --out results/projection/tiny_squad.json
    python scripts/second_way.py --seeds 5 --out ...    # continues the file

A network is pre-trained on text (`--pre`), then fine-tuned on questions (`--fine`), for each seed:

    from scratch       no pre-training
    bank taken over    pre-trained with the same sharing, whose bank is copied
    fitted             pre-trained dense; the sharing is fitted to its weights
    dense ...          the same two without sharing, for comparison

Seeds, data, steps and learning rates are equal. The figure is the metric of the last epoch.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import write

DENSE = ["budget=dense"]
# Overrides of the pre-training (None: none) and of the fine-tuning.
METHODS: dict[str, tuple[list[str] | None, list[str]]] = {
    "from scratch": (None, []),
    "bank taken over": ([], []),
    "fitted": (DENSE, []),
    "dense from scratch": (None, DENSE),
    "dense pre-trained": (DENSE, DENSE),
}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pre", default="tiny_mlm", help="the experiment that pre-trains")
    parser.add_argument("--fine", default="tiny_squad", help="the experiment that is measured")
    parser.add_argument("--methods", default=",".join(list(METHODS)[:3]), help="comma-separated")
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--overrides", nargs="*", default=[], help="overrides of every run")
    parser.add_argument("--pre-overrides", nargs="*", default=[], help="overrides of --pre")
    parser.add_argument("--fine-overrides", nargs="*", default=[], help="overrides of --fine")
    parser.add_argument("--root", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    found = parser.parse_args()
    if unknown := set(found.methods.split(",")) - METHODS.keys():
        parser.error(f"--methods {min(unknown)}: choose {', '.join(METHODS)}")
    return found


def main() -> None:
    """Train all networks that the file lacks, and print a table."""
    arguments = parse()
    rows = done_before(arguments)
    wanted = [(m, seed) for seed in range(arguments.seeds) for m in arguments.methods.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        for method, seed in wanted:
            if not any((row["method"], row["seed"]) == (method, seed) for row in rows):
                found = measure(arguments, arguments.root or Path(scratch), method, seed)
                rows.append({"method": method, "seed": seed, **found})
                if arguments.out:
                    write(arguments.out, settings=settings(arguments), rows=rows)
    print(table(arguments.metric, rows))


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that decide the results."""
    left_out = ("root", "out", "seeds", "methods")
    return {key: value for key, value in vars(arguments).items() if key not in left_out}


def done_before(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of `--out`; exit if they have other settings."""
    if not arguments.out or not arguments.out.exists():
        return []
    found = json.loads(arguments.out.read_text())
    if found["settings"] != settings(arguments):
        sys.exit(f"{arguments.out} has results of other settings: choose another file")
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def measure(arguments: argparse.Namespace, root: Path, method: str, seed: int) -> dict[str, Any]:
    """Pre-train and fine-tune one network; return its row."""
    before, overrides = METHODS[method]
    found: dict[str, Any] = {}
    if before is not None:
        result, _ = train(arguments.pre, root, seed, arguments, [*arguments.pre_overrides, *before])
        found["pre_trained"] = result["metrics"]["last"]
        found["pre_trained_wall_s"] = result["wall_s"]
        start = f"{'fit:' if method == 'fitted' else ''}{result['folder']}"
        overrides = [*overrides, f"sharing.init={start}"]
    overrides = [*arguments.fine_overrides, *overrides]
    result, stderr = train(arguments.fine, root, seed, arguments, overrides)
    found |= {"metrics": result["metrics"]["last"], "parameters": result["budget"]["used"]}
    found |= {"steps": result["steps"], "wall_s": result["wall_s"]}
    started = re.search(r"sharing\.init: (.*)", stderr)
    found["started"] = re.sub(r"\S*/\S*", "", started[1]) if started else ""  # without paths
    error = re.search(r"relative error ([\d.e-]+)", stderr)
    found["error"] = float(error[1]) if error else None
    score = found["metrics"][arguments.metric]
    print(f"seed {seed}, {method}: {arguments.metric} {score:.2f}  {found['started']}", flush=True)
    return found


def train(
    exp: str, root: Path, seed: int, arguments: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], str]:
    """Run npas-train; return its result, with the run's folder, and its stderr."""
    from npas.config import run_dir
    from npas.reporting.compose import compose

    overrides = [f"+exp={exp}", f"seed={seed}", *arguments.overrides, *overrides]
    overrides += ["wandb.mode=disabled", f"run_root={root}"]
    command = [sys.executable, "-m", "npas.cli.train", *overrides]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")
    folder = run_dir(compose(*overrides))
    kept = folder / "stderr.txt"
    if not ended.stdout.startswith("skipped"):
        kept.write_text(ended.stderr)
    result = json.loads((folder / "result.json").read_text())
    return {**result, "folder": str(folder)}, kept.read_text()


def table(metric: str, rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line per method, means over the seeds."""
    lines = [f"| | parameters | {metric} | relative error |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        scores = [row["metrics"][metric] for row in own]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        errors = [row["error"] for row in own if row["error"] is not None]
        error = f"{math.fsum(errors) / len(errors):.2f}" if errors else ""
        mean = f"{math.fsum(scores) / len(scores):.2f}{spread} (n={len(scores)})"
        lines.append(f"| {method} | {own[0]['parameters']:,} | {mean} | {error} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
