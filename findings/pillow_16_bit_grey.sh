#!/usr/bin/env bash
# Pillow 13.0.0, numpy 2.3.5 (Python 3.11).
# Converting a 16-bit grey image to RGB (or L) clips values at 255 instead of keeping the upper byte: nearly every photograph
# becomes white. 16-bit colour PNGs keep their upper byte. A loader that calls convert("RGB") on all images trains on white
# squares.
# Observed: mean of a full ramp 254.5; the mean of the upper bytes is 127.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet pillow==13.0.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
from PIL import Image

ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
mean = float(np.asarray(Image.fromarray(ramp).convert("RGB")).mean())
upper = float((ramp >> 8).mean())
print(f"mean of a full ramp {mean:.1f}, where the upper bytes have the mean {upper:.1f}")
assert mean > 254 and upper == 127.5
PYTHON
