"""Time how fast mazes are drawn, beside how fast a network trains on them.

    python scripts/bench_grids.py                                # the full size, one thread
    python scripts/bench_grids.py --preset small --threads 2
    python scripts/bench_grids.py --device cuda --batch 256 --precision bf16

Both go through what a training runs: the task's batches, and steps of the loop with AdamW, for the
dense network, which does no more than the shared one. Mazes of the last phase, whose paths are
longest, take longest. The two are timed in turns, `--rounds` of each; the medians are printed, in
samples a second, and the share of a training's time that the drawing takes.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from npas.config import DataConfig, OptimConfig
from npas.models import grid_cnn
from npas.reporting.environment import environment
from npas.tasks.base import Batch
from npas.tasks.shortest_paths import task as shortest_paths
from npas.training.loop import gradient, update
from npas.training.optim import build_optimizer
from npas.training.precision import Precision

CONFIGS = Path(__file__).parent.parent / "configs"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="full", choices=["full", "small"])
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--steps", type=positive, default=10, help="training steps a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here that torch can use")
    return args


def positive(text: str) -> int:
    """Read a number above 0."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def configs(preset: str) -> tuple[shortest_paths.Config, grid_cnn.Config, OptimConfig]:
    """Read what the experiment of this size trains on, with and by."""
    from hydra import compose, initialize_config_dir

    exp = "shortest_paths" + ("_small" if preset == "small" else "")
    with initialize_config_dir(str(CONFIGS), version_base=None):
        composed = compose("train", [f"+exp={exp}"])
    return (
        shortest_paths.Config(**{**composed.task, "phases": list(composed.task.phases)}),
        grid_cnn.Config(**composed.model),
        OptimConfig(**{**composed.optim, "milestones": list(composed.optim.milestones)}),
    )


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Time a piece of work, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time both and print them."""
    args = parse()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    task_config, model_config, optim_config = configs(args.preset)
    task = shortest_paths.Task(task_config, DataConfig(split=None), seed=0, device=device)
    model = grid_cnn.build(model_config, task.spec).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, optim_config)
    precision = Precision(args.precision, device)
    epoch = itertools.count(task_config.phase_epochs * (len(task_config.phases) - 1))
    drawn: list[Batch] = []

    def draw() -> None:
        drawn[:] = task.train_batches(next(epoch), args.batch)

    def train() -> None:
        for batch in itertools.islice(itertools.cycle(drawn), args.steps):
            finite, _ = gradient(task, model, batch, optimizer, precision)
            update(optimizer, optim_config.lr, precision, (~finite).float())

    times = [(seconds(draw, device), seconds(train, device)) for _ in range(args.rounds + 1)]
    draws, trains = zip(*times[1:], strict=True)  # the first warms up
    grids_per_s = len(drawn) * args.batch / statistics.median(draws)
    samples_per_s = args.steps * args.batch / statistics.median(trains)
    size, longest = task_config.size, task_config.phases[-1]
    print(f"{size}x{size} grids, paths of up to {longest} moves, on {args.device}")
    print(f"drawn    {grids_per_s:12,.0f} grids/s")
    print(f"trained  {samples_per_s:12,.0f} samples/s, batches of {args.batch}, {args.precision}")
    print(f"drawing takes {1 / (1 + grids_per_s / samples_per_s):.1%} of a training's time")
    if args.out:
        figures = {"grids_per_s": grids_per_s, "samples_per_s": samples_per_s}
        asked = {key: value for key, value in vars(args).items() if key != "out"}
        found = {**asked, **figures, **json.loads(json.dumps(environment(), default=vars))}
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
