"""The report's entries on learned groups, similarity of layers and folded networks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from npas.reporting import report_markdown
from npas.reporting.report_markdown import slug
from npas.reporting.report_parts import Entry, Picture, Section, Table, file_of, picture
from npas.utils.json_data import read_json
from npas.utils.printing import figure as with_unit


def groups(folder: Path, root: Path) -> Entry:
    """Return the entry of a search's groups. Raises ValueError for a damaged file."""
    path, name = folder / "groups.json", str(folder.relative_to(root))
    try:
        found = read_json(path)
        members: dict[str, list[str]] = {}
        for layer in found["layers"]:
            members.setdefault(layer["group"], []).append(layer["name"].removesuffix(".weight"))
        text = f"{found['num_groups']} groups found in {found['epochs']} epochs"
        text = f"Groups by sharing.groups={found['method']}: {text} of seed {found['seed']}. n = 1."
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a valid file of groups: {error!r}") from None
    rows = [[group, str(len(layers)), ", ".join(layers)] for group, layers in members.items()]
    pictures = []
    if (source := file_of(folder / "groups")) is not None:
        alt = f"Layers by depth, coloured by group, and {len(rows)} groups in a plane of the first"
        alt += " two principal components of the clustered vectors. The table lists the groups."
        pictures.append(picture(source, alt, f"Groups of {name}. n = 1 search."))
    grid = Table(f"Groups of {name}", ("group", "layers", "names"), rows, (1,))
    asked = f"sharing.groups={found['method']} sharing.num_groups={found['num_groups']}"
    command = f"npas-train +exp={folder.parent.name} {asked} seed={found['seed']}"
    if (budget := re.match(r"budget-(.+)_seed-", folder.name)) is not None:
        command += f" budget={budget[1]}"
    return Entry(name, f"groups-{slug(name)}", text, command, pictures, [grid])


def folds(root: Path, known: Mapping[str, Any]) -> Iterator[Section]:
    """Yield sections on layer similarity and on the folded networks below a folder.

    `known` maps config hashes to runs, to name the folded ones. Raises ValueError for a damaged
    file.
    """
    paths = sorted(root.rglob("fold.json"))
    similar, folded, links = [], [], {}
    for path in paths:
        name = str(path.parent.relative_to(root))
        one, other = _fold(path, name, known)
        similar.append(one)
        folded.append(other)
        links[f"{name}/folded.png"] = other.anchor
    yield Section(
        "Layer similarity",
        similar,
        "abs(cosine) of two layers' coefficients: layers above a threshold are folded into one, as"
        " the next section shows.",
    )
    if (overview := root / "README.md").is_file() and paths:
        own = report_markdown.read(overview.read_text(encoding="utf-8"), "folds", links)
        command = "python scripts/fold_page.py"
        folded.insert(0, Entry(own.title, "folds-all", "", command, html=own.html))
    yield Section("Folded networks", folded)


def _fold(path: Path, name: str, known: Mapping[str, Any]) -> tuple[Entry, Entry]:
    """Return a network's entries on similarity and folding. Raises ValueError."""
    try:
        fold = read_json(path)
        run = known.get(fold.get("config_hash"))
        where = "DIR" if run is None else f"runs/{'/'.join(Path(run.folder).parts[-2:])}"
        threshold = f"threshold={fold['threshold']}"
        if "chosen_on" in fold:
            threshold = f"threshold=auto tolerance={fold['tolerance']}"
        command, folder = f"npas-fold run={where} {threshold}", path.parent
        pairs = [value for own in fold["similarity"] for value in _pairs(own["matrix"])]
        agree = sum(value >= fold["threshold"] for value in pairs)
        few = f"{len(fold['similarity'])} groups" if len(fold["similarity"]) > 1 else "one group"
        text = f"{len(pairs)} pairs of layers in {few} can be compared: their mean is"
        text = f"{text} {fmean(pairs):.2f}, {agree} reach {fold['threshold']}. n = 1 network."
        maps = [
            ("lsm", f"Heat maps of the similarity of layers of {name}, group by group: {text}"),
            ("lsm_epochs", f"The heat maps of {name} after epochs of training."),
        ]
        similar = _figures(folder, maps, name)
        metric, values = fold["metric"], fold["metrics"]
        before, after = (with_unit(metric, values[k][metric]) for k in ("before", "folded"))
        loops = [
            f"{', '.join(block['blocks'])} of {block['container'] or 'the network'} became"
            f" {block['period']} run {block['times']} times"
            for block in fold["blocks"]
            if block["times"] > 1
        ]
        summary = f"{fold['layers_before']} layers became {fold['layers']},"
        summary += f" {fold['parameters_before']:,} parameters {fold['parameters']:,};"
        summary += f" {fold['split']} {metric} {before} before and {after} after. n = 1 network."
        looped = f"Blocks {'; '.join(loops)}." if loops else "No blocks loop."
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of npas-fold: {error!r}") from None
    boxes = [("folded", f"Diagram of the folded network {name}. {looped}")]
    diagrams = _figures(folder, boxes, name)
    return (
        Entry(name, f"similarity-{slug(name)}", text, command, similar),
        Entry(name, f"fold-{slug(name)}", f"{summary} {looped}", command, diagrams),
    )


def _pairs(matrix: Sequence[Sequence[float | None]]) -> list[float]:
    above = (row[i + 1 :] for i, row in enumerate(matrix))
    return [value for value in itertools.chain.from_iterable(above) if value is not None]


def _figures(folder: Path, wanted: Sequence[tuple[str, str]], name: str) -> list[Picture]:
    found = [(file_of(folder / stem), alt) for stem, alt in wanted]
    titles = {"lsm": "Similarity of layers", "lsm_epochs": "Over epochs", "folded": "Folded"}
    return [
        picture(path, alt, f"{titles[path.stem]}: {name}.")
        for path, alt in found
        if path is not None
    ]
