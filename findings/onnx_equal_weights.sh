#!/usr/bin/env bash
# torch 2.14.1 (CPU, Python 3.11), onnx 1.23.2, onnxscript 0.7.1, numpy 2.3.5.
# Two layers with equal but untied weights (a shared network made dense): the older exporter of torch.onnx
# (dynamo=False) writes equal values once; the present one writes small equal tensors (biases) once and large ones twice.
# Tied weights are written once by both.
# Observed: tied: 1 and 1 weights; equal: dynamo 2 weights, 1 bias; older 1 weight, 1 bias
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.1 numpy==2.3.5
"$folder/env/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys

import onnx
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.first, self.second = nn.Linear(256, 256), nn.Linear(256, 256)
        self.second.load_state_dict(self.first.state_dict())
        if tied:
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


def stored(tied, dynamo):
    path = f"{sys.argv[1]}/model.onnx"
    torch.onnx.export(Two(tied).eval(), (torch.ones(1, 256),), path, dynamo=dynamo, external_data=False, verbose=False)
    ranks = [len(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    return ranks.count(2), ranks.count(1)


tied = stored(True, True), stored(True, False)
equal = stored(False, True), stored(False, False)
print(
    f"tied: {tied[0][0]} and {tied[1][0]} weights; equal: dynamo {equal[0][0]} weights, {equal[0][1]} bias; "
    f"older {equal[1][0]} weight, {equal[1][1]} bias"
)
assert tied[0][0] == tied[1][0] == 1 and equal == ((2, 1), (1, 1))
PYTHON
