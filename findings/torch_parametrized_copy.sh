#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# A deep copy of a parametrized module has the same generated class as its original. Removing the parametrization from the
# copy deletes the property from that class, so the original loses its weight.
# Observed: AttributeError: 'ParametrizedLinear' object has no attribute 'weight'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrize


class Half(nn.Module):
    def forward(self, x):
        return x / 2


original = nn.Linear(2, 2)
parametrize.register_parametrization(original, "weight", Half())
original(torch.ones(1, 2))
copied = copy.deepcopy(original)
parametrize.remove_parametrizations(copied, "weight")
copied(torch.ones(1, 2))
try:
    original(torch.ones(1, 2))
    message = "the original still works"
except AttributeError as error:
    message = f"AttributeError: {error}"
print(message)
assert "no attribute" in message and "weight" in message
PYTHON
