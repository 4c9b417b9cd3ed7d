"""Give every test the same start: one thread, fixed seeds, no tracking, a folder of its own."""

import copy
import functools
import gc
import logging
import os

# Read when torch is first imported, also by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish():
    """Leave the objects of all imported libraries out of every later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def yaml_files_read_once():
    """Keep each YAML of a package as Hydra parsed it: a command reads fifteen of them."""
    from hydra._internal.core_plugins import importlib_resources_config_source as packaged

    source, read = packaged.ImportlibResourcesConfigSource, {}
    load = source.load_config

    @functools.wraps(load)
    def load_once(self, config_path):
        key = (self.provider, self.path, config_path)
        if key not in read:
            read[key] = load(self, config_path)
        return copy.deepcopy(read[key])

    source.load_config = load_once
    yield
    source.load_config = load


@pytest.fixture(autouse=True)
def fresh_start(tmp_path, monkeypatch):
    """Seed torch, and let what a test writes to relative paths (runs, data) land in tmp_path."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger().setLevel(logging.WARNING)  # Hydra may have set another
    torch.manual_seed(0)
