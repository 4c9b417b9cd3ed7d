#!/usr/bin/env bash
# peft 0.21.2, torch 2.14.1 (CPU, Python 3.11), transformers 5.24.0, accelerate 1.15.0.
# LoRA with init_lora_weights="pissa" or "olora" starts from a part of the base weight and subtracts that part from it, so that
# the network's outputs do not change. The subtraction assigns `weight.data`. Where a weight is computed (torch's weight_norm,
# or any other parametrization), the assignment reaches a temporary tensor: no error and no warning, and the outputs change.
# Relative change of the outputs of one linear layer by adding the adapter:
#   init     plain layer   with weight_norm
#   default  0.0000        0.0000
#   pissa    0.0000        0.8360
#   olora    0.0000        2.0397
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import peft
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def change(init, normed):
    """Return the relative change of the outputs by an adapter that has not been trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    if normed:
        weight_norm(model[0])
    before = model(inputs).detach()
    config = peft.LoraConfig(target_modules="0", r=2, init_lora_weights=init)
    return float((peft.get_peft_model(model, config)(inputs) - before).norm() / before.norm())


print("peft", peft.__version__, "torch", torch.__version__)
found = {init: (change(init, False), change(init, True)) for init in (True, "pissa", "olora")}
for init, (plain, normed) in found.items():
    print(f"{init!s:6} {plain:.4f}  {normed:.4f}")
assert all(plain < 1e-5 for plain, _ in found.values())
assert found[True][1] < 1e-5 and found["pissa"][1] > 0.5 and found["olora"][1] > 0.5
PYTHON
