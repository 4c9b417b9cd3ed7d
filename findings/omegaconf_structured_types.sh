#!/usr/bin/env bash
# omegaconf 2.3.1 (Python 3.11), used by Hydra 1.3. OmegaConf.structured supports fewer annotations of a dataclass, and
# checks values less strictly, than one expects:
#   x: Literal["a", "b"]     ValidationError: Unexpected type annotation
#   x: dict[str, str] | str  ConfigValueError: Unions of containers are not supported
#   x: bool  given 1         True        x: int  given "12"    12
#   x: bool  given "yes"     True        x: float  given inf   inf
#   x: int   given 10.0      ValidationError, so 1e1 in YAML is refused
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet omegaconf==2.3.1
"$folder/env/bin/python" - <<'PYTHON'
from dataclasses import make_dataclass
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import ConfigValueError, ValidationError


def given(kind, value):
    try:
        schema = OmegaConf.structured(make_dataclass("Schema", [("x", kind)])(value))
        return OmegaConf.merge(schema, {"x": value}).x
    except Exception as error:
        return type(error)


cases = [
    ("Literal", Literal["a", "b"], "a", ValidationError),
    ("dict | str", dict[str, str] | str, "a", ConfigValueError),
    ("bool", bool, 1, True),
    ("bool", bool, "yes", True),
    ("int", int, "12", 12),
    ("int", int, 10.0, ValidationError),
    ("float", float, float("inf"), float("inf")),
]
for name, kind, value, expected in cases:
    found = given(kind, value)
    print(f"{name:10} given {value!r:6} -> {found}")
    assert found is expected or (found == expected and type(found) is type(expected)), name
PYTHON
