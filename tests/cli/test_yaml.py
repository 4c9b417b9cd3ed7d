"""Every YAML of the package composes into a config that passes the check."""

from pathlib import Path

import hydra
import npas.configs
from omegaconf import OmegaConf

from npas import models, tasks
from npas.cli import arguments
from npas.config import OptimConfig, PruningConfig, SharingConfig, TrainerConfig, known_keys
from npas.config.typed import build
from npas.reporting.compose import compose

FOLDER = Path(npas.configs.__path__[0])
NODES = {
    "optim": OptimConfig,
    "pruning": PruningConfig,
    "sharing": SharingConfig,
    "trainer": TrainerConfig,
}


def test_every_option_passes_the_check():
    """Experiments compose in tests/test_repository.py; the other files are nodes of their own."""
    for path in sorted(FOLDER.glob("*/*.yaml")):
        group = path.parent.name
        if group == "exp":
            continue
        raw = node_of(path)
        families = {"model": models, "task": tasks}
        if group in families:
            build(families[group].family(raw["family"]).Config, raw, group)
        else:
            build(NODES[group], raw, group)


def node_of(path):
    """Return what a file sets, over the files of its group that its defaults name."""
    raw = OmegaConf.to_container(OmegaConf.load(path))
    names = [name for name in raw.pop("defaults", []) if name != "_self_"]
    for name in reversed(names):
        raw = {**node_of(path.with_name(f"{name}.yaml")), **raw}
    return raw


def test_every_key_can_be_set_without_a_plus():
    config = compose()
    keys = known_keys(type(config.model), type(config.task)) - {"exp"}
    overrides = arguments.parse([f"{key}=null" for key in keys], {*keys}).overrides
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        hydra.compose("train", overrides)


def test_an_experiment_without_its_package_line_is_named(run, tmp_path):
    (tmp_path / "exp").mkdir()
    text = "defaults:\n  - override /model: wrn_digits\nexp: mine\n"
    (tmp_path / "exp" / "mine.yaml").write_text(text)
    message = "exp/mine.yaml needs the first line '# @package _global_'"
    run("npas-plan", "--config-dir", str(tmp_path), "+exp=mine", refused=message)
