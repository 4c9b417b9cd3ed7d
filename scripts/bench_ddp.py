"""Time training steps on several ranks, and measure when gradients are ready to be sent.

    python scripts/bench_ddp.py                                    # WRN-16-2, two ranks over gloo
    python scripts/bench_ddp.py --model wrn_28_10 --batch 4 --rounds 3
    python scripts/bench_ddp.py --model wrn_28_10 --batch 64 --device cuda --ranks 8

Ranks are processes of this machine with one thread or GPU each. A step is forward, backward and SGD
with momentum on `--batch` samples per rank. Each network runs without communication ("alone"), with
fp32 and with bf16 gradients; networks alternate in rotating order. Results are medians of rank 0,
and of the ratios to the step alone of the same round.

DDP sends gradients in buckets during backward, each once all of its gradients are complete. A
bank's gradient is complete only after the backward of the first layer that reads it, so it is sent
last. "ready" is the fraction of bytes complete at a time from the start of backward (0) to its last
gradient (1).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import write
from bench_networks import MODELS
from ranks import measure_in_ranks

STAGES = {f"stages.{n}.*": f"stage{n}" for n in range(3)}
GROUPS: dict[str, Any] = {"single": "single", "stages": STAGES}
DTYPES = ("fp32", "bf16")
KEYS = ("model", "batch", "device", "ranks", "bucket_mb", "rounds")
AT_THE_END = 0.999  # buckets that are ready later wait for the last gradient


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="wrn_16_2", help="a WRN from configs/model")
    parser.add_argument("--batch", type=int, default=16, help="samples per rank")
    parser.add_argument("--budgets", default="0.1,0.5,2")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bucket-mb", type=float, default=25, help="torch's default is 25")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    found = parser.parse_args()
    if not found.model.startswith("wrn") or not (MODELS / f"{found.model}.yaml").is_file():
        parser.error(f"--model {found.model}: give a WRN of configs/model")
    return found


def main() -> None:
    """Run the benchmark in all ranks and print the results of rank 0."""
    arguments = parse()
    rows = measure_in_ranks(measure, arguments)
    show(arguments, rows)
    if arguments.out:
        write(arguments.out, settings={key: getattr(arguments, key) for key in KEYS}, rows=rows)


class Sender:
    """Send buckets as DDP does, in fp32 or bf16, and record when each was ready."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.dtype = "fp32"
        self.stamps: list[tuple[Any, int]] = []

    def now(self) -> Any:
        """Return the time in seconds, or a CUDA event."""
        if self.device == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def hook(self, state, bucket):  # no annotations: DDP would check them
        """Record a complete bucket; return the future of its all-reduced mean."""
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        self.stamps.append((self.now(), bucket.buffer().nbytes))
        if self.dtype == "bf16":
            return default_hooks.bf16_compress_hook(None, bucket)
        return default_hooks.allreduce_hook(None, bucket)

    def readiness(self, start: Any) -> list[tuple[float, int]]:
        """Return (time, bytes) of each bucket; 0: start of backward, 1: its last gradient."""
        if self.device == "cpu":
            moments = [(stamp - start, size) for stamp, size in self.stamps]
        else:
            moments = [(start.elapsed_time(stamp), size) for stamp, size in self.stamps]
        last = max(moment for moment, _ in moments)
        return [(moment / last, size) for moment, size in moments]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of all networks alternately; return a row for each."""
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
        for dtype in (
            "alone",
            *DTYPES,
            "fp32",
        ):  # warm-up; DDP reorders its buckets after the first
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
        order = [*order[1:], order[0]]  # vary which follows which
    return [row(case, networks[case].parameters, seconds, ready[case]) for case in cases]


def row(
    case: tuple[str, str],
    parameters: int,
    seconds: dict[Any, list[float]],
    ready: list[list[tuple[float, int]]],
) -> dict[str, Any]:
    """Return one network's medians."""

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
    """Take training steps of one network on a fixed random batch, with or without communication."""

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
        """Take one step: "alone", or with gradients sent in this dtype."""
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
        """Return the seconds of a step."""
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
        f" {arguments.batch} per rank, buckets of {arguments.bucket_mb:g} MB, {arguments.rounds}"
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


if __name__ == "__main__":
    sys.exit(main())
