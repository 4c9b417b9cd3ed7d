"""Search for a split of the budget over groups by short trial runs.

    python scripts/split_budget.py --trials 7 +exp=digits sharing.groups=type budget=0.1 epochs=2

By default a group's share is proportional to its size. The first trial trains with this split, on
nine tenths of the training data. Each further trial doubles or halves the weight of one group, and
keeps it if the loss on the held-out tenth falls; weights that change no bank (a group gets at least
its largest layer) are passed over. The search ends after `--trials` runs or when no change helps,
and prints the best override. Trials are ordinary runs: the same command skips those that are done.
The total cost is trials x `epochs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import npas
from npas.cli.from_python import check
from npas.reporting.compose import planned

HELD_OUT = "data.val_fraction=0.1"
SMALLEST = 1 / 64  # weight that is tried, and the inverse of the largest


def override(weights: dict[str, float]) -> str:
    """Return the override that sets these weights; weights of 1 are omitted."""
    given = ",".join(f"{name}:{weight:g}" for name, weight in weights.items() if weight != 1)
    return f"sharing.group_weights={{{given}}}" if given else "sharing.group_weights=null"


def banks(overrides: Sequence[str], weights: dict[str, float]) -> dict[str, int] | None:
    """Return the size of each group's bank, None if a group would get too little."""
    try:
        plan = planned(*overrides, override(weights))
    except ValueError as error:
        print(f"not feasible  {override(weights)}  ({error})", flush=True)
        return None
    return {group.name: group.used for group in plan.groups}


def trial(overrides: Sequence[str], weights: dict[str, float], sizes: dict[str, int]) -> float:
    """Train with one split; return its held-out loss, infinite if it diverged."""
    result = npas.train([*overrides, HELD_OUT, override(weights)])
    loss = result.metrics.last["val/loss"] if result.metrics is not None else None
    if loss is None:
        return float("inf")
    shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    print(f"{loss:.4f}  {override(weights)}  ({shown})", flush=True)
    return loss


def search(overrides: Sequence[str], trials: int) -> tuple[dict[str, float], float]:
    """Return the best weights found in this many trials, and their loss."""
    names = [group.name for group in planned(*overrides).groups]
    if len(names) < 2:
        raise ValueError(
            f"there is one group, {names[0]}: set sharing.groups, as to type or depth:2"
        )
    best = dict.fromkeys(names, 1.0)
    sizes = banks(overrides, best)
    assert sizes is not None  # it was planned above
    lowest, seen = trial(overrides, best, sizes), [sizes]
    for step in (2.0, 2**0.5):
        for name in names[1:]:  # only ratios count: the first weight is fixed
            for factor in (step, 1 / step):
                before, weight = lowest, best[name]
                while len(seen) < trials and SMALLEST < (weight := weight * factor) < 1 / SMALLEST:
                    tried = {**best, name: weight}
                    if (sizes := banks(overrides, tried)) is None:
                        break
                    if sizes in seen:
                        continue
                    seen.append(sizes)
                    loss = trial(overrides, tried, sizes)
                    if loss >= lowest:
                        break
                    best, lowest = tried, loss
                if lowest < before:  # do not go back
                    break
    return best, lowest


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and print the best override; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=7, help="total number of runs")
    parser.add_argument("overrides", nargs="+", help="overrides of npas-train")
    options = parser.parse_args(arguments)
    if options.trials < 2:
        parser.error("--trials must be at least 2")
    try:
        check(options.overrides)
        weights, loss = search(options.overrides, options.trials)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"best: {override(weights)}, loss {loss:.4f} on held-out data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
