#!/usr/bin/env bash
# torch 2.14.1, timm 1.0.31 (CPU, Python 3.11), numpy 2.3.5.
# Exponential averages that include buffers change integer buffers even if the model has not changed: decay * i + (1 - decay) * i
# is computed in fp32 and truncated towards zero, so that some integers lose one in magnitude at each update. It depends on
# the decay: 0.9 and 0.9999 do it, 0.99 and 0.999 do not. Codebooks and lookup tables kept as integer buffers then name other rows.
# Integers from -3,000 to 2,999 that differ from the model's, after averaging it with itself:
#   decay                                                                    0.9   0.99  0.999  0.9999
#   AveragedModel(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(d))   1440      0      0    1162
#   timm ModelEmaV2(decay=d)                                                1440      0      0    1162
#   timm ModelEmaV3(decay=d), which copies integers                            0      0      0       0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 timm==1.0.31 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

model = nn.Linear(1, 1)
model.register_buffer("codes", torch.arange(-3000, 3000, dtype=torch.int32))
for decay, expected in ((0.9, 1440), (0.99, 0), (0.999, 0), (0.9999, 1162)):
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(2):  # the first only copies
        average.update_parameters(model)
    second, third = ModelEmaV2(model, decay=decay), ModelEmaV3(model, decay=decay)
    second.update(model)
    third.update(model)
    changed = [
        int((own.module.codes != model.codes).sum()) for own in (average, second, third)
    ]
    print(f"decay {decay}: {changed}")
    assert changed == [expected, expected, 0]
PYTHON
