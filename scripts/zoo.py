"""Share public architectures, built without weights, at 5%, 50% and 200% of their parameters.

    make zoo                                            # what results/zoo lacks, then the table
    python scripts/zoo.py --only 'torchvision/resnet*'  # some of them
    python scripts/zoo.py --only timm/dla34 --again     # even if its result exists
    python scripts/zoo.py --show                        # only the table

For each budget: share, count (used <= allowed, slack within the promise), forward and backward in
training mode (finite; every bank has a nonzero gradient), forward in evaluation mode, materialize,
forward again with bit-equal outputs. The materialized network is the dense one of the next budget.
If a head starts at zero and blocks gradients, the unshared parameters take a step first. If a
budget is below the smallest feasible one, the smallest one is used; that the error names it
correctly is checked for every network.

Each architecture runs in its own forked process, one after the other, on one thread. Networks above
150M parameters run in bf16 with one image, and wait until the machine has enough memory.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import timm  # noqa: F401  (loaded once, before forking)
import torch
import transformers  # noqa: F401
from torch import Tensor, nn
from zoo_networks import Case, Inputs, all_cases

import npas
from npas.sharing.budget import spell_count

LIBRARIES = ("torchvision", "timm", "transformers")
BUDGETS = ("5%", "50%", "200%")
RESULTS = Path(__file__).resolve().parent.parent / "results" / "zoo"
GIANT = 150_000_000
"""Cases with more dense parameters run in bf16 with one image."""
COPIES = 6
"""Memory to wait for, in dense networks: at 200% banks, gradients and weights."""


def main() -> int:
    """Run missing cases, write and print the table; return the number of failed ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="*", help="glob pattern of names")
    parser.add_argument("--again", action="store_true", help="also run cases with a result")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    cases = [case for case in all_cases() if fnmatchcase(case.name, arguments.only)]
    if not cases:
        parser.error(f"no case matches {arguments.only!r}")
    for case in () if arguments.show else cases:
        if arguments.again or read(arguments.out, case.name).get("status") != "passed":
            run_apart(case, arguments.out)
    rows = [read(arguments.out, case.name) for case in all_cases()]
    text = table([row for row in rows if row])
    (arguments.out / "README.md").write_text(text)
    print(text)
    return sum(row.get("status") == "failed" for row in rows)


def run_apart(case: Case, out: Path) -> None:
    """Run a case in its own process; if it dies, write a failed result."""
    result_path(out, case.name).unlink(missing_ok=True)
    started = time.perf_counter()

    def work() -> None:
        write_json(result_path(out, case.name), run(case))

    # Forked, so that libraries are already imported.
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    if not read(out, case.name):
        died = {"name": case.name, "status": "failed", "error": f"died ({process.exitcode})"}
        write_json(result_path(out, case.name), died)
    result = read(out, case.name)
    print(
        f"{case.name}: {result['status']} {result.get('error', '')}"
        f" ({time.perf_counter() - started:.0f} s, {result.get('peak_mib', 0)} MiB)",
        flush=True,
    )


def run(case: Case) -> dict[str, Any]:
    """Share an architecture at every budget; return its result."""
    from npas.reporting.environment import environment

    torch.set_num_threads(1)
    # Libraries warn while they build; npas warns that a materialized network looks trained.
    warnings.simplefilter("ignore")
    surroundings = environment()
    result: dict[str, Any] = {
        "name": case.name,
        "status": "passed",
        "note": case.note,
        "budgets": {},
    }
    try:
        model, inputs = prepare(case, result)
        result["smallest"] = smallest_budget(model)
        for budget in BUDGETS:
            result["budgets"][budget] = share_at(model, inputs, budget, result)
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        result |= {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    result["versions"] = surroundings["versions"] | library_versions()
    result["hardware"] = vars(surroundings["hardware"])
    return result


def smallest_budget(model: nn.Module) -> int:
    """Return the smallest feasible budget from the error message; check that it is correct."""
    named = refusal(model, 1)
    found = re.search(r"needs at least ([\d,]+) .* ask for budget=(\S+) or more", named)
    check(found is not None, f"no smallest budget is named: {named}")
    assert found is not None
    count = int(found[1].replace(",", ""))
    check(npas.plan(model, found[2]).budget.allowed == count, f"{found[2]} is not {count:,}")
    check(bool(refusal(model, count - 1)), f"{count:,} is not the smallest budget")
    return count


def refusal(model: nn.Module, count: int) -> str:
    """Return the error of planning with this budget, '' if there is none."""
    try:
        npas.plan(model, f"{count / 1000}K")
    except ValueError as error:
        return str(error)
    return ""


def share_at(
    model: nn.Module, inputs: Inputs, budget: str, result: dict[str, Any]
) -> dict[str, Any]:
    """Check a dense network at one budget; it is dense again after. Raises on failed checks."""
    started = time.perf_counter()
    arrays, named = inputs
    found: dict[str, Any] = {}
    if npas.parse_budget(budget).allowed(result["dense"]) < result["smallest"]:
        found["floor"] = budget = spell_count(result["smallest"])
    npas.share(model, budget, generator="wavg")
    plan = npas.allocation(model)
    used, allowed = npas.count_parameters(model), plan.budget.allowed
    found |= {"allowed": allowed, "used": used, "split": plan.split, "layers": len(plan.layers)}
    check(used == plan.budget.used <= allowed, f"{used:,} of {allowed:,} parameters")
    slack = max(allowed // 1000, len(plan.layers))
    check("floor" in found or allowed - used <= slack, f"{allowed - used:,} parameters unused")

    found |= gradients(model.train(), arrays, named)
    model.eval()
    with torch.no_grad():
        shared = outputs(model, arrays, named)
        npas.materialize(model)
        dense = outputs(model, arrays, named)
    check(len(shared) == len(dense) > 0, "no outputs")
    for before, after in zip(shared, dense, strict=True):
        check(torch.equal(before, after) and all_finite(after), "materialized outputs differ")
    check(npas.count_parameters(model) == result["dense"], "materialized count differs")
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def gradients(
    model: nn.Module, arrays: tuple[Tensor, ...], named: dict[str, Tensor]
) -> dict[str, Any]:
    """Check forward and backward; return the fraction of nonzero gradients of the banks."""
    banks = {name: p for name, p in model.named_parameters() if name.startswith("npas_bank_")}
    found: dict[str, Any] = {}
    before: dict[str, Tensor] = {}
    for attempt in range(2):
        loss = torch.zeros(())
        for tensor in floating(model(*arrays, **named)):
            loss = loss + (tensor * torch.randn_like(tensor)).float().mean()
        check(bool(loss.isfinite()), f"loss {loss}")
        loss.backward()
        for name, parameter in model.named_parameters():
            finite = parameter.grad is None or all_finite(parameter.grad)
            check(finite, f"{name}: gradient not finite")
        read = {
            name: 0 if bank.grad is None else int(bank.grad.count_nonzero())
            for name, bank in banks.items()
        }
        if not all(read.values()):
            check(attempt == 0, f"no gradient in {[name for name, n in read.items() if not n]}")
            found["started_at_zero"] = True
            before = step(model)
        model.zero_grad()
        if all(read.values()):
            break
    restore(model, before)
    total = sum(bank.numel() for bank in banks.values())
    return found | {"bank_gradient_nonzero": round(sum(read.values()) / max(total, 1), 4)}


@torch.no_grad()
def step(model: nn.Module) -> dict[str, Tensor]:
    """Take a small gradient step of the unshared parameters; return their earlier values."""
    before = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if not name.startswith("npas_") and gradient is not None and gradient.any():
            before[name] = parameter.clone()
            parameter -= 0.01 * gradient / gradient.norm()
    return before


@torch.no_grad()
def restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Undo `step`: the next budget needs the constant head."""
    for name, values in before.items():
        model.get_parameter(name).copy_(values)


def prepare(case: Case, result: dict[str, Any]) -> tuple[nn.Module, Inputs]:
    """Build the dense network and a batch; record both in the result."""
    torch.manual_seed(0)
    model = case.build()
    count = npas.count_parameters(model)
    arrays, named = case.inputs()
    dtype = torch.float32
    if count > GIANT:
        dtype = torch.bfloat16
        wait_for_memory(COPIES * 2 * count)
        model.to(dtype)
        arrays = tuple(array[:1].to(dtype) for array in arrays)
    result["dense"] = count
    result["dtype"] = str(dtype).removeprefix("torch.")
    result["inputs"] = [list(array.shape) for array in (*arrays, *named.values())]
    return model, (arrays, named)


def outputs(model: nn.Module, arrays: tuple[Tensor, ...], named: dict[str, Tensor]) -> list[Tensor]:
    """Run the network with a fixed random seed."""
    torch.manual_seed(1)
    return list(floating(model(*arrays, **named)))


def floating(output: Any) -> Iterator[Tensor]:
    """Yield every floating-point tensor of a nested output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from floating(part)


def all_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; in pieces, to keep masks small."""
    return all(bool(piece.isfinite().all()) for piece in tensor.flatten().split(1 << 24))


def check(holds: bool, message: str) -> None:
    """Raise RuntimeError(message) unless `holds`."""
    if not holds:
        raise RuntimeError(message)


def wait_for_memory(needed: int) -> None:
    """Wait until this many bytes are available (on Linux)."""
    meminfo = Path("/proc/meminfo")
    while meminfo.is_file():
        available = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())
        if available is None or int(available[1]) << 10 > needed:
            return
        time.sleep(20)


def library_versions() -> dict[str, str]:
    """Return the versions of the architectures' libraries."""
    from importlib.metadata import version

    return {name: version(name) for name in LIBRARIES}


def result_path(out: Path, name: str) -> Path:
    """Return the path of a case's result."""
    return out / f"{name}.json"


def read(out: Path, name: str) -> dict[str, Any]:
    """Return a case's result, {} if it has none."""
    path = result_path(out, name)
    return json.loads(path.read_text()) if path.is_file() else {}


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown page."""
    passed = sum(row["status"] == "passed" for row in rows)
    hardware = sorted({f"{r['hardware']['cpu']}" for r in rows if "hardware" in r})
    versions = sorted({f"{k} {v}" for r in rows for k, v in r.get("versions", {}).items()})
    lines = [
        "# The zoo",
        "",
        f"{passed} of {len(rows)} public architectures passed. `make zoo` runs what is missing"
        " here and writes this page from the JSON files beside it. `scripts/zoo.py` says what a"
        " pass means, `scripts/zoo_networks.py` how each network is built. Images are small where"
        " the architecture allows, so seconds and memory tell what a check costs, not what"
        " training does.",
        "",
        f"On {', '.join(hardware)}, one thread; {', '.join(versions)}.",
        "",
        "Smallest: the smallest feasible budget, in parameters, that the error below it names. A"
        " budget's column: parameters used / allowed, and the part of the banks' values whose"
        " gradient is not zero after one small batch. `floor` marks a network that cannot be"
        " shared that low and was shared at its smallest budget.",
        "",
        "| network | dense | smallest | layers | inputs | dtype | "
        + " | ".join(BUDGETS)
        + " | s | MiB | | |",
        "|---|--:|--:|--:|---|---|" + "---|" * len(BUDGETS) + "--:|--:|---|---|",
    ]
    for row in rows:
        budgets = [row.get("budgets", {}).get(budget) for budget in BUDGETS]
        done = [found for found in budgets if found]
        cells = [
            row["name"],
            f"{row.get('dense', 0):,}",
            f"{row.get('smallest', 0):,}",
            str(done[0]["layers"] if done else ""),
            ", ".join("x".join(map(str, shape)) for shape in row.get("inputs", [])),
            row.get("dtype", ""),
            *(cell(found) for found in budgets),
            f"{sum(found['seconds'] for found in done):.0f}",
            f"{row.get('peak_mib', 0):,}",
            row["status"],
            notes(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def notes(row: dict[str, Any]) -> str:
    """Return a case's error and notes."""
    budgets = row.get("budgets", {}).values()
    found = [row.get("error"), row.get("note")]
    if row.get("dtype") == "bfloat16":
        found.append("bf16 parameters, for memory")
    if any(budget.get("started_at_zero") for budget in budgets):
        found.append("its head starts at zero: gradients after a step of the unshared parameters")
    return "; ".join(filter(None, found))


def cell(found: dict[str, Any] | None) -> str:
    """Return the table cell of a budget."""
    if not found:
        return ""
    floor = f"floor {found['floor']}: " if "floor" in found else ""
    read = 100 * found["bank_gradient_nonzero"]
    return f"{floor}{found['used']:,} / {found['allowed']:,}, {read:.1f}%"


if __name__ == "__main__":
    sys.exit(main())
