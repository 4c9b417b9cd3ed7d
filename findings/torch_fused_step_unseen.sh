#!/usr/bin/env bash
# torch 2.14.1 (CPU, Python 3.11), numpy 2.3.5.
# Autograd compares version counters to refuse a backward whose saved tensors were changed in place after the forward. SGD,
# Adam, AdamW and Adagrad with fused=True change parameters without increasing the counter. A step between forward and
# backward is then not refused, and the gradient is computed with the new weight.
# Observed:
#   SGD default  +1  RuntimeError
#   SGD fused    +0  gradient 1.0 where 2.0 is right
#   Adam, AdamW, Adagrad fused  +0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch

outcomes = {}
for fused in (False, True):
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    x = torch.tensor([3.0], requires_grad=True)
    y = x * weight  # d y / d x = 2
    weight.grad = torch.tensor([1.0])
    before = weight._version
    torch.optim.SGD([weight], lr=1.0, fused=fused).step()  # the weight becomes 1
    try:
        y.backward()
        outcomes[fused] = f"gradient {x.grad.item()} where 2.0 is right"
    except RuntimeError:
        outcomes[fused] = "RuntimeError"
    print("SGD", "fused  " if fused else "default", f"+{weight._version - before}", outcomes[fused])
assert outcomes == {False: "RuntimeError", True: "gradient 1.0 where 2.0 is right"}, outcomes
for name in ("Adam", "AdamW", "Adagrad"):
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = torch.ones(4)
    before = weight._version
    getattr(torch.optim, name)([weight], lr=0.1, fused=True).step()
    print(name, "fused", f"+{weight._version - before}")
    assert weight._version == before and (weight != 1).all()
PYTHON
