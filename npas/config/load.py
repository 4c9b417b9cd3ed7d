"""Check a config that Hydra composed: `load_config` returns typed dataclasses or raises ValueError.

    config = load_config({"exp": "digits", "budget": "10%", ...}, wrn.Config, digits.Config)

OmegaConf's structured configs are not used: they support neither `Literal` nor unions with a list
or mapping, accept infinity as a number and 1 as true, and their errors span several lines.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npas.config.optim import MuonConfig
from npas.config.renames import modernize
from npas.config.schema import (
    NO_PACKAGE,
    SYNTHETIC,
    Config,
    DistillConfig,
    PruningConfig,
    canonical_budget,
    settings,
)
from npas.config.sharing import DENSE, FITTED, SEARCHED, SearchConfig, SharingConfig, is_grouping
from npas.config.typed import build, keys_of
from npas.utils.checks import one_line
from npas.utils.files import reading
from npas.utils.json_data import read_json, shown
from npas.utils.packing import Packing

# The files of a run's folder.
CONFIG_FILE, RESULT_FILE, LOG_FILE = "config.yaml", "result.json", "log.jsonl"
GROUPS_FILE = "groups.json"


def load_config(
    raw: Mapping[str, Any], model_config: type | None = None, task_config: type | None = None
) -> Config:
    """Build and check a config. Raises ValueError for unknown keys and invalid values.

    `model_config` and `task_config` are the families' dataclasses; without one its node stays a
    plain, unchecked mapping. The budget is written in its canonical form.
    """
    values, known = dict(raw), known_keys(model_config, task_config)
    if isinstance(values.get("exp"), (Mapping, list)):
        raise ValueError(f"the file chosen as +exp=: {NO_PACKAGE}")
    if values.get("budget") is not None:
        budget = str(values["budget"])  # a list or true becomes text that is refused
        values["budget"] = budget if budget == DENSE else canonical_budget(budget)
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None and node in values:
            values[node] = build(schema, values[node], node, known)
    if isinstance(sharing := values.get("sharing"), Mapping):
        groups = sharing.get("groups")
        is_name = isinstance(groups, str) and (is_grouping(groups) or not groups.strip())
        if isinstance(groups, str) and not is_name and ("/" in groups or Path(groups).exists()):
            # The config stores the file's content, not its path: the content affects the result.
            values["sharing"] = {**sharing, "groups": read_groups(Path(groups))}
    config: Config = build(Config, values, "", known)
    if config.data.source != SYNTHETIC and config.optim.warmup_epochs > config.epochs:
        raise ValueError(
            f"optim.warmup_epochs={config.optim.warmup_epochs} is longer than"
            f" epochs={config.epochs}: the rate would never reach optim.lr; make it shorter"
        )
    return config


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.yaml of any version, with current names. Raises ValueError if it cannot."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        stored = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): name a run's folder") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{file} is not a valid config: {one_line(error)}") from None
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"{file} must be a mapping of keys: restore the run's own config")
    return modernize({str(key): value for key, value in stored.items()})


def read_groups(path: Path) -> dict[str, str]:
    """Map layers, or patterns of layers, to groups, from a run's folder or a JSON file."""
    remedy = "name a run that found groups, or a JSON file that maps layers to groups"
    with reading(f"sharing.groups={path}", remedy):
        if path.is_dir() and not (path / GROUPS_FILE).exists():
            raise ValueError(f"the folder holds no {GROUPS_FILE}")
        found = read_json(path / GROUPS_FILE if path.is_dir() else path)
        if isinstance(found.get("layers"), list):
            found = {layer["name"]: layer["group"] for layer in found["layers"]}
        for name, group in found.items():
            if type(group) not in (str, int) or group == "" or not name:
                raise ValueError(f"it maps {shown(name)} to {shown(group)}, not to a group's name")
        if not found:
            raise ValueError("it maps no layers to groups")
        return {str(pattern): str(group) for pattern, group in found.items()}


def search_epochs(config: Config) -> int:
    """Return the epochs of the search for groups; 0 without a search."""
    if config.budget == DENSE or config.sharing.groups not in SEARCHED:
        return 0
    return config.sharing.search.epochs or max(1, (config.epochs + 5) // 10)


def ignored(config: Config) -> dict[str, str]:
    """Return the keys whose settings have no effect, each with the reason."""
    groups = [*_ignored_sharing(config), *_ignored_elsewhere(config)]
    reasons = {key: reason for reason, keys in groups for key in keys}
    return {
        key: reasons[key]
        for key, value, default in settings(config, "")
        if key in reasons and value != default
    }


def _ignored_sharing(config: Config) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield reasons and keys of `sharing` that have no effect for them; a later reason counts."""
    sharing = config.sharing
    if not search_epochs(config):
        reason = "nothing is searched unless sharing.groups is learned or gradient"
        yield reason, keys_of(SearchConfig, "sharing.search.")
    if sharing.generator == "avg":
        keys = ["sharing.coefficient_init", "sharing.recurrence_weight", "sharing.lsm_every"]
        if search_epochs(config):
            keys.append("sharing.search.softmax")
        yield "sharing.generator=avg has no coefficients", keys
    if sharing.is_structured:
        reason = f"sharing.generator={sharing.generator} has no coefficients per layer"
        yield reason, ["sharing.lsm_every"]
    if sharing.is_structured and sharing.generator != "channels":
        reason = f"sharing.generator={sharing.generator} mixes no templates"
        yield reason, ["sharing.max_templates", "sharing.upsampler"]
    resized = sharing.upsampler in ("mask", "wavg") or sharing.upsample_templates > 1
    plain = sharing.generator == "hash" or (sharing.generator == "avg" and not resized)
    if plain and not sharing.low_rank and not search_epochs(config):
        reason = f"sharing.generator={sharing.generator} has no coefficients"
        yield reason, ["optim.coefficient_lr", "optim.muon.coefficient_lr"]
    if sharing.templates is not None:
        reason = f"sharing.templates={sharing.templates} fixes what each layer mixes"
        yield reason, ["sharing.upsampler", "sharing.max_templates"]
    elif sharing.fits:
        reason = f"sharing.init={sharing.init} decides it from the weights"
        yield reason, [f"sharing.{key}" for key in FITTED if key in sharing.left_to_fit]
    if not sharing.fits or sharing.templates is not None:
        yield "it needs sharing.init=fit and a budget", ["sharing.fit_batches"]
    if config.budget == DENSE:  # a dense network reads sharing.init, too
        keys = [key for key in keys_of(SharingConfig, "sharing.") if key != "sharing.init"]
        yield "budget=dense shares nothing", [*keys, "optim.bank_lr", "optim.coefficient_lr"]
    elif not sharing.train_coefficients:
        reason = "sharing.train_coefficients=false fixes the coefficients"
        yield reason, ["sharing.recurrence_weight"]


def _ignored_elsewhere(config: Config) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield reasons and keys outside `sharing` that have no effect for them."""
    optim, distill, pruning = config.optim, config.distill, config.pruning
    if not config.exports:
        reason = "it needs a budget in bytes (16MB) or artifact.export=true"
        yield reason, keys_of(Packing, "artifact.")
    elif not config.cap:
        yield "it needs a budget in bytes (16MB)", ["artifact.expected_ratio"]
    if config.data.source == SYNTHETIC:
        yield f"data.source={SYNTHETIC} generates its data", ["data.verify"]
    if optim.name != "muon":
        unread = "beta2" if optim.name == "sgd" else "nesterov"
        yield f"optim.name={optim.name} has no {unread}", [f"optim.{unread}"]
        yield f"optim.name={optim.name} has no muon", keys_of(MuonConfig, "optim.muon.")
    if optim.schedule != "multistep":
        reason = f"optim.schedule={optim.schedule} has no milestones"
        yield reason, ["optim.milestones", "optim.gamma"]
    else:
        yield "optim.schedule=multistep has no min_lr", ["optim.min_lr"]
        if optim.milestones and optim.milestones[0] >= config.epochs:
            yield f"epochs={config.epochs} ends before the first one", ["optim.milestones"]
    if optim.schedule != "wsd":
        yield f"optim.schedule={optim.schedule} has no decay_fraction", ["optim.decay_fraction"]
    if config.eval_only:
        yield "eval_only=true trains nothing", keys_of(DistillConfig, "distill.")
    if distill.teacher is None:
        yield "distill.teacher=null names no teacher", keys_of(DistillConfig, "distill.")
    elif not distill.hidden:
        yield "distill.hidden names no modules", ["distill.hidden_weight"]
    if distill.weight == 0 and not (distill.hidden and distill.hidden_weight):
        reason = "distill.weight=0 and no distill.hidden leave the teacher out of the loss"
        yield reason, [k for k in keys_of(DistillConfig, "distill.") if k != "distill.weight"]
    if pruning.method is None:
        yield "pruning.method=null prunes nothing", keys_of(PruningConfig, "pruning.")
    elif pruning.schedule == "one_shot":
        reason = "pruning.schedule=one_shot prunes once, at pruning.start"
        yield reason, ["pruning.end", "pruning.times"]
    if pruning.method == "magnitude":
        yield "pruning.method=magnitude reads no batches", ["pruning.batches"]


def known_keys(model_config: type | None = None, task_config: type | None = None) -> set[str]:
    """Return the full names of all keys, including those of the families given."""
    found = set(keys_of(Config)) - {"model", "task"} | {"model.family", "task.family"}
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None:
            found |= set(keys_of(schema, f"{node}."))
    return found
