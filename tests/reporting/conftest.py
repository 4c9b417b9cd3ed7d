"""Make result files without training."""

import dataclasses

import pytest

from npas import config as schema
from npas.reporting import results
from npas.reporting.compose import compose
from npas.reporting.environment import Hardware
from npas.reporting.results import Dataset, Metrics, Result, Split
from npas.sharing import BudgetReport
from npas.utils.git import Git

DENSE = 1_000


@pytest.fixture
def make_result():
    """Return a function that builds the result of a run on 1,000 dense parameters."""

    def make(accuracy=97.0, used=DENSE, **changes):
        asked = "dense" if used == DENSE else str(used / DENSE)
        values = {
            "status": "done",
            "exp": "digits",
            "config": {"seed": 0},
            "config_hash": "c0ffee",
            "budget": BudgetReport(asked, DENSE, used, used),
            "split": Split(bank=0, coefficients=0, upsamplers=0, unshared=used),
            "metrics": Metrics(last={"accuracy": accuracy}),
            "seed": 0,
            "steps": 10,
            "epochs": 1,
            "wall_s": 60.0,
            "peak_memory_bytes": None,
            "dataset": Dataset("digits", "real"),
            "versions": {"torch": "2.15.0"},
            "git": Git("0123abc", False),
            "hardware": Hardware("Linux", "a processor", 2, 1, None, 0),
        }
        return Result(**{**values, **changes})

    return make


@pytest.fixture
def keep(make_result):
    """Return a function that writes the result of these overrides where its run would."""

    def write(root, *overrides, seed=0, **values):
        config = dataclasses.replace(compose(*overrides), seed=seed, run_root=str(root))
        digest = schema.config_hash(config)
        result = make_result(
            exp=config.exp, config=schema.to_dict(config), config_hash=digest, seed=seed, **values
        )
        return results.write(schema.run_dir(config), result)

    return write
