#!/usr/bin/env bash
# torchinfo 1.8.0 with torch 2.14.1 (CPU, Python 3.11), numpy 2.3.5.
# `total_params` counts a weight that two layers share once per layer, but a layer that is used several times once. So a language model
# with tied embeddings has too many parameters; torch's own `parameters()` lists each once.
# Observed (values in parameters(), torchinfo's total_params):
#   head.weight is embedding.weight   1,872  3,472
#   one layer three times               272    272
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5 torchinfo==1.8.0
"$folder/env/bin/python" - <<'PYTHON'
import torch
import torchinfo
from torch import nn


class Tied(nn.Module):
    """A language model whose head has the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle = nn.Embedding(100, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.middle(self.embedding(tokens)))


def counts(network, example):
    own = sum(parameter.numel() for parameter in network.parameters())
    return own, torchinfo.summary(network, input_data=example, verbose=0).total_params


layer = nn.Linear(16, 16)
tied = counts(Tied(), torch.zeros(1, 4, dtype=torch.int64))
looped = counts(nn.Sequential(layer, layer, layer), torch.zeros(1, 16))
print("tied  ", *tied)
print("looped", *looped)
assert tied == (1872, 1872 + 1600)
assert looped == (272, 272)
PYTHON
