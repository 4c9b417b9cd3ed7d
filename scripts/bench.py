"""Time a shared network's training step beside the dense one's, interleaved in one run.

    python scripts/bench.py                                        # WRN-28-10, batch 8, one thread
    python scripts/bench.py --allocator keeping --out results/bench/wrn_28_10-b8.json
    python scripts/bench.py --model encoder --batch 4 --budgets 0.1,0.5 --allocator keeping
    python scripts/bench.py --mode eval --batch 1 --budgets 2
    python scripts/bench.py --model resnet50 --batch 128 --device cuda --precision bf16

A step is forward, backward and SGD with momentum; `--mode eval` times the forward pass of the
shared, not materialized, network instead. `encoder` is as large as BERT-large's, without the
vocabulary: 24 layers of 1,024. Each round times the dense step and each shared one, in an order
that rotates; a ratio is the median over the rounds of shared / dense of the same round, so that
what slows the machine slows both sides. The generation share is what making all
weights and gathering their gradients takes, alone, of the shared step. Peak memory is above the
start (before the network is built), each network in a process of its own; what the libraries load
at the first step, whatever trains, is in it, and is measured apart. Warm-up steps are not counted,
nor is compiling.

On a CPU the C library's allocator decides much: its default gives large blocks back after each use,
`--allocator keeping` does not, and is nearer to a GPU's caching allocator.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
KEYS = (
    "model", "mode", "batch", "length", "device", "precision", "recompute", "compile", "threads",
    "clock", "allocator", "rounds",
)  # fmt: skip
MODELS = Path(__file__).parent.parent / "configs" / "model"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="wrn_28_10", help="a file of configs/model, or encoder")
    parser.add_argument("--mode", default="train", choices=["train", "eval"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="the encoder's tokens")
    parser.add_argument("--budgets", default="0.1,0.5,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--recompute", action="store_true", help="as sharing.recompute")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--allocator", default="default", choices=["default", "keeping"])
    parser.add_argument("--no-memory", action="store_true", help="leave the memory runs out")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # dense or a budget; a child process
    return parser.parse_args()


def main() -> None:
    """Run the benchmark, or one memory measurement of it."""
    arguments = parse()
    if arguments.allocator == "keeping" and not KEEPING.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEPING)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)

    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(peak_memory(arguments))
        return
    rows = measure(arguments)
    if not arguments.no_memory:
        for row in rows:
            row["peak_mib"] = peak_in_child(row["budget"])
        if arguments.device == "cpu":
            rows[0]["libraries_mib"] = peak_in_child("libraries")
    show(arguments, rows)
    if arguments.out:
        write(arguments, rows)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps; return a row for the dense network and one for each budget."""
    import torch

    import npas

    budgets = arguments.budgets.split(",")
    networks = {"dense": build(arguments)}
    for budget in budgets:
        networks[budget] = npas.share(build(arguments), budget, recompute=arguments.recompute)
    steps = {name: stepper(arguments, network) for name, network in networks.items()}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(arguments.rounds):
        for name in order:
            seconds[name].append(timed(arguments, steps[name]))
        order = [*order[1:], order[0]]  # what comes after what must not matter
    rows = []
    for name, network in networks.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["dense"], strict=True)]
        row: dict[str, Any] = {
            "budget": name,
            "parameters": npas.count_parameters(network),
            "step_s": statistics.median(seconds[name]),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
        if name != "dense" and arguments.mode == "train":
            generate = generation(network)
            generate()
            alone = statistics.median(timed(arguments, generate) for _ in range(3))
            row["generation_share"] = alone / row["step_s"]
        rows.append(row)
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    return rows


def build(arguments: argparse.Namespace) -> Any:
    """Build the dense network that configs/model names, or the encoder."""
    import torch
    from omegaconf import OmegaConf

    from npas import models

    torch.manual_seed(0)
    if arguments.model == "encoder":
        return encoder().to(arguments.device)
    path = MODELS / f"{arguments.model}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in MODELS.glob("*.yaml")))
        sys.exit(f"--model {arguments.model} is none of {known}")
    values: Any = OmegaConf.to_container(OmegaConf.load(path))
    family = models.family(values["family"])
    network = family.build(family.Config(**values), spec(values["family"]))
    return network.to(arguments.device)


def spec(family: str) -> Any:
    """Return CIFAR-100's input for our own networks and ImageNet's for torchvision's."""
    from npas.models import InputSpec

    if family == "torchvision":
        return InputSpec((3, 224, 224), 1000)
    return InputSpec((3, 32, 32), 100)


def encoder() -> Any:
    """Build an encoder as large as BERT-large's under a linear classifier's loss."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    settings = BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings._attn_implementation = "sdpa"
    return BertEncoder(settings)


def stepper(arguments: argparse.Namespace, network: Any) -> Callable[[], None]:
    """Return one training step, or one evaluation, on a fixed random batch."""
    import torch

    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    shape: tuple[int, ...] = (arguments.length, 1024)
    if first is not None:  # the first of an ImageNet network is a 7x7
        shape = (3, 224, 224) if first.kernel_size[0] == 7 else (3, 32, 32)
    inputs = torch.randn(arguments.batch, *shape, device=arguments.device)
    labels = torch.randint(0, 100, (arguments.batch,), device=arguments.device)
    bf16 = arguments.precision == "bf16"
    if arguments.compile:
        network.compile()

    def outputs() -> torch.Tensor:
        with torch.autocast(arguments.device, torch.bfloat16, enabled=bf16):
            found = network(inputs)
        return found if isinstance(found, torch.Tensor) else found[0].mean(1)

    if arguments.mode == "eval":
        network.eval()
        return torch.no_grad()(outputs)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs().float(), labels).backward()
        optimizer.step()

    return step


def generation(network: Any) -> Callable[[], None]:
    """Return a function that makes every weight and gathers gradients for all of them."""
    import torch

    shared = network.__dict__["_npas_shared"]
    once = sorted(set(shared.reading.twins))
    with torch.no_grad():
        gradients = [torch.ones_like(shared.weight(i)) for i in once]

    def generate() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        shared.begin()
        weights = [shared.weight(i) for i in once]
        shared.end()
        torch.autograd.backward(weights, gradients)

    return generate


def timed(arguments: argparse.Namespace, action: Callable[[], None]) -> float:
    """Return the seconds that an action takes on the chosen clock."""
    import torch

    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    action()
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak_in_child(budget: str) -> float:
    """Measure one network's peak memory in a fresh process."""
    command = [sys.executable, *sys.argv, "--peak-of", budget]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(finished.stdout.strip())


def peak_memory(arguments: argparse.Namespace) -> float:
    """Return the peak of three training steps above the start, in MiB."""
    import torch

    import npas

    def step_thrice(network: Any) -> None:
        step = stepper(arguments, network)
        for _ in range(3):
            step()

    def run() -> None:
        network = build(arguments)
        if arguments.peak_of != "dense":
            npas.share(network, arguments.peak_of, recompute=arguments.recompute)
        step_thrice(network)

    if arguments.device == "cuda":
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own memory is not the step's
    if arguments.model == "encoder":
        from transformers.models.bert import modeling_bert  # noqa: F401
    small = build(argparse.Namespace(model="wrn_16_2", device="cpu"))
    before = resident("VmRSS")
    if arguments.peak_of == "libraries":
        step_thrice(small)
    else:
        run()
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """Return a memory figure of this process in KiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"this system does not tell {field}: use --no-memory")


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(
        f"{arguments.model}, {arguments.mode}, batch {arguments.batch}, {arguments.device},"
        f" {arguments.precision}, {arguments.threads} thread(s), {arguments.allocator} allocator,"
        f" {arguments.clock} clock, {arguments.rounds} rounds"
        f"{', recompute' if arguments.recompute else ''}{', compiled' if arguments.compile else ''}"
    )
    print("budget    parameters   step s   ratio   (lowest-highest)   generation   peak MiB")
    for row in rows:
        share = f"{100 * row['generation_share']:9.1f}%" if "generation_share" in row else " " * 10
        peak = f"{row['peak_mib']:10.0f}" if "peak_mib" in row else ""
        print(
            f"{row['budget']:<8}{row['parameters']:>12,}{row['step_s']:>9.3f}{row['ratio']:>8.3f}"
            f"   ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})     {share}  {peak}"
        )

    if "libraries_mib" in rows[0]:
        print(
            f"of every peak, {rows[0]['libraries_mib']:.0f} MiB are the libraries' and a small step"
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
    main()
