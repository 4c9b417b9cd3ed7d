"""Time a training step of each row of a table beside the dense network's, and its memory.

    python scripts/step_costs.py cifar10_small      # writes results/bench/steps-cifar10_small.json
    python scripts/step_costs.py methods --only 25% # the first row and those whose label has 25%

Each row is a process of its own that trains its experiment's network on one synthetic batch of the
experiment's size; they act by turns, one at a time, as in bench.py. The clock is processor time of
one thread. A ratio is that of one round to the first row's in the same round. Peak memory is above
the start, before the network is built. The table shows both.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import ask, orders, quartiles, resident

RESULTS = Path(__file__).resolve().parents[1] / "results/bench"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a child process: the row's words
    return parser.parse_args()


def main() -> None:
    """Measure and write the figures, or be one row's process."""
    arguments = parse()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    from npas.reporting import definitions
    from npas.reporting.environment import environment

    table = definitions.table(arguments.table)
    rows = {row.label: row.overrides for row in table.rows if row.overrides}
    reference = next(iter(rows))
    rows = {k: words for k, words in rows.items() if k == reference or arguments.only in k}
    workers = {label: begin(arguments.table, words) for label, words in rows.items()}
    seconds: dict[str, list[float]] = {label: [] for label in rows}
    for order in orders(list(rows), arguments.rounds):
        for label in order:
            seconds[label].append(ask(workers[label]))
    found = {}
    for label, took in seconds.items():
        peak = json.loads(workers[label].communicate("\n")[0])["peak_mib"]
        ratios = [a / b for a, b in zip(took, seconds[reference], strict=True)]
        found[label] = {"s": quartiles(took), "ratio": quartiles(ratios), "peak_mib": peak}
        print(f"{label:40}{statistics.median(ratios):8.3f}{peak:8.0f} MiB")
    out = arguments.out or RESULTS / f"steps-{arguments.table}.json"
    described = {"table": arguments.table, "rounds": arguments.rounds, "rows": found}
    text = json.dumps(described | environment(), indent=1, default=dataclasses.asdict)
    out.write_text(f"{text}\n", encoding="utf-8")
    print(f"wrote {out}")


def begin(table: str, words: tuple[str, ...]) -> "subprocess.Popen[str]":
    """Start the process of a row, and wait until its network is warm."""
    command = [sys.executable, __file__, table, "--serve", json.dumps(words)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker = subprocess.Popen(command, **pipes)
    ask(worker)
    ask(worker)
    return worker


def serve(words: list[str]) -> None:
    """Train a step whenever a line says so, and print its seconds; at an empty one the memory."""
    import torch

    from npas.reporting.compose import compose
    from npas.training import build, prepare
    from npas.training.loop import gradient, update
    from npas.training.meter import Meter
    from npas.training.optim import build_optimizer
    from npas.training.precision import Precision

    torch.set_num_threads(1)
    real = compose(*words)
    size = real.batch_size
    synthetic = [f"data.synthetic.{key}={size}" for key in ("train", "batch_size")]
    kept = [word for word in words if not word.startswith("data.verify")]
    config = compose(*kept, "data.source=synthetic", *synthetic, "trainer.device=cpu")
    torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own memory is not the step's
    before = resident("VmRSS")
    experiment = build(config)
    prepare(experiment)
    experiment.task.setup()
    batch = next(experiment.batches(epoch=0))
    optimizer = build_optimizer(experiment.model, config.optim)
    precision = Precision(config.precision, experiment.process.device)
    meter, network = Meter(experiment.process), experiment.model.train()
    while sys.stdin.readline().strip():
        started = time.process_time()
        parts = batch.parts(config.trainer.grad_accum_steps)
        finite, sums, norms_N = gradient(experiment.learner, network, parts, optimizer, precision)
        went_wrong = meter.add(1, batch.size, finite, sums, norms_N)
        update(optimizer, 1e-6, precision, went_wrong, norms_N)
        print(time.process_time() - started, flush=True)
    print(json.dumps({"peak_mib": (resident("VmHWM") - before) / 2**10}))


if __name__ == "__main__":
    main()
