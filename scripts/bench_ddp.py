"""Time a training step on several ranks beside the same step alone, and when gradients can leave.

    python scripts/bench_ddp.py                                    # WRN-16-2, two ranks over gloo
    python scripts/bench_ddp.py --model wrn_28_10 --batch 4 --rounds 3
    python scripts/bench_ddp.py --model wrn_28_10 --batch 64 --device cuda --ranks 8

The ranks are processes of this machine, a thread or a GPU each. A step is forward, backward and SGD
with momentum on `--batch` samples a rank; "alone" is the same without sending anything. Rounds take
the dense network and the shared ones in an order that rotates, and each alone, with fp32 and with
bf16 gradients in turn; printed are medians of the first rank's, and of the ratios to the step alone
in the same round.

DDP sends gradients in buckets, each once all of its parameters' gradients are complete, while
backward goes on. A bank's gradient is complete only when the first layer that reads it has gone
through backward: it leaves with the last ones. How much could leave early is told by the moments at
which the buckets were ready, from the start of backward (0) to its last gradient (1).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranks import measure_in_ranks

STAGES = {f"stages.{n}.*": f"stage{n}" for n in range(3)}
GROUPS: dict[str, Any] = {"single": "single", "stages": STAGES}
DTYPES = ("fp32", "bf16")
KEYS = ("model", "batch", "device", "ranks", "bucket_mb", "rounds")
AT_THE_END = 0.999  # of backward: a bucket that is ready later waits for the last gradient


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="wrn_16_2", help="a WRN of configs/model")
    parser.add_argument("--batch", type=int, default=16, help="samples a rank")
    parser.add_argument("--budgets", default="0.1,0.5,2")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bucket-mb", type=float, default=25, help="torch's default is 25")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    return parser.parse_args()


def main() -> None:
    """Start the ranks, wait for them, print what the first has measured."""
    arguments = parse()
    rows = measure_in_ranks(measure, arguments)
    show(arguments, rows)
    if arguments.out:
        write(arguments, rows)


class Sender:
    """Send buckets as DDP does, in fp32 or bf16, and note when each was ready to leave."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.dtype = "fp32"
        self.stamps: list[tuple[Any, int]] = []

    def now(self) -> Any:
        """Return this moment: seconds, or an event on the GPU's own time line."""
        if self.device == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def hook(self, state, bucket):  # DDP would check annotations
        """Take a bucket whose gradients are complete; return the promise of their mean."""
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        self.stamps.append((self.now(), bucket.buffer().nbytes))
        if self.dtype == "bf16":
            return default_hooks.bf16_compress_hook(None, bucket)
        return default_hooks.allreduce_hook(None, bucket)

    def readiness(self, start: Any) -> list[tuple[float, int]]:
        """Return (moment, bytes) of each bucket; 0: the start of backward, 1: its last gradient."""
        if self.device == "cpu":
            moments = [(stamp - start, size) for stamp, size in self.stamps]
        else:
            moments = [(start.elapsed_time(stamp), size) for stamp, size in self.stamps]
        last = max(moment for moment, _ in moments)
        return [(moment / last, size) for moment, size in moments]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of all networks in turns; return a row for each."""
    import torch.distributed as dist
    from bench_networks import build

    import npas

    cases = [("dense", "")]
    cases += [(budget, name) for budget in arguments.budgets.split(",") for name in GROUPS]
    networks = {}
    for budget, groups in cases:
        network = build(arguments)
        if budget != "dense":
            npas.share(network, budget, generator="wavg", groups=GROUPS[groups])
        networks[budget, groups] = Stepper(arguments, network)
    for stepper in networks.values():
        for dtype in ("alone", *DTYPES, "fp32"):  # after the first, DDP puts its buckets in order
            stepper.step(dtype)
    seconds: dict[Any, list[float]] = {}
    ready: dict[Any, list[list[tuple[float, int]]]] = {case: [] for case in cases}
    order = list(cases)
    for _ in range(arguments.rounds):
        for case in order:
            for dtype in ("alone", *DTYPES):
                dist.barrier()
                seconds.setdefault((*case, dtype), []).append(networks[case].timed(dtype))
                if dtype == "fp32":
                    ready[case].append(networks[case].ready())
        order = [*order[1:], order[0]]  # what comes after what must not matter
    return [row(case, networks[case].parameters, seconds, ready[case]) for case in cases]


def row(
    case: tuple[str, str],
    parameters: int,
    seconds: dict[Any, list[float]],
    ready: list[list[tuple[float, int]]],
) -> dict[str, Any]:
    """Put one network's medians together."""

    def ratio(dtype: str) -> float:
        pairs = zip(seconds[(*case, dtype)], seconds[(*case, "alone")], strict=True)
        return statistics.median(sent / alone for sent, alone in pairs)

    def share(holds: Callable[[float], bool]) -> float:
        shares = []
        for buckets in ready:
            sizes = [size for moment, size in buckets if holds(moment)]
            shares.append(sum(sizes) / sum(size for _, size in buckets))
        return statistics.median(shares)

    return {
        "budget": case[0],
        "groups": case[1],
        "parameters": parameters,
        "buckets": len(ready[0]),
        "gradient_bytes": sum(size for _, size in ready[0]),
        "ready_by_half": share(lambda moment: moment <= 0.5),
        "ready_by_nine_tenths": share(lambda moment: moment <= 0.9),
        "ready_at_the_end": share(lambda moment: moment > AT_THE_END),
        **{f"{how}_s": statistics.median(seconds[(*case, how)]) for how in ("alone", *DTYPES)},
        **{f"{dtype}_ratio": ratio(dtype) for dtype in DTYPES},
    }


class Stepper:
    """Take training steps of one network on a fixed random batch, alone or with the others."""

    def __init__(self, arguments: argparse.Namespace, network: Any) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        import npas

        self.device = arguments.device
        self.parameters = npas.count_parameters(network)
        self.sender = Sender(self.device)
        self.network = DistributedDataParallel(network, bucket_cap_mb=arguments.bucket_mb)
        self.network.register_comm_hook(None, self.sender.hook)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        self.inputs = torch.randn(arguments.batch, 3, 32, 32, device=self.device)
        self.labels = torch.randint(0, 100, (arguments.batch,), device=self.device)
        self.start: Any = None

    def step(self, dtype: str) -> None:
        """Take one step: "alone", or sending gradients of this dtype."""
        import contextlib

        import torch

        self.sender.dtype, self.sender.stamps = dtype, []
        self.optimizer.zero_grad()
        with self.network.no_sync() if dtype == "alone" else contextlib.nullcontext():
            loss = torch.nn.functional.cross_entropy(self.network(self.inputs), self.labels)
            self.start = self.sender.now()
            loss.backward()
        self.optimizer.step()

    def timed(self, dtype: str) -> float:
        """Return the seconds that a step takes."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        self.step(dtype)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def ready(self) -> list[tuple[float, int]]:
        """Return when the last step's buckets were ready."""
        return self.sender.readiness(self.start)


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(
        f"{arguments.model}, {arguments.ranks} ranks on {arguments.device}, batch"
        f" {arguments.batch} a rank, buckets of {arguments.bucket_mb:g} MB, {arguments.rounds}"
        " rounds"
    )
    print(
        "                                        MB    ready by    at the   step s   sending in\n"
        "budget  groups    parameters  buckets  sent   50%   90%      end    alone   fp32   bf16"
    )
    for each in rows:
        shares = [
            f"{100 * each[f'ready_{when}']:5.0f}%"
            for when in ("by_half", "by_nine_tenths", "at_the_end")
        ]
        times = [f"{each['alone_s']:9.3f}", *(f"{each[f'{d}_ratio']:6.2f}x" for d in DTYPES)]
        print(
            f"{each['budget']:<8}{each['groups']:<8}{each['parameters']:>12,}{each['buckets']:>9}"
            f"{each['gradient_bytes'] / 1e6:>6.1f}{shares[0]}{shares[1]}   {shares[2]}"
            + "".join(times)
        )


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Keep the figures with the machine and the versions they were measured on."""
    from npas.reporting.environment import environment

    settings = {key: getattr(arguments, key) for key in KEYS}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(json.dumps(environment(), default=vars))
    arguments.out.write_text(
        json.dumps({"settings": settings, "rows": rows, **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
