"""Measure the share of a shortest-path training that goes into generating mazes.

    python scripts/bench_grids.py                                # full size, one thread
    python scripts/bench_grids.py --exp shortest_paths_small --threads 2
    python scripts/bench_grids.py --device cuda --batch 256 --precision bf16

Times the task's batches of the last phase, which has the longest paths, and training steps of the
dense network. The two alternate; results are medians over the rounds, in samples per second.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench import write

from npas.reporting.compose import compose
from npas.tasks.base import Batch
from npas.training import build, prepare
from npas.training.loop import gradient, update
from npas.training.optim import build_optimizer
from npas.training.precision import Precision


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    experiments = ["shortest_paths", "shortest_paths_small"]
    parser.add_argument("--exp", default=experiments[0], choices=experiments)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="training steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    found = parser.parse_args()
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    return found


def seconds(work: Callable[[], None], device: str) -> float:
    """Return the seconds that a function takes on the device."""
    synchronize = torch.cuda.synchronize if device == "cuda" else bool
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time both alternately and print the results."""
    args = parse()
    torch.set_num_threads(args.threads)
    dense = ("budget=dense", "sharing.templates=null", f"trainer.device={args.device}")
    config = compose(f"+exp={args.exp}", f"batch_size={args.batch}", *dense)
    experiment = build(config)
    prepare(experiment)
    experiment.task.setup()
    optimizer = build_optimizer(experiment.model, config.optim)
    precision = Precision(args.precision, experiment.process.device)
    went_wrong = torch.zeros((), device=args.device)
    epochs = itertools.count(config.epochs - 1)
    batches: list[Batch] = []

    def generate() -> None:
        batches[:] = experiment.batches(epoch=next(epochs))

    def train() -> None:
        for batch in itertools.islice(itertools.cycle(batches), args.steps):
            network = experiment.model.train()
            _, _, norms_N = gradient(experiment.learner, network, [batch], optimizer, precision)
            update(optimizer, config.optim.lr, precision, went_wrong, norms_N)

    _warm_up, *times = [
        (seconds(generate, args.device), seconds(train, args.device))
        for _ in range(args.rounds + 1)
    ]
    generating, training = (statistics.median(column) for column in zip(*times, strict=True))
    grids_per_s = sum(batch.size for batch in batches) / generating
    samples_per_s = args.steps * args.batch / training
    print(f"generating  {grids_per_s:12,.0f} grids/s on {args.device}")
    print(f"training    {samples_per_s:12,.0f} samples/s, batch {args.batch}, {args.precision}")
    print(f"{1 / (1 + grids_per_s / samples_per_s):.1%} of the time goes into generating")
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        write(args.out, **settings, grids_per_s=grids_per_s, samples_per_s=samples_per_s)


if __name__ == "__main__":
    main()
