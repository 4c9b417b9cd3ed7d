#!/usr/bin/env bash
# Submit a sweep as one Slurm job array through submitit, and wait for it:
#
#   bash scripts/slurm/sweep.sh +exp=wrn_cifar100 budget=0.05,0.1,0.5,1,2 seed=0,1,2
#
# Runs that are done are skipped, also by the same command later; a job whose time is up is requeued
# into the same run folder. submitit comes with the extra `slurm`: pip install 'npas[slurm]'.
set -euo pipefail

exec npas-train -m "$@" trainer.devices="${GPUS:-1}" \
  hydra/launcher=submitit_slurm \
  hydra.launcher.timeout_min="${TIMEOUT_MIN:-1440}" \
  hydra.launcher.gpus_per_node="${GPUS:-1}" \
  hydra.launcher.tasks_per_node=1 \
  hydra.launcher.cpus_per_task="${CPUS:-8}" \
  hydra.launcher.signal_delay_s=120 \
  hydra.launcher.max_num_timeout=100 \
  hydra.launcher.array_parallelism="${PARALLEL:-16}"
