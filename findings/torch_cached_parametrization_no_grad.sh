#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# Inside parametrize.cached(), a weight first read under no_grad (a validation pass, a logged norm) is cached without a
# graph and given to the training pass that follows: backward raises no error, and the weight gets no gradient.
# Observed: weight: None, bias: tensor
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import parametrize


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


layer = nn.Linear(3, 3)
parametrize.register_parametrization(layer, "weight", Twice())
inputs = torch.ones(2, 3)
with parametrize.cached():
    with torch.no_grad():
        layer(inputs)
    layer(inputs).sum().backward()
weight, bias = layer.parametrizations.weight.original.grad, layer.bias.grad
print(f"weight: {weight}, bias: {'None' if bias is None else 'tensor'}")
assert weight is None and bias is not None
PYTHON
