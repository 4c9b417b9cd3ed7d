#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# F.interpolate of an fp32 tensor computes its sampling positions in fp32 too. Beyond some 10^5 outputs a position has
# few bits left for its fraction: a row of a million values resized to 3.7 million is off by up to 0.37 standard
# deviations of the values (rms 0.028), while fp64 is exact to 1e-9 or so. Small maps hide it.
# Seen: 1,000 -> 3,686 rms 1.9e-05; 1,000,000 -> 3,686,400 rms 0.028, largest 0.37
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional as F

for before, after, low, high in ((1_000, 3_686, 0, 1e-3), (1_000_000, 3_686_400, 0.01, 0.1)):
    row = torch.randn(1, 1, 1, before, generator=torch.Generator().manual_seed(0))
    exact = F.interpolate(row.double(), (1, after), mode="bilinear")
    error = (F.interpolate(row, (1, after), mode="bilinear") - exact).abs()
    rms = error.square().mean().sqrt().item()
    print(f"{before:,} -> {after:,} rms {rms:.2g}, largest {error.max().item():.2g}")
    assert low <= rms < high, rms
PYTHON
