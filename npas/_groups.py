"""Read which layers share with each other from a file: `sharing.groups=PATH`.

read_groups(Path("runs/digits/budget-0.1_seed-0_1f0c2a9b"))    # its groups.json
read_groups(Path("mine.json"))                                 # {"stages.0.*": "early", ...}
"""

from __future__ import annotations

import json
from pathlib import Path

GROUPS_FILE = "groups.json"


def is_path(value: str) -> bool:
    """Tell whether a text names a file or folder rather than a grouping."""
    return bool(value.strip()) and ("/" in value or Path(value).exists())


def read_groups(path: Path) -> dict[str, str]:
    """Return layers (or patterns) and their groups: of a run's folder, its file or any mapping.

    ValueError, in one line, for a file that is not there or holds something else.
    """
    file = path / GROUPS_FILE if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if "layers" in found:
            found = {layer["name"]: layer["group"] for layer in found["layers"]}
        if not found or not all(isinstance(group, (str, int)) for group in found.values()):
            raise ValueError("it maps no layers to groups")
    except FileNotFoundError:
        what = f"holds no {GROUPS_FILE}" if path.is_dir() else "is not there"
        raise ValueError(
            f"sharing.groups={path} {what}: name a run that found groups, or a JSON file"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"sharing.groups={path} cannot be read ({reason}): name a run that found groups, or a"
            " JSON file that maps layers to groups"
        ) from None
    return {str(pattern): str(group) for pattern, group in found.items()}
