"""Give every test the same start: one thread, fixed seeds, no tracking, a folder of its own."""

import logging
import os

# Read when torch is first imported, also by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_start(tmp_path, monkeypatch):
    """Seed torch, and let what a test writes to relative paths (runs, data) land in tmp_path."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger().setLevel(logging.WARNING)  # Hydra may have set another
    torch.manual_seed(0)
