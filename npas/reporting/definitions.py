"""Read the definitions of all tables from tables.yaml, which says how; add a table there."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npas.config import run_dir
from npas.reporting import curriculum, plots, published, verdicts
from npas.reporting.compose import compose
from npas.reporting.tables import Row, Table
from npas.utils.checks import near

FILE = Path(__file__).with_name("tables.yaml")
APPENDICES = {
    "artifacts": verdicts.artifacts,
    "curriculum": curriculum.appendix,
    "paired": verdicts.paired,
}
DRAWN: dict[str, Any] = {
    "against_bytes_too": plots.against_bytes_too,
    "curriculum": curriculum.draw,
}
ALIKE = ("metric", "as_error", "counted", "costed", "plotted")  # keys of a table and its fields
Entries = Iterable[Mapping[str, Any]]


@functools.cache
def _load() -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """Return the names of the tables."""
    return tuple(_load())


def table(name: str) -> Table:
    """Return a table's definition. Raises ValueError, with similar names, if there is none."""
    if name not in _load():
        raise ValueError(f"there is no table {name!r}; {near(name, list(_load()))}")
    data = _load()[name]
    fields = dict(data.get("fields", {}))
    for field, overrides in data.get("runs", {}).items():
        fields[field] = run_dir(compose(*overrides.split()))
    compared = _expand(data.get("pairs", ()), fields, {})
    pairs = [[label.format(**own) for label in entry["pair"]] for entry, own in compared]
    metric = data.get("metric", "accuracy")
    makers = [APPENDICES[kind] for kind in data.get("appendix", ())]
    if pairs:
        makers.insert(0, verdicts.verdicts(pairs, metric))
    return Table(
        name=name,
        title=data["title"].format(**fields),
        rows=tuple(_rows(data["rows"], fields)),
        note=data["note"].format(**fields),
        seeds=tuple(data.get("seeds", (0, 1, 2))),
        draw=DRAWN[data["draw"]] if "draw" in data else None,
        appendix=lambda cells: [line for make in makers for line in make(cells)],
        **{key: data[key] for key in ALIKE if key in data},
    )


def _expand(
    entries: Entries, fields: Mapping[str, Any], outer: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (entry, fields) for each repetition of each entry; nested entries inherit."""
    for entry in entries:
        each = entry.get("each", [{}])
        if isinstance(each, dict):  # the values of one field, or the name of a field of values
            ((field, values),) = each.items()
            values = fields[values] if isinstance(values, str) else values
            each = [{field: value} for value in values]
        for more in each:
            own = {**fields, **{key: _filled(value, fields) for key, value in more.items()}}
            whole = {**outer, **entry}
            if "do" in outer and "do" in entry:
                whole["do"] = f"{outer['do']} {entry['do']}"
            if "rows" not in entry:
                yield whole, own
                continue
            above = {k: v for k, v in whole.items() if k not in ("rows", "each")}
            yield from _expand(entry["rows"], own, above)


def _filled(value: Any, fields: Mapping[str, Any]) -> Any:
    return value.format(**fields) if isinstance(value, str) else value


def _rows(entries: Entries, fields: Mapping[str, Any]) -> Iterator[Row]:
    for entry, own in _expand(entries, fields, {}):
        keys = ("label", "do", "series", "section", "metric")
        text = {key: entry.get(key, "").format(**own) for key in keys}
        words = text.pop("do").split()
        figure = _figure(entry["published"], own) if "published" in entry else None
        yield Row(overrides=tuple(words) if "do" in entry else None, published=figure, **text)


def _figure(where: list[Any], fields: Mapping[str, Any]) -> published.Figure | None:
    section, name, column, *match = (_filled(part, fields) for part in where)
    more: dict[str, Any] = {}
    for own in match:
        given = fields[own] if isinstance(own, str) else own
        more |= {key: _filled(value, fields) for key, value in given.items()}
    return published.figure(section, name, column, **more) if name else None
