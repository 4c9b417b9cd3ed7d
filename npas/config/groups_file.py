"""Read groups of layers from a file: `sharing.groups=PATH`.

read_groups(Path("runs/digits/budget-0.1_seed-0_1f0c2a9b"))    # its groups.json
read_groups(Path("mine.json"))                                 # {"stages.0.*": "early", ...}
"""

from __future__ import annotations

from pathlib import Path

from npas.utils.json_data import read_json, shown

GROUPS_FILE = "groups.json"


def is_path(value: str) -> bool:
    """Return whether a text is a path rather than the name of a grouping."""
    return bool(value.strip()) and ("/" in value or Path(value).exists())


def read_groups(path: Path) -> dict[str, str]:
    """Map layers, or patterns of layers, to groups, from a run's folder or a JSON file."""
    try:
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"sharing.groups={path} cannot be read ({reason}): name a run that found groups, or a"
            " JSON file that maps layers to groups"
        ) from None
    return {str(pattern): str(group) for pattern, group in found.items()}
