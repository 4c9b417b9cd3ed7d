"""Time what ranks send of BERT-large with 18M parameters against 334M, and reckon what it costs.

    python scripts/bench_squad_ddp.py --out results/bench/squad_ddp_gloo.json   # two CPU ranks
    python scripts/bench_squad_ddp.py --device cuda --ranks 8 --batch 8 --length 384
    python scripts/bench_squad_ddp.py --table                               # the reckoning alone

The networks are those of `+exp=ssn_squad2`: dense, and shared within its budget. A step is forward,
backward and SGD without momentum on `--batch` texts a rank; "alone" is the same without sending
anything, and what sending adds to it is exposed. "all-reduce" sends as many bytes with nothing
beside it. Rounds take both networks, and each alone and sending, in turns; printed are medians.

The reckoning of a step on n GPUs, each with b texts (docs/communication.md says more):

    t_send = bytes * 2 (n - 1) / n / bandwidth
    t = t_compute + t_generation + t_update + max(t_send - t_backward, last * t_send)

where t_generation, of the shared network alone, is what making its weights takes, and `last` the
part of the gradients that is complete only when backward ends: of a dense network the embedding's,
of a shared one the whole bank's.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranks import measure_in_ranks

EXP = "ssn_squad2"
DENSE, SHARED = 334_094_338, 18_000_000
KEYS = ("batch", "length", "device", "ranks", "bucket_mb", "rounds", "words")


@dataclass(frozen=True)
class Cluster:
    """State what the reckoning assumes; every figure is an assumption but for the counts."""

    gpus: int = 128
    flops: float = 40e12  # sustained by a V100 in fp16, a third of its peak of 125e12
    memory: float = 0.7e12  # bytes a second, sustained, of its 0.9e12
    backward: float = 2 / 3  # of compute, while which gradients can leave
    last: float = 31_782_912 / DENSE  # of a dense network's gradients: those of its embeddings
    gradient_bytes: int = 4  # a parameter
    update_bytes: int = 28  # a parameter: Adam reads four numbers and writes three
    generation_bytes: int = 6  # a weight in fp16: written once, its gradient read twice
    length: int = 384  # tokens a text


def text_flops(length: int, layers: int = 24, width: int = 1024) -> float:
    """Count the operations of a training step on one text: three times those of forward."""
    matrices = 12 * layers * width**2  # weights of attention and feed-forward
    return 3 * (2 * matrices * length + 4 * layers * length**2 * width)


def step_s(cluster: Cluster, shared: bool, texts: float, bandwidth: float) -> float:
    """Reckon a step of either network with `texts` a GPU; `bandwidth` in bytes a second a GPU."""
    parameters = SHARED if shared else DENSE
    compute_s = texts * text_flops(cluster.length) / cluster.flops
    generation_s = DENSE * cluster.generation_bytes / cluster.memory if shared else 0.0
    update_s = parameters * cluster.update_bytes / cluster.memory
    rounds = 2 * (cluster.gpus - 1) / cluster.gpus
    send_s = parameters * cluster.gradient_bytes * rounds / bandwidth
    backward_s, last = cluster.backward * compute_s, 1.0 if shared else cluster.last
    return compute_s + generation_s + update_s + max(send_s - backward_s, last * send_s)


def ratio(cluster: Cluster, texts: float, bandwidth: float) -> float:
    """Reckon how many times as fast the shared network trains."""
    return step_s(cluster, False, texts, bandwidth) / step_s(cluster, True, texts, bandwidth)


def bandwidth_for(cluster: Cluster, texts: float, wanted: float) -> float | None:
    """Return the bandwidth at which the shared network is `wanted` times as fast; None if none."""
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
    """Return the reckoned ratios, a line a bandwidth."""
    lines = ["GB/s a GPU   texts a GPU: " + "".join(f"{texts:>7}" for texts in TEXTS)]
    for bandwidth in BANDWIDTHS:
        ratios = "".join(f"{ratio(cluster, texts, bandwidth):6.2f}x" for texts in TEXTS)
        lines.append(f"{bandwidth / 1e9:10.2f}{'':16}{ratios}")
    found = [bandwidth_for(cluster, texts, PUBLISHED) for texts in TEXTS]
    needed = "".join("      -" if b is None else f"{b / 1e9:7.2f}" for b in found)
    return "\n".join([*lines, f"GB/s for {PUBLISHED}x{'':13}{needed}"])


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=1, help="texts a rank")
    parser.add_argument("--length", type=int, default=32, help="tokens a text")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bucket-mb", type=float, default=25, help="torch's default is 25")
    parser.add_argument("--words", nargs="*", default=[], help=f"changes to +exp={EXP}")
    parser.add_argument("--table", action="store_true", help="measure nothing, reckon")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    return parser.parse_args()


def main() -> None:
    """Start the ranks, wait for them, print what the first has measured."""
    arguments = parse()
    if arguments.table:
        print(table(Cluster()))
        return
    rows = measure_in_ranks(measure, arguments)
    show(arguments, rows)
    if arguments.out:
        write(arguments, rows)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of both networks in turns; return a row for each."""
    import torch.distributed as dist

    steppers = {budget: Stepper(arguments, budget) for budget in ("dense", "shared")}
    how = ("alone", "sending", "all-reduce")
    for stepper in steppers.values():
        for kind in (*how, "sending"):  # after the first, DDP puts its buckets in order
            stepper.timed(kind)
    seconds: dict[Any, list[float]] = {}
    order = list(steppers)
    for _ in range(arguments.rounds):
        for budget in order:
            for kind in how:
                dist.barrier()
                seconds.setdefault((budget, kind), []).append(steppers[budget].timed(kind))
        order.reverse()  # what comes after what must not matter
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
    """Take training steps of one network on fixed random texts, alone or with the others."""

    def __init__(self, arguments: argparse.Namespace, budget: str) -> None:
        import torch
        from bench_ddp import Sender
        from torch.nn.parallel import DistributedDataParallel

        import npas
        from npas.models import InputSpec
        from npas.reporting.compose import compose
        from npas.training.experiment import build_network

        dense = ["budget=dense"] if budget == "dense" else []
        config = compose(f"+exp={EXP}", *arguments.words, *dense)
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
        # What is sent with nothing beside it: a bucket, as often as it takes.
        self.piece = torch.zeros(int(arguments.bucket_mb * 2**20) // 4, device=self.device)
        self.sent_bytes = self.buckets = 0

    def step(self, kind: str) -> None:
        """Take one step, sending gradients or not; or only send as many bytes."""
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
        self.optimizer.zero_grad(set_to_none=False)  # their memory is the buckets'
        if kind == "sending":
            self.buckets = len(self.sender.stamps)
            self.sent_bytes = sum(size for _, size in self.sender.stamps)

    def timed(self, kind: str) -> float:
        """Return the seconds that a step takes."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        self.step(kind)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the medians, and what they come to."""
    print(
        f"{EXP}, {arguments.ranks} ranks on {arguments.device}, {arguments.batch} texts of"
        f" {arguments.length} tokens a rank, buckets of {arguments.bucket_mb:g} MB,"
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
    for kind, said in (
        ("sending", "a step that sends"),
        ("alone", "a step alone"),
        ("all_reduce", "all-reduce"),
    ):
        print(f"{said}: the shared network is {dense[kind] / shared[kind]:.2f}x as fast")


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Keep the figures with the machine and the versions they were measured on."""
    from npas.reporting.environment import environment

    found = {
        "settings": {key: getattr(arguments, key) for key in KEYS},
        "rows": rows,
        **json.loads(json.dumps(environment(), default=vars)),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
