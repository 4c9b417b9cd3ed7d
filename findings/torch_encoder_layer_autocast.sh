#!/usr/bin/env bash
# torch 2.14.1 (CPU, Python 3.11).
# nn.TransformerEncoderLayer in eval mode under no_grad and torch.autocast("cpu", torch.bfloat16). A forward hook that does
# nothing, on one of its linear layers, changes the outputs' dtype and values:
#   without a hook: torch.bfloat16, largest error 0.02146 beside fp32
#   with the hook:  torch.float32, largest error 0.00453
# Without hooks the layer takes its fused path, also under autocast on CPUs (on CUDA devices autocast turns that path off): it
# computes all of it in bf16, norms and residual sums too. A hook on any part selects the other path, in which autocast keeps
# layer_norm in fp32. So profilers, activation recorders and libraries that add hooks change what an evaluation measures.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
inputs = torch.randn(2, 10, 64)
exact = layer(inputs).detach()


def run():
    """Return the outputs under autocast and their largest error."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs)
    return found.dtype, float((found.float() - exact).abs().max())


print(torch.__version__)
plain, error = run()
layer.linear1.register_forward_hook(lambda *given: None)
hooked, smaller = run()
print(f"without a hook: {plain}, largest error {error:.5f} beside fp32")
print(f"with the hook:  {hooked}, largest error {smaller:.5f}")
assert (plain, hooked) == (torch.bfloat16, torch.float32)
assert error > 2 * smaller
PYTHON
