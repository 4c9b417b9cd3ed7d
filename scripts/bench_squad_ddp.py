"""Benchmark the communication of BERT-large with 334M and with 18M parameters, and model its cost.

    python scripts/bench_squad_ddp.py --out results/bench/squad_ddp_gloo.json   # two CPU ranks
    python scripts/bench_squad_ddp.py --device cuda --ranks 8 --batch 8 --length 384
    python scripts/bench_squad_ddp.py --table                               # only the model

The networks are those of `+exp=ssn_squad2`, dense and shared. A step is forward, backward and SGD
without momentum on `--batch` texts per rank. "alone" is without communication; "exposed" is what
communication adds to it; "all-reduce" only sends as many bytes. Networks and kinds alternate;
results are medians.

The model of a step on n GPUs with b texts each (see docs/communication.md):

    t_send = bytes * 2 (n - 1) / n / bandwidth
    t = t_compute + t_generation + t_update + max(t_send - t_backward, last * t_send)

t_generation is the time to generate the shared network's weights. `last` is the fraction of
gradients that is complete only at the end of backward: the embedding's of the dense network, all
of the shared one.
"""

import argparse
import contextlib
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import write
from ranks import measure_in_ranks

EXP = "ssn_squad2"
DENSE, SHARED = 334_094_338, 18_000_000
KEYS = ("batch", "length", "device", "ranks", "bucket_mb", "rounds", "overrides")


@dataclass(frozen=True)
class Cluster:
    """The model's assumptions."""

    gpus: int = 128
    flops: float = 40e12  # sustained by a V100 in fp16, a third of its peak of 125e12
    memory: float = 0.7e12  # bytes per second, sustained, of its peak of 0.9e12
    backward: float = 2 / 3  # fraction of compute during which gradients are sent
    last: float = 31_782_912 / DENSE  # fraction of a dense network's gradients: embeddings
    gradient_bytes: int = 4  # per parameter
    update_bytes: int = 28  # per parameter: Adam reads four numbers and writes three
    generation_bytes: int = 6  # per fp16 weight: written once, its gradient read twice
    length: int = 384  # tokens per text


def text_flops(length: int, layers: int = 24, width: int = 1024) -> float:
    """Return the FLOPs of a training step on one text: three times those of forward."""
    matrices = 12 * layers * width**2  # weights of attention and feed-forward
    return 3 * (2 * matrices * length + 4 * layers * length**2 * width)


def step_s(cluster: Cluster, shared: bool, texts: float, bandwidth: float) -> float:
    """Return the modelled seconds of a step; `texts` and `bandwidth` (bytes/s) are per GPU."""
    parameters = SHARED if shared else DENSE
    compute_s = texts * text_flops(cluster.length) / cluster.flops
    generation_s = DENSE * cluster.generation_bytes / cluster.memory if shared else 0.0
    update_s = parameters * cluster.update_bytes / cluster.memory
    rounds = 2 * (cluster.gpus - 1) / cluster.gpus
    send_s = parameters * cluster.gradient_bytes * rounds / bandwidth
    backward_s, last = cluster.backward * compute_s, 1.0 if shared else cluster.last
    return compute_s + generation_s + update_s + max(send_s - backward_s, last * send_s)


def ratio(cluster: Cluster, texts: float, bandwidth: float) -> float:
    """Return the modelled speedup of the shared network."""
    return step_s(cluster, False, texts, bandwidth) / step_s(cluster, True, texts, bandwidth)


def bandwidth_for(cluster: Cluster, texts: float, wanted: float) -> float | None:
    """Return the bandwidth at which the speedup is `wanted`, None if there is none."""
    low, high = 1e6, 1e15
    if not ratio(cluster, texts, high) < wanted < ratio(cluster, texts, low):
        return None
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if ratio(cluster, texts, middle) > wanted else (low, middle)
    return low


PUBLISHED = 1.4  # on 128 V100
TEXTS = (1, 2, 4, 8, 16, 32)
BANDWIDTHS = (0.4e9, 1.25e9, 3.1e9, 6.2e9, 12.5e9, 25e9, 130e9)


def table(cluster: Cluster) -> str:
    """Return the modelled speedups, one line per bandwidth."""
    lines = ["GB/s per GPU  texts/GPU:  " + "".join(f"{texts:>7}" for texts in TEXTS)]
    for bandwidth in BANDWIDTHS:
        ratios = "".join(f"{ratio(cluster, texts, bandwidth):6.2f}x" for texts in TEXTS)
        lines.append(f"{bandwidth / 1e9:10.2f}{'':16}{ratios}")
    found = [bandwidth_for(cluster, texts, PUBLISHED) for texts in TEXTS]
    needed = "".join("      -" if b is None else f"{b / 1e9:7.2f}" for b in found)
    return "\n".join([*lines, f"GB/s for {PUBLISHED}x{'':13}{needed}"])


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=1, help="texts per rank")
    parser.add_argument("--length", type=int, default=32, help="tokens per text")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bucket-mb", type=float, default=25, help="torch's default is 25")
    parser.add_argument("--overrides", nargs="*", default=[], help=f"overrides of +exp={EXP}")
    parser.add_argument("--table", action="store_true", help="only print the model")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark in all ranks and print the results of rank 0."""
    arguments = parse()
    if arguments.table:
        print(table(Cluster()))
        return
    rows = measure_in_ranks(measure, arguments)
    show(arguments, rows)
    if arguments.out:
        write(arguments.out, settings={key: getattr(arguments, key) for key in KEYS}, rows=rows)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of both networks alternately; return a row for each."""
    import torch.distributed as dist

    steppers = {budget: Stepper(arguments, budget) for budget in ("dense", "shared")}
    how = ("alone", "sending", "all-reduce")
    for stepper in steppers.values():
        for kind in (*how, "sending"):  # warm-up; DDP reorders its buckets after the first
            stepper.timed(kind)
    seconds: dict[Any, list[float]] = {}
    order = list(steppers)
    for _ in range(arguments.rounds):
        for budget in order:
            for kind in how:
                dist.barrier()
                seconds.setdefault((budget, kind), []).append(steppers[budget].timed(kind))
        order.reverse()  # vary which follows which
    return [
        {
            "network": budget,
            "parameters": stepper.parameters,
            "sent_bytes": stepper.sent_bytes,
            "buckets": stepper.buckets,
            **{f"{kind.replace('-', '_')}_s": seconds[budget, kind] for kind in how},
            "exposed_s": [
                sending - alone
                for sending, alone in zip(
                    seconds[budget, "sending"], seconds[budget, "alone"], strict=True
                )
            ],
        }
        for budget, stepper in steppers.items()
    ]


class Stepper:
    """Take training steps of one network on fixed random texts, with or without communication."""

    def __init__(self, arguments: argparse.Namespace, budget: str) -> None:
        import torch
        from bench_ddp import Sender
        from torch.nn.parallel import DistributedDataParallel

        import npas
        from npas.models import InputSpec
        from npas.reporting.compose import compose
        from npas.training.experiment import build_network

        dense = ["budget=dense"] if budget == "dense" else []
        config = compose(f"+exp={EXP}", *arguments.overrides, *dense)
        spec = InputSpec((arguments.length,), 2, outputs="span")
        network = build_network(config, spec).to(arguments.device)
        self.device = arguments.device
        self.parameters = npas.count_parameters(network)
        self.sender = Sender(self.device)
        self.network = DistributedDataParallel(
            network, bucket_cap_mb=arguments.bucket_mb, gradient_as_bucket_view=True
        )
        self.network.register_comm_hook(None, self.sender.hook)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        shape = (arguments.batch, arguments.length)
        words_BT = torch.randint(1, config.model.vocab_size, shape, device=self.device)
        self.inputs = {
            "input_ids": words_BT,
            "token_type_ids": torch.zeros_like(words_BT),
            "attention_mask": torch.ones_like(words_BT),
        }
        # For all-reduce alone: a bucket, sent as often as needed.
        self.piece = torch.zeros(int(arguments.bucket_mb * 2**20) // 4, device=self.device)
        self.sent_bytes = self.buckets = 0

    def step(self, kind: str) -> None:
        """Take one step with or without communication, or only send as many bytes."""
        import torch

        if kind == "all-reduce":
            for start in range(0, self.parameters, len(self.piece)):
                torch.distributed.all_reduce(self.piece[: self.parameters - start])
            return
        self.sender.stamps = []
        with self.network.no_sync() if kind == "alone" else contextlib.nullcontext():
            found = self.network(**self.inputs)
            (found.start_logits.square() + found.end_logits.square()).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # keep them: they are views of the buckets
        if kind == "sending":
            self.buckets = len(self.sender.stamps)
            self.sent_bytes = sum(size for _, size in self.sender.stamps)

    def timed(self, kind: str) -> float:
        """Return the seconds of a step."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        self.step(kind)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the medians and speedups."""
    print(
        f"{EXP}, {arguments.ranks} ranks on {arguments.device}, {arguments.batch} texts of"
        f" {arguments.length} tokens per rank, buckets of {arguments.bucket_mb:g} MB,"
        f" {arguments.rounds} rounds"
    )
    print("network    parameters   MB sent  buckets   alone s  sending s  exposed s  all-reduce s")
    for row in rows:
        times = [
            statistics.median(row[f"{kind}_s"])
            for kind in ("alone", "sending", "exposed", "all_reduce")
        ]
        print(
            f"{row['network']:<9}{row['parameters']:>12,}{row['sent_bytes'] / 1e6:>10.1f}"
            f"{row['buckets']:>9}{times[0]:10.3f}{times[1]:11.3f}{times[2]:11.3f}{times[3]:14.3f}"
        )
    dense, shared = (
        {k: statistics.median(row[f"{k}_s"]) for k in ("alone", "sending", "all_reduce")}
        for row in rows
    )
    for kind in dense:
        print(f"{kind}: the shared network is {dense[kind] / shared[kind]:.2f}x as fast")


if __name__ == "__main__":
    sys.exit(main())
