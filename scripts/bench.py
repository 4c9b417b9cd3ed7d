"""Benchmark shared networks against the dense one, and one build of npas against another.

    python scripts/bench.py                                          # WRN-28-10, batch 8, training
    python scripts/bench.py --model encoder:12x768 --batch 4 --budgets 0.1,0.5 --hand
    python scripts/bench.py --action eval --batch 1 --base ../older  # two builds, interleaved
    python scripts/bench.py --budgets 2,2:max_templates=4,2:recompute # options of npas.share
    python scripts/bench.py --action generate --limits               # and what bounds it
    python scripts/bench.py --action materialize --model mlp:1000x64 --budgets 0.1
    python scripts/bench.py --command "table digits" --base ../older
    python scripts/bench.py --model resnet50 --batch 128 --device cuda --precision bf16

Each network has its own process; they run one at a time. Each runs once per round, in an order that
is balanced over the rounds (a Williams design). The clock is processor time of one thread, which
other users of the machine disturb least. A ratio is to the dense network (or the first row) in the
same round. Results are medians and quartiles over the rounds, after two warm-up actions. Peak
memory is relative to the process before it builds the network.

Actions: `train` is a step with npas-train's fused optimizer (SGD with momentum; AdamW for
encoders), `update` only the optimizer's part. `generate` generates all weights and computes their
gradients; with `--limits`, rows beside it run only its matrix products and copy as many bytes as it
moves. `eval` is a forward pass without gradients, `first` the first one after a change of the bank.
`materialize`, `plan` and `share` are these functions. `--command` runs an npas command instead.
`--hand` adds a handwritten network that mixes the same templates by parametrizations.

On a CPU results depend on the C library's allocator. By default it returns large blocks to the
system after each use; `--allocator keeping` keeps them, as a GPU's caching allocator does.
"""

import argparse
import copy
import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_limits import LIMITS, Action, nothing
from bench_networks import HERE, build, is_known, share_by_hand

KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
WITH_DENSE = ("train", "update", "eval", "first")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", default="wrn_28_10", help="from configs/model; encoder:LxD; mlp:LxD"
    )
    parser.add_argument("--action", default="train", choices=list(ACTIONS))
    parser.add_argument("--command", help="an npas command with arguments, instead of --model")
    parser.add_argument("--budgets", default="0.1,0.5,2", help="with options, as 2:max_templates=4")
    parser.add_argument("--generator", default="wavg", help="sharing.generator; codebook fits one")
    parser.add_argument("--base", type=Path, help="checkout of another build of npas")
    parser.add_argument("--hand", action="store_true", help="add the handwritten network")
    parser.add_argument("--limits", action="store_true", help="with --action generate")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--repeat", type=int, default=1, help="actions per round, the fastest counts"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of an encoder")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", default="keeping", choices=["default", "keeping"])
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a child process: dense or a budget
    found = parser.parse_args()
    if found.limits and (found.action != "generate" or found.generator == "hash"):
        parser.error("--limits goes with --action generate of templates")
    budget = r"[\d.]+(:(recompute|max_templates=\d+))*"
    if not re.fullmatch(f"{budget}(,{budget})*", found.budgets):
        parser.error(f"--budgets {found.budgets}: give numbers, as 0.1,0.5,2:max_templates=4")
    if ":" in found.budgets and (found.limits or found.hand or found.action == "plan"):
        parser.error("--budgets: options do not go with --limits, --hand and --action plan")
    if found.command is None and not is_known(found.model):
        parser.error(f"--model {found.model}: see --help for the choices")
    return found


def main() -> None:
    """Run the benchmark, or serve one row of it."""
    arguments = parse()
    if arguments.serve:
        serve(arguments)
        return
    workers = {name: start(arguments, *case) for name, case in cases(arguments).items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for order in orders(list(workers), arguments.rounds):
        for name in order:
            seconds[name].append(min(ask(workers[name]) for _ in range(arguments.repeat)))
    rows = []
    for name, found in seconds.items():
        first = seconds[next(iter(seconds))]
        ratios = [a / b for a, b in zip(found, first, strict=True)]
        more = json.loads(workers[name].communicate("\n")[0])
        rows.append({"network": name, "s": quartiles(found), "ratio": quartiles(ratios), **more})
    show(rows)
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "serve", "base")}
        if arguments.base:
            command = ["git", "-C", str(arguments.base), "rev-parse", "--short", "HEAD"]
            git = subprocess.run(command, capture_output=True, text=True)
            settings["base"] = git.stdout.strip()
        write(arguments.out, settings=settings, rows=rows)


def cases(arguments: argparse.Namespace) -> dict[str, tuple[str, Path]]:
    """Return for each row the argument of --serve and the build of npas."""
    builds = {"": HERE} | ({"base": arguments.base.resolve()} if arguments.base else {})
    if arguments.command:
        return {f"{arguments.command} {b}".strip(): ("-", path) for b, path in builds.items()}
    found = {"dense": ("dense", HERE)} if arguments.action in WITH_DENSE else {}
    for budget in arguments.budgets.split(","):
        found |= {f"{budget} {b}".strip(): (budget, path) for b, path in builds.items()}
        more = ["hand"] * arguments.hand + [*LIMITS] * arguments.limits
        found |= {f"{budget} {kind}": (f"{kind} {budget}", HERE) for kind in more}
    return found


def orders(names: list[str], rounds: int) -> list[list[str]]:
    """Return the order of each round; each name follows each other one equally often."""
    count = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else (count - i // 2) % count for i in range(count)]
    rotated = [[names[(i + r) % count] for i in zigzag] for r in range(rounds)]
    return [order[::-1] if r // count % 2 else order for r, order in enumerate(rotated)]


def start(arguments: argparse.Namespace, serves: str, build: Path) -> subprocess.Popen[str]:
    """Start the process of one row and warm it up."""
    env = {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(build)}
    env |= KEEPING if arguments.allocator == "keeping" else {}
    return start_worker([sys.executable, *sys.argv, "--serve", serves], env)


def start_worker(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process that acts on each line of its stdin, and warm it up by two actions."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker = subprocess.Popen(command, env=os.environ | env, **pipes)
    ask(worker)
    ask(worker)
    return worker


def ask(worker: subprocess.Popen[str]) -> float:
    """Let a worker act once; return the seconds."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("act\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def serve(arguments: argparse.Namespace) -> None:
    """Act on each line of stdin and print the seconds; on an empty line print the rest."""
    if arguments.command:
        name, *args = shlex.split(arguments.command)
        code = f"import sys; from npas.cli import {name}; sys.exit({name}.main({args!r}))"
        spent = 0.0
        while sys.stdin.readline().strip():
            where = {"cwd": os.environ["PYTHONPATH"], "stdout": subprocess.DEVNULL}
            subprocess.run([sys.executable, "-c", code], check=True, **where)
            used, before = resource.getrusage(resource.RUSAGE_CHILDREN), spent
            spent = used.ru_utime + used.ru_stime
            print(spent - before, flush=True)
        print(json.dumps({"peak_mib": used.ru_maxrss / 2**10}))
        return

    import torch

    torch.set_num_threads(arguments.threads)
    torch.randn(64, 64) @ torch.randn(64, 64)  # allocate the libraries' own memory first
    build(argparse.Namespace(model="wrn_16_2", device="cpu"))
    before = resident("VmRSS")
    network = build(arguments)
    kind, _, budget = arguments.serve.rpartition(" ")
    if kind == "hand":
        network = share_by_hand(network, budget)
    elif arguments.serve != "dense" and arguments.action not in ("plan", "share"):
        network = share(arguments, network, budget)
    make = LIMITS.get(kind) or ACTIONS[arguments.action]
    prepare, act = make(arguments, network)
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if arguments.device == "cuda" else bool
    while sys.stdin.readline().strip():
        prepared = prepare()
        wait()
        started = clock()
        act(prepared)
        wait()
        print(clock() - started, flush=True)
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    peak = (resident("VmHWM") - before) / 2**10
    if arguments.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"parameters": count, "peak_mib": peak}))


def share(arguments: argparse.Namespace, network: Any, case: str) -> Any:
    """Share a network inside a budget, with the options after it: "2:max_templates=4"."""
    import npas

    budget, *chosen = case.split(":")
    options: dict[str, Any] = {"generator": arguments.generator}
    options |= {"init": "fit"} if arguments.generator == "codebook" else {}
    for option in chosen:
        key, _, value = option.partition("=")
        options[key] = int(value) if value else True
    return npas.share(network, budget, **options)


def forward(arguments: argparse.Namespace, network: Any) -> Callable[[], Any]:
    """Return a function that computes the outputs (batch x classes) of a fixed random batch."""
    import torch

    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    width = network.config.hidden_size if hasattr(network, "config") else 64
    shape: tuple[int, ...] = (arguments.length, width)
    if first is not None:
        small = (HERE / "configs" / "model" / f"{arguments.model}.yaml").is_file()
        shape = (3, 32, 32) if small and first.kernel_size[0] < 7 else (3, 224, 224)
    inputs = torch.randn(arguments.batch, *shape, device=arguments.device)
    if arguments.compile:
        network.compile()

    def outputs() -> torch.Tensor:
        bf16 = arguments.precision == "bf16"
        with torch.autocast(arguments.device, torch.bfloat16, enabled=bf16):
            found = network(inputs)
        found = found if isinstance(found, torch.Tensor) else found[0]
        return found.mean(1) if found.ndim > 2 else found

    return outputs


def train(arguments: argparse.Namespace, network: Any) -> Action:
    """Return a training step."""
    import torch

    outputs = forward(arguments, network)
    labels = torch.randint(0, 64, (arguments.batch,), device=arguments.device)
    optimizer = build_optimizer(arguments, network)

    def step(_: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs().float(), labels).backward()
        optimizer.step()

    return nothing, step


def build_optimizer(arguments: argparse.Namespace, network: Any) -> Any:
    """Build npas-train's fused optimizer."""
    import torch

    if arguments.model.startswith("encoder"):
        return torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)


def update(arguments: argparse.Namespace, network: Any) -> Action:
    """Return an optimizer step on given gradients."""
    import torch

    optimizer = build_optimizer(arguments, network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return nothing, lambda _: optimizer.step()


def generate(arguments: argparse.Namespace, network: Any) -> Action:
    """Return a function that generates all weights and computes their gradients."""
    import torch

    owners = [(m, m.__dict__["_npas"].layers) for m in network.modules() if "_npas" in m.__dict__]
    attributes = {i: (owner, name) for owner, layers in owners for name, i in layers.items()}
    network.forward = lambda: [getattr(*attribute) for attribute in attributes.values()]
    gradients = [torch.ones_like(weight) for weight in network()]

    def make(_: Any) -> None:
        for parameter in network.parameters():
            parameter.grad = None
        torch.autograd.backward(network(), gradients)

    return nothing, make


def evaluate(arguments: argparse.Namespace, network: Any) -> Action:
    """Return a forward pass without gradients."""
    import torch

    outputs = forward(arguments, network.eval())
    return nothing, lambda _: torch.no_grad()(outputs)()


def evaluate_first(arguments: argparse.Namespace, network: Any) -> Action:
    """Return a forward pass without gradients after a change of all parameters."""
    import torch

    def change() -> None:
        torch.autograd.graph.increment_version(network.parameters())

    return change, evaluate(arguments, network)[1]


def materialize(arguments: argparse.Namespace, network: Any) -> Action:
    """Return npas.materialize of a copy."""
    import npas

    return (lambda: copy.deepcopy(network)), npas.materialize


def plan(arguments: argparse.Namespace, network: Any) -> Action:
    """Return npas.plan."""
    import npas

    return nothing, lambda _: npas.plan(network, arguments.serve)


def share_afresh(arguments: argparse.Namespace, network: Any) -> Action:
    """Return npas.share of a copy."""
    budget = arguments.serve
    return (lambda: copy.deepcopy(network)), lambda copied: share(arguments, copied, budget)


ACTIONS: dict[str, Callable[[argparse.Namespace, Any], Action]] = {
    "train": train,
    "update": update,
    "generate": generate,
    "eval": evaluate,
    "first": evaluate_first,
    "materialize": materialize,
    "plan": plan,
    "share": share_afresh,
}


def resident(field: str) -> int:
    """Return a field of /proc/self/status in KiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def quartiles(values: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, method="inclusive") if len(values) > 1 else 3 * values


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(" ".join(sys.argv[1:]) or "wrn_28_10")
    print(f"{'network':28}{'parameters':>12}{'ms':>10}{'ratio':>8}  (quartiles)    peak MiB")
    for row in rows:
        low, middle, high = row["ratio"]
        print(
            f"{row['network']:28}{row.get('parameters', 0):>12,}{1e3 * row['s'][1]:>10.1f}"
            f"{middle:>8.3f}  ({low:.3f}-{high:.3f}){row['peak_mib']:>10.0f}"
        )


def write(out: Path, **figures: Any) -> None:
    """Write figures as JSON, with versions, commit and hardware."""
    from npas.reporting.environment import environment

    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures | environment(), indent=1, default=vars)
    out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
