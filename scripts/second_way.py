"""Measure what a shared network gains from weights that were trained before, by either way in.

    python scripts/second_way.py --out results/projection/tiny_squad.json
    python scripts/second_way.py --seeds 5 --out ...    # goes on where that file ends

A network is pre-trained on text (`--pre`) and then learns to answer (`--fine`), once for each seed:

    from scratch       never pre-trained
    bank taken over    pre-trained as it is shared, and its bank taken over as trained
    fitted             pre-trained dense, and the sharing planned from its weights
    dense ...          the same two without sharing: what there is to win

Everything else is equal: seeds, data, steps and rates. A figure is the metric of the last epoch.
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

DENSE = ["budget=dense"]
# How it is pre-trained, None: not at all; and how it is then trained.
METHODS: dict[str, tuple[list[str] | None, list[str]]] = {
    "from scratch": (None, []),
    "bank taken over": ([], []),
    "fitted": (DENSE, []),
    "dense from scratch": (None, DENSE),
    "dense pre-trained": (DENSE, DENSE),
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pre", default="tiny_mlm", help="the experiment that pre-trains")
    parser.add_argument("--fine", default="tiny_squad", help="the experiment that is measured")
    parser.add_argument("--methods", default=",".join(list(METHODS)[:3]), help="which of them")
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--words", nargs="*", default=[], help="words for every run")
    parser.add_argument("--pre-words", nargs="*", default=[], help="words for those of --pre")
    parser.add_argument("--fine-words", nargs="*", default=[], help="words for those of --fine")
    parser.add_argument("--root", type=Path, help="where runs lie; else they are thrown away")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    return parser.parse_args()


def main() -> None:
    """Train all, and print what came of it."""
    arguments = parse()
    rows = done_before(arguments)
    wanted = [(m, seed) for seed in range(arguments.seeds) for m in arguments.methods.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        for method, seed in wanted:
            if not any((row["method"], row["seed"]) == (method, seed) for row in rows):
                found = measure(arguments, arguments.root or Path(scratch), method, seed)
                rows.append({"method": method, "seed": seed, **found})
                if arguments.out:
                    write(arguments, rows)
    print(table(arguments.metric, rows))


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the figures."""
    left_out = ("root", "out", "seeds", "methods")
    return {key: value for key, value in vars(arguments).items() if key not in left_out}


def done_before(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows that `--out` holds; SystemExit if they are of other settings."""
    if not arguments.out or not arguments.out.exists():
        return []
    found = json.loads(arguments.out.read_text())
    if found["settings"] != settings(arguments):
        sys.exit(f"{arguments.out} has figures of other settings: name another file")
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def measure(arguments: argparse.Namespace, root: Path, method: str, seed: int) -> dict[str, Any]:
    """Train one network, its pre-training first; return what was measured."""
    before, words = METHODS[method]
    found: dict[str, Any] = {}
    if before is not None:
        result, _ = train(arguments.pre, root, seed, arguments, [*arguments.pre_words, *before])
        found["pre_trained"] = result["metrics"]["last"]
        found["pre_trained_wall_s"] = result["wall_s"]
        start = f"{'fit:' if method == 'fitted' else ''}{result['folder']}"
        words = [*words, f"sharing.init={start}"]
    result, said = train(arguments.fine, root, seed, arguments, [*arguments.fine_words, *words])
    found |= {"metrics": result["metrics"]["last"], "parameters": result["budget"]["used"]}
    found |= {"steps": result["steps"], "wall_s": result["wall_s"]}
    started = re.search(r"sharing\.init: (.*)", said)
    found["started"] = started[1] if started else ""
    error = re.search(r"relative error ([\d.e-]+)", said)
    found["error"] = float(error[1]) if error else None
    score = found["metrics"][arguments.metric]
    print(f"seed {seed}, {method}: {arguments.metric} {score:.2f}  {found['started']}", flush=True)
    return found


def train(
    exp: str, root: Path, seed: int, arguments: argparse.Namespace, words: list[str]
) -> tuple[dict[str, Any], str]:
    """Run npas-train; return its result with the run's folder, and what it said."""
    from npas.config import run_dir
    from npas.reporting.compose import compose

    words = [f"+exp={exp}", f"seed={seed}", "wandb.mode=disabled", *arguments.words, *words]
    words.append(f"run_root={root}")
    command = [sys.executable, "-m", "npas.cli.train", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")
    folder = run_dir(compose(*words))
    said = folder / "stderr.txt"
    if not ended.stdout.startswith("skipped"):
        said.write_text(ended.stderr)
    result = json.loads((folder / "result.json").read_text())
    return {**result, "folder": str(folder)}, said.read_text()


def table(metric: str, rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a line a method, means over the seeds."""
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


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Keep the figures with the machine and the versions they were measured on."""
    from npas.reporting.environment import environment

    for row in rows:  # where a run lay is nobody's business
        row["started"] = re.sub(r"\S*/\S*", "", row["started"])
    found = json.loads(json.dumps(environment(), default=vars))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"settings": settings(arguments), "rows": rows, **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
