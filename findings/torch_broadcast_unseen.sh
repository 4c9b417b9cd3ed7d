#!/usr/bin/env bash
# torch 2.14.1 (CPU, gloo, two processes, Python 3.11), numpy 2.3.5.
# dist.broadcast and dist.all_reduce write into their tensor without increasing its version counter. dist.all_gather
# increases the counters of its outputs. Caches that are valid until _version changes, and autograd's check of saved tensors,
# therefore miss weights that another rank sent.
# Observed on rank 1:
#   broadcast   value 0 -> 7   version +0
#   all_reduce  value 7 -> 14  version +0
#   all_gather  value 0 -> 14  version +1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5
cat >"$folder/ranks.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tensor = torch.full((4,), 7.0 if rank == 0 else 0.0)
    gathered = [torch.zeros(4), torch.zeros(4)]
    seen = {}
    for name, written, call in (
        ("broadcast", tensor, lambda: dist.broadcast(tensor, 0)),
        ("all_reduce", tensor, lambda: dist.all_reduce(tensor)),
        ("all_gather", gathered[0], lambda: dist.all_gather(gathered, tensor)),
    ):
        before, version = written[0].item(), written._version
        call()
        seen[name] = (before, written[0].item(), written._version - version)
        if rank == 1:
            print(f"{name:10}  value {before:g} -> {written[0].item():g}  version +{seen[name][2]}")
    dist.destroy_process_group()
    if rank == 1:
        assert seen["broadcast"] == (0.0, 7.0, 0), seen
        assert seen["all_reduce"] == (7.0, 14.0, 0), seen
        assert seen["all_gather"][2] == 1, seen


if __name__ == "__main__":
    mp.spawn(run, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/env/bin/python" "$folder/ranks.py" "$folder/store"
