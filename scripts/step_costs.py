"""Measure time and memory of a training step of each row of a table, against the dense network.

    python scripts/step_costs.py cifar10_small      # writes results/bench/steps-cifar10_small.json
    python scripts/step_costs.py methods --only 25% # the first row and those with 25% in the label

With --only, rows measured before stay in the file.

Each row has its own process, which trains the experiment's network on one synthetic batch of the
experiment's batch size. They run one at a time, as in bench.py. The clock is processor time of one
thread. A ratio is to the first row in the same round. Peak memory is relative to the process before
it builds the network. `npas-table` prints both.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from bench import ask, orders, quartiles, resident, start_worker, write

RESULTS = Path(__file__).resolve().parents[1] / "results/bench"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a child process: the row's overrides
    return parser.parse_args()


def main() -> None:
    """Run the benchmark, or serve one row of it."""
    arguments = parse()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    from npas.reporting import definitions

    try:
        table = definitions.table(arguments.table)
    except ValueError as error:
        sys.exit(str(error))
    rows = {row.label: row.overrides for row in table.rows if row.overrides}
    reference = next(iter(rows))
    wanted = {k for k in rows if any(text in k for text in arguments.only)}
    if not wanted:
        sys.exit(f"--only {' '.join(arguments.only)}: no row of {arguments.table} has that text")
    rows = {k: v for k, v in rows.items() if k == reference or k in wanted}
    command = [sys.executable, __file__, arguments.table, "--serve"]
    workers = {
        label: start_worker([*command, json.dumps(overrides)], {})
        for label, overrides in rows.items()
    }
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
    if arguments.only != [""] and out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))["rows"] | found
    write(out, table=arguments.table, rounds=arguments.rounds, rows=found)
    print(f"wrote {out}")


def serve(overrides: list[str]) -> None:
    """Train a step on each line of stdin and print the seconds; on an empty line the memory."""
    import torch

    from npas.reporting.compose import compose
    from npas.training import build, prepare
    from npas.training.loop import gradient, update
    from npas.training.meter import Meter
    from npas.training.optim import build_optimizer
    from npas.training.precision import Precision

    torch.set_num_threads(1)
    size = compose(*overrides).batch_size
    synthetic = [f"data.synthetic.{key}={size}" for key in ("train", "batch_size")]
    kept = [override for override in overrides if not override.startswith("data.verify")]
    config = compose(*kept, "data.source=synthetic", *synthetic, "trainer.device=cpu")
    torch.randn(64, 64) @ torch.randn(64, 64)  # allocate the libraries' own memory first
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
