"""Check what Hydra composed, once: `load_config` returns typed dataclasses or raises ValueError.

    config = load_config({"exp": "digits", "budget": "10%", ...}, wrn.Config, digits.Config)

OmegaConf's structured configs are not used for this: they know no `Literal` and no union with a
list or mapping, take infinity for a number and 1 for true, and their errors have several lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npas.config.groups_file import is_path, read_groups
from npas.config.schema import (
    DENSE,
    FITTED,
    GROUPINGS,
    NO_PACKAGE,
    SEARCHED,
    SYNTHETIC,
    Config,
    SearchConfig,
    canonical_budget,
    settings,
)
from npas.config.typed import build, keys_of


def load_config(
    raw: Mapping[str, Any], model_config: type | None = None, task_config: type | None = None
) -> Config:
    """Build the config that `raw` describes; ValueError, in one line, for anything wrong in it.

    `model_config` and `task_config` are the families' dataclasses; without one its node stays a
    plain, unchecked mapping. The budget is spelled in the one way that equal budgets share.
    """
    values, known = dict(raw), known_keys(model_config, task_config)
    if isinstance(values.get("exp"), Mapping):
        raise ValueError(f"the file chosen as +exp=: {NO_PACKAGE}")
    if values.get("budget") is not None:
        budget = str(values["budget"])  # true or a list, too, which is refused as no budget
        values["budget"] = budget if budget == DENSE else canonical_budget(budget)
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None and node in values:
            values[node] = build(schema, values[node], node, known)
    if isinstance(sharing := values.get("sharing"), Mapping):
        groups = sharing.get("groups")
        if isinstance(groups, str) and groups not in GROUPINGS and is_path(groups):
            # What a file says decides the result, not where it lies: the config has its content.
            values["sharing"] = {**sharing, "groups": read_groups(Path(groups))}
    return build(Config, values, "", known)


def search_epochs(config: Config) -> int:
    """Return the epochs of the search for groups; 0 where nothing is searched."""
    if config.budget == DENSE or config.sharing.groups not in SEARCHED:
        return 0
    return config.sharing.search.epochs or max(1, (config.epochs + 5) // 10)


def ignored(config: Config) -> dict[str, str]:
    """Return the keys whose settings have no effect beside the others, each with the reason."""
    found = {}
    if config.budget == DENSE:
        for key, value, default in settings(config.sharing, "sharing."):
            if value != default and key != "sharing.init":  # a dense network starts from it, too
                found[key] = "budget=dense shares nothing"
    else:
        idle: dict[str, str] = {}
        if config.sharing.templates is not None:
            reason = f"sharing.templates={config.sharing.templates} fixes what each layer mixes"
            idle = {"upsampler": reason, "max_templates": reason}
        elif config.sharing.fits:
            reason = f"sharing.init={config.sharing.init} decides it from the weights"
            idle = dict.fromkeys(FITTED, reason)
        if not search_epochs(config):
            reason = "nothing is searched unless sharing.groups is learned or gradient"
            idle |= {f"search.{key.name}": reason for key in dataclasses.fields(SearchConfig)}
        elif config.sharing.generator == "avg":
            idle |= {"search.softmax": "sharing.generator=avg has no coefficients"}
        if config.sharing.generator == "avg":
            idle |= {
                key: "sharing.generator=avg has no coefficients"
                for key in ("coefficient_init", "recurrence_weight", "lsm_every")
            }
        for key, value, default in settings(config.sharing, "sharing."):
            if value != default and key.removeprefix("sharing.") in idle:
                found[key] = idle[key.removeprefix("sharing.")]
    if config.data.source == SYNTHETIC and config.data.verify != "refuse":
        found["data.verify"] = f"data.source={SYNTHETIC} generates its data"
    optim, unread = config.optim, "beta2" if config.optim.name == "sgd" else "nesterov"
    for key, value, default in settings(optim, "optim."):
        if key == f"optim.{unread}" and value != default:
            found[key] = f"optim.name={optim.name} has no {unread}"
        of_steps = key in ("optim.milestones", "optim.gamma") and value != default
        if of_steps and optim.schedule != "multistep":
            found[key] = f"optim.schedule={optim.schedule} has no milestones"
    if optim.schedule == "multistep" and optim.milestones and optim.milestones[0] >= config.epochs:
        found["optim.milestones"] = f"epochs={config.epochs} ends before the first of them"
    return found


def known_keys(model_config: type | None = None, task_config: type | None = None) -> set[str]:
    """Return the full names of all keys, as far as the families' dataclasses are given."""
    found = set(keys_of(Config)) - {"model", "task"} | {"model.family", "task.family"}
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None:
            found |= set(keys_of(schema, f"{node}."))
    return found
