"""Every YAML of the package composes into a config that passes the check."""

from pathlib import Path

import npas.configs
import pytest
from omegaconf import OmegaConf

from npas.cli import runs
from npas.config import known_keys, run_dir
from npas.reporting.compose import compose
from npas.reporting.definitions import narrow_width

FOLDER = Path(npas.configs.__path__[0])
OPTIONS = sorted(
    f"{'+' if path.parent.name == 'exp' else ''}{path.parent.name}={path.stem}"
    for path in FOLDER.glob("*/*.yaml")
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_passes_the_check(option: str) -> None:
    config = compose(option)
    if option.startswith("+exp="):
        assert config.exp == option.removeprefix("+exp=")


def test_no_words_at_all_mean_the_digits_at_a_tenth() -> None:
    assert run_dir(compose()) == run_dir(compose("+exp=digits"))
    assert run_dir(compose()).as_posix().startswith("runs/digits/budget-0.1_seed-0_")


def test_the_narrow_network_is_the_widest_that_has_a_tenth_of_the_parameters() -> None:
    assert compose("+exp=digits_narrow").model.width == narrow_width("digits", "0.1")


def test_the_yaml_names_every_key_so_that_each_can_be_set_without_a_plus() -> None:
    config = compose()
    known = known_keys(type(config.model), type(config.task))
    raw = OmegaConf.create(runs.schema.to_dict(config))
    for key in known:
        assert OmegaConf.select(raw, key, default="absent") != "absent", key
