"""Plot a metric against the parameters of runs: npas-runs format=csv | python plot_budgets.py a.png

pip install 'npas[plots]'
"""

import argparse
import csv
import sys
from collections import defaultdict
from statistics import mean


def main(lines: list[str], out: str) -> None:
    """Draw the mean over seeds of each experiment's finished runs, each run a dot."""
    import matplotlib.pyplot as plt

    runs = [run for run in csv.DictReader(lines) if run["status"] == "done"]
    if not runs:
        sys.exit("no run is done: train some, or name their folder, as npas-runs root=runs")
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run["exp"]][int(run["used"])].append(float(run["value"]))
    for exp, values in sorted(found.items()):
        sizes = sorted(values)
        (line,) = plt.plot(sizes, [mean(values[size]) for size in sizes], label=exp)
        dots = [(size, value) for size in sizes for value in values[size]]
        plt.scatter(*zip(*dots, strict=True), s=12, color=line.get_color())
    plt.xscale("log")
    plt.xlabel("trainable parameters")
    plt.ylabel(" or ".join(sorted({run["metric"] for run in runs})))
    plt.legend()
    plt.savefig(out, dpi=150)
    plt.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default="budgets.png")
    out = parser.parse_args().out
    main(sys.stdin.readlines(), out)
