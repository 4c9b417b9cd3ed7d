#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# torch.inference_mode(False) inside torch.no_grad() also turns gradients back on: the context sets the gradient mode to the
# opposite of its argument instead of leaving it unchanged. A cache that uses it to make ordinary tensors under no_grad
# builds autograd graphs unnoticed.
# Observed: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch

with torch.no_grad(), torch.inference_mode(False):
    enabled = torch.is_grad_enabled()
print(enabled)
assert enabled
PYTHON
