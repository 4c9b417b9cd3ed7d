#!/usr/bin/env bash
# ptflops 0.7.5, thop 0.1.1.post2209072238 with torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5.
# Counters of multiply-adds that look up layers by their exact class count (almost) nothing for a subclass of nn.Conv2d
# that overrides nothing. torch.utils.flop_counter counts operations and is correct for both.
# Observed (multiply-adds of one 3x3 convolution, exact class and subclass; flop_counter's FLOPs halved):
#   flop_counter  147,456  147,456
#   thop          147,456        0
#   ptflops       147,456        0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5 ptflops==0.7.5 thop==0.1.1.post2209072238
"$folder/env/bin/python" - <<'PYTHON'
import torch
from ptflops import get_model_complexity_info
from thop import profile
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Same(nn.Conv2d):
    """Overrides nothing."""


def counts(layer):
    network, image = nn.Sequential(layer(8, 8, 3, padding=1, bias=False)), torch.zeros(1, 8, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    found = {"flop_counter": counter.get_total_flops() / 2}
    found["thop"] = profile(network, (image,), verbose=False)[0]
    found["ptflops"] = get_model_complexity_info(
        network, (8, 16, 16), as_strings=False, print_per_layer_stat=False, backend="pytorch", verbose=False
    )[0]
    return found


exact, subclass = counts(nn.Conv2d), counts(Same)
for name, count in exact.items():
    print(f"{name:12}  Conv2d {count:>10,.0f}  subclass {subclass[name] or 0:>10,.0f}")
assert exact["flop_counter"] == subclass["flop_counter"] == 8 * 8 * 9 * 256
for name in ("thop", "ptflops"):
    assert exact[name] >= 8 * 8 * 9 * 256 and (subclass[name] or 0) < exact[name] / 10, name
PYTHON
