"""Keys and values that were renamed.

An old key on a command line is an error that names the new one. A config.yaml, a checkpoint or a
result.json of an earlier version is read as if it had the new names. Configs are hashed by their
first names, so that the folders of earlier runs are still found.
"""

from collections.abc import Mapping
from typing import Any

KEYS = {  # old full name of a key or a node -> new one
    "data.split": "data.val_fraction",
    "data.standin": "data.synthetic",
    "optim.decay_norms": "optim.decay_norm_bias",
    "optim.ema": "optim.ema_decay",
    "sharing.coefficients": "sharing.coefficient_init",
    "sharing.layout": "sharing.allocator",
    "sharing.lsm_regularizer": "sharing.recurrence_weight",
    "task.lighting": "task.pca_noise",
    "trainer.accumulation": "trainer.grad_accum_steps",
}
VALUES: dict[str, dict[Any, Any]] = {  # by new full name, old value -> new one
    "data.source": {"standin": "synthetic"},
    "data.val_fraction": {"45k": 0.1, "50k": 0.0},
    "optim.schedule": {"steps": "multistep"},
}
REMOVED = {"trackers"}  # left out of what earlier versions stored
_FIRST_KEYS = {new: old for old, new in KEYS.items()}
_FIRST_VALUES = {key: {new: old for old, new in values.items()} for key, values in VALUES.items()}


def new_name(key: str, names: Mapping[str, str] = KEYS) -> str | None:
    """Return the new name of a key; None if neither it nor its node was renamed."""
    for old, new in names.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def first_setting(key: str, value: Any) -> tuple[str, Any]:
    """Return a key and its value by their first names, which are hashed."""
    if isinstance(value, (str, float, int)) and not isinstance(value, bool):
        value = _FIRST_VALUES.get(key, {}).get(value, value)
    return new_name(key, _FIRST_KEYS) or key, value


def modernize(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a stored config of any version with current key names and values."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in REMOVED:
            continue
        key = new_name(key) or key
        if isinstance(value, Mapping):
            value = modernize(value, f"{key}.")
        elif isinstance(value, str):
            value = VALUES.get(key, {}).get(value, value)
        found[key.removeprefix(prefix)] = value
    return found


def modernize_result(data: object) -> object:
    """Return a stored result of any version with current names."""
    if not isinstance(data, Mapping):
        return data
    found = dict(data)
    if isinstance(found.get("config"), Mapping):
        found["config"] = modernize(found["config"])
    if isinstance(dataset := found.get("dataset"), Mapping) and dataset.get("source") == "standin":
        found["dataset"] = {**dataset, "source": "synthetic"}
    if isinstance(parallel := found.get("parallel"), Mapping) and "accumulation" in parallel:
        names = {"accumulation": "grad_accum_steps"}
        found["parallel"] = {names.get(name, name): value for name, value in parallel.items()}
    return found
