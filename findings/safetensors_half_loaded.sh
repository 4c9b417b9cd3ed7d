#!/usr/bin/env bash
# safetensors 0.8.0 with torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5.
# safetensors.torch.load_model (strict, the default) raises for a file that lacks a tensor, but only after it has copied all
# other tensors into the network. A program that catches the error continues with a half-loaded network. To avoid this,
# compare names before load_state_dict.
# Observed: RuntimeError, and the first layer has the zeros of the refused file
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5 safetensors==0.8.0 packaging
"$folder/env/bin/python" - <<'PYTHON'
import tempfile

import torch
from safetensors.torch import load_model, save_file
from torch import nn

network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
tensors = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
del tensors["1.bias"]
with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
    save_file(tensors, file.name)
    try:
        load_model(network, file.name)
        raised = False
    except RuntimeError:
        raised = True
changed = bool((network[0].weight == 0).all())
print("RuntimeError" if raised else "loaded", "and the first layer", "holds the zeros of the refused file" if changed else "is as it was")
assert raised and changed
PYTHON
