#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# The newer TF32 settings (torch.backends.cudnn.conv.fp32_precision and rnn.fp32_precision) and the older one
# (torch.backends.cudnn.allow_tf32) cannot be combined: after the newer ones are set, reading the older one raises, even on
# machines without a GPU.
# Observed: RuntimeError: PyTorch is checking whether allow_tf32 is enabled for cuDNN without a specific operator name ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch

assert torch.backends.cudnn.allow_tf32 in (True, False)
torch.backends.cudnn.conv.fp32_precision = "ieee"
torch.backends.cudnn.rnn.fp32_precision = "ieee"
try:
    print(torch.backends.cudnn.allow_tf32)
    raised = ""
except RuntimeError as error:
    raised = str(error)
    print(f"RuntimeError: {raised[:100]} ...")
assert "allow_tf32" in raised
PYTHON
