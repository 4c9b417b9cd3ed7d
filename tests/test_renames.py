"""Keys of earlier versions are read, with the same hash and folder."""

from pathlib import Path

import pytest

from npas import models, tasks
from npas.config import config_hash, load_config, renames, run_dir
from npas.reporting import results

RESULTS = sorted((Path(__file__).parents[1] / "results" / "runs").glob("*/*/result.json"))


@pytest.mark.slow
def test_every_committed_result_is_read_and_keeps_its_hash_and_folder():
    assert len(RESULTS) > 100
    for path in RESULTS:
        result = results.read(path)
        families = (
            models.family(result.config["model"]["family"]).Config,
            tasks.family(result.config["task"]["family"]).Config,
        )
        config = load_config(result.config, *families)
        assert config_hash(config) == result.config_hash, path
        assert run_dir(config).parts[-2:] == path.parts[-3:-1]


@pytest.mark.parametrize(("old", "new"), [*renames.KEYS.items()])
def test_an_old_key_is_answered_with_the_new_one(old, new):
    if old.startswith("task."):  # a family's own
        return
    node, leaf = old.split(".")
    with pytest.raises(ValueError, match=f"^unknown key '{old}': it is now '{new}'$"):
        load_config({"model": {"family": "wrn"}, "task": {"family": "digits"}, node: {leaf: 1}})


def test_a_stored_config_of_an_earlier_version_is_read():
    old = {
        "data": {"split": "45k", "source": "standin", "standin": {"train": 3}},
        "optim": {"schedule": "steps", "ema": 0.9, "decay_norms": False},
        "sharing": {"layout": "npas", "coefficients": "sparse", "lsm_regularizer": 0.1},
        "trainer": {"accumulation": 2},
        "task": {"lighting": 0.1},
    }
    assert renames.modernize(old) == {
        "data": {"val_fraction": 0.1, "source": "synthetic", "synthetic": {"train": 3}},
        "optim": {"schedule": "multistep", "ema_decay": 0.9, "decay_norm_bias": False},
        "sharing": {"allocator": "npas", "coefficient_init": "sparse", "recurrence_weight": 0.1},
        "trainer": {"grad_accum_steps": 2},
        "task": {"pca_noise": 0.1},
    }


def test_removed_keys_are_left_out_of_stored_configs():
    assert renames.modernize({"trackers": ["wandb"], "seed": 1}) == {"seed": 1}
