"""Write docs/keys.md: every key with type and default, from the config dataclasses.

python scripts/write_keys.py            # writes it
python scripts/write_keys.py --check    # exit code 1 if it is out of date
"""

import argparse
import dataclasses
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from npas import models, tasks
from npas.config import Config

PAGE = Path(__file__).resolve().parents[1] / "docs/keys.md"
HEAD = """# Keys

Every key that `npas-train` and `npas-plan` take as `key=value`, with its type and the schema's
default. An experiment or a preset (`+exp=NAME`, `model=NAME`, `task=NAME`, `sharing=NAME`,
`optim=NAME`) may set another; `npas-train --cfg job` shows what a command is composed to.
`python scripts/write_keys.py` writes this page.
"""


def main() -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    text = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """Return the page's text."""
    parts = [HEAD, *section("The run", Config, "")]
    for kind, package in (("model", models), ("task", tasks)):
        for name in families(package):
            own = package.family(name).Config
            parts += section(f"`{kind}.family={name}`", own, f"{kind}.", leave_out="family")
    return "\n".join(parts)


def families(package: Any) -> list[str]:
    """List a package's own families."""
    helpers = getattr(package, "SHARED", ())
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_") and name not in helpers)


def section(title: str, kind: type, prefix: str, leave_out: str = "") -> Iterator[str]:
    """Yield a dataclass's section: docstring, table, and the sections of nested dataclasses."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    yield f"## {title}\n\n{text}\n"
    rows, nested = [], []
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            nested.append((field.name, hints[field.name]))
        elif field.name != leave_out and hints[field.name] is not Any:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            rows.append(
                f"| `{prefix}{field.name}` | {spell(hints[field.name])} | {shown(default)} |"
            )
    if rows:
        yield "\n".join(["| key | type | default |", "|---|---|---|", *rows, ""])
    for name, inner in nested:
        yield from section(f"`{prefix}{name}`", inner, f"{prefix}{name}.")


def spell(kind: Any) -> str:
    """Return the name of a type for readers of a config."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        each = [argument for argument in arguments if argument is not NoneType]
        if {int, float} <= set(each):
            each.remove(int)
        return " or ".join([*map(spell, each), *(["null"] if NoneType in arguments else [])])
    if origin in (list, tuple):
        return f"list of {spell(arguments[0])}"
    if origin is dict:
        return f"mapping to {spell(arguments[1])}"
    return {int: "whole number", float: "number", str: "text", bool: "true, false"}.get(kind, "any")


def shown(value: Any) -> str:
    """Return a default as on a command line."""
    return json.dumps(value).strip('"') or '""'


if __name__ == "__main__":
    sys.exit(main())
