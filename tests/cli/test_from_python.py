"""`npas.train` does what npas-train does, and raises ValueError where that exits with code 2."""

import json

import pytest
from command_line import SMALL
from hydra import compose, initialize_config_module

import npas
from npas.config import config_hash, run_dir
from npas.reporting import results
from npas.reporting.compose import compose as compose_own


def test_a_training_calls_back_with_what_it_logs_and_returns_its_result():
    overrides = [*SMALL, "budget=0.5", "trainer.log_every=2", "data.val_fraction=0.2"]
    records = []
    result = npas.train(overrides, callbacks=[records.append])
    assert result.status == "done"
    folder = run_dir(compose_own(*overrides))
    assert results.read(folder) == result
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(logged) == 3 and records[:-1] == logged
    assert records[-1] == {"step": 4, "epoch": 1, "status": "done", **result.metrics.last}
    # Again as a whole config, and as a checked one: it is done.
    before = (folder / "result.json").stat().st_mtime_ns
    for config in (result.config, compose_own(*overrides)):
        assert npas.train(config, [records.append]) == result
    assert (folder / "result.json").stat().st_mtime_ns == before and len(records) == 6
    # What a callback raises ends the run, whose record says so; the same call goes on.
    overrides += ["seed=1"]

    def stop(record):
        raise InterruptedError(f"at {record['step']}")

    with pytest.raises(InterruptedError, match="at 2"):
        npas.train(overrides, [stop])
    assert results.read(run_dir(compose_own(*overrides))).status == "failed"
    assert npas.train(overrides).status == "done"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (["budgt=0.1"], "unknown key 'budgt': did you mean 'budget'?"),
        (["budget=7x"], "budget=7x is not a budget"),
        (["+exp=digit"], "did you mean 'digits'?"),
        (["seed=1,2"], "seed=1,2 has several values: call it for each"),
        (["-m", "seed=1,2"], "-m is for the command line only"),
        (["hydra.mode=MULTIRUN"], "call it for each value of a sweep"),
        ("+exp=digits", "npas.train takes a list of arguments"),
        (5, "npas.train takes a list of arguments"),
        ({"budget": "0.1"}, "model.family is missing"),
        (["run=nowhere"], "nowhere cannot be read"),
        (["dry_run=true"], "dry_run=true has no result"),
        (["data.root=nowhere", "+exp=wrn_cifar10", "data.download=false"], "nowhere"),
        *(
            (f"data.root={__file__}/in +exp={exp}".split(), f"{__file__} is not a folder")
            for exp in ("wrn_cifar10", "shakespeare", "ssn_mlm model.layers=1", "adapt_f30k")
        ),
    ],
)
def test_an_invalid_config_is_a_value_error_of_one_line(config, line, tmp_path):
    with pytest.raises(ValueError) as error:
        npas.train(config)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("runs/*/*"))


def test_callbacks_must_be_callable_and_in_this_process():
    for callbacks in (["print"], 3, print, None):
        with pytest.raises(ValueError, match="must be a list of functions"):
            npas.train([], callbacks=callbacks)
    with pytest.raises(ValueError, match=r"trainer\.devices=2 trains in processes of their own"):
        npas.train(["trainer.devices=2"], callbacks=[print])


def test_a_hydra_application_may_call_it():
    with initialize_config_module("npas.configs", version_base="1.3"):
        result = npas.train([*SMALL, "budget=0.5"])
        assert compose("train", ["seed=3"]).seed == 3
    assert result.config_hash == config_hash(compose_own(*SMALL, "budget=0.5"))
