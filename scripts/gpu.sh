#!/bin/bash
# Check and measure npas on one GPU: the tests that need one, step times, then trainings of CIFAR-10.
#
#   bash scripts/gpu.sh [DIR]        # about 15 minutes; DIR, by default results/bench, gets the JSON files
#
# The most useful comes first, and each part has a time limit of its own, so that a short loan of a machine is
# never lost. The trainings need data/cifar-10-batches-py (docs/data.md); their results are in runs/.
# DEVICE=cpu tries the commands on a machine without a GPU.
set -u
out=${1:-results/bench} device=${DEVICE:-cuda} bin=${BIN:-.venv/bin}
mkdir -p "$out"

part() { # SECONDS COMMAND...
  echo "== ${*:2}"
  timeout "$1" "${@:2}" || echo "failed with exit code $?: ${*:2}" >&2
}

part 180 "$bin/python" -m pytest -q -m gpu
for network in "wrn_28_10 128" "resnet50 128" "encoder:24x1024 16"; do
  read -r model batch <<<"$network"
  for more in "" "--compile"; do
    part 90 "$bin/python" scripts/bench.py --model "$model" --batch "$batch" --device "$device" \
      --precision bf16 --budgets 0.1,2 $more --out "$out/${model//:/_}-$device-bf16${more/--/-}.json"
  done
done
# A narrower network: the greatest width, in steps of 1/64, with at most 10% of the parameters.
for row in budget=dense "budget=dense model.width=1.25" budget=0.1; do
  part 180 "$bin/npas-train" +exp=wrn_cifar10 model=wrn_16_4 $row trainer.device="$device" precision=bf16 \
    data.verify=warn epochs=10 "optim.milestones=[4,7,9]" trainer.max_seconds=90
done
