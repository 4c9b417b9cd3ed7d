#!/usr/bin/env bash
# torch 2.13.0 (CPU, Python 3.11), numpy 2.3.5; the same on 2.14.1.
# The fifth argument of a hook of Module.register_load_state_dict_pre_hook is `strict`. It is True even if load_state_dict was
# called with strict=False, so a hook cannot distinguish a partial load from a whole one.
# Observed: strict=True, for strict=False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
from torch import nn

seen = []
module = nn.Linear(2, 2)
module.register_load_state_dict_pre_hook(
    lambda module, state, prefix, metadata, strict, missing, unexpected, errors: seen.append(strict)
)
module.load_state_dict({}, strict=False)
print(f"strict={seen[0]}, for strict=False")
assert seen == [True]
PYTHON
