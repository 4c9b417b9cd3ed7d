"""The rows of the poster on soft sharing (Savarese & Maire, ICLR 2019)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from npas.reporting import published
from npas.reporting.tables import Row

SPLIT = "data.val_fraction=0"  # published figures train on all of the training images
OTHERS = {  # networks other than WRNs given by `model.depth` and `model.width`
    "ResNeXt-29 16x64": ("+exp=resnext_cifar{}",),
    "DenseNet 100-24": ("+exp=densenet_cifar{}",),
    "DenseNet 190-40": ("+exp=densenet_cifar{}", "model=densenet_bc_190_40"),
    "WRN 50-2": ("+exp=wrn50_2_imagenet", "precision=bf16"),
    "DenseNet-264": ("+exp=densenet264_imagenet", "precision=bf16"),
    "ResNet-200": ("+exp=resnet200_imagenet", "precision=bf16"),
    "SWRN 50-2": ("+exp=swrn_imagenet", "precision=bf16"),
}
METRICS = {"top5": "top5_accuracy"}  # of columns other than accuracy


def poster_rows(section: str, column: str, heading: str) -> list[Row]:
    """Return the rows of a published section with this column, as one grid under the heading."""
    rows = []
    for entry in published.load()["sections"][section]["rows"]:
        match = {k: entry[k] for k in ("params", "dropout") if k in entry}
        rows.append(
            Row(
                _label(section, entry),
                _overrides(section, entry, column.removeprefix("c")),
                published=published.figure(section, entry["name"], column, **match),
                section=heading,
                metric=METRICS.get(column, ""),
            )
        )
    return rows


def _label(section: str, entry: Mapping[str, Any]) -> str:
    if entry.get("dropout"):
        return f"{entry['name']}, dropout {entry['dropout']}"
    if section == "nas" and not entry.get("cutout"):
        return f"{entry['name']} ({entry['params']:g}M)"
    return str(entry["name"])


def _overrides(section: str, entry: Mapping[str, Any], classes: str) -> tuple[str, ...] | None:
    """Return a row's overrides; None for networks of architecture search."""
    overrides: tuple[str, ...]
    if entry["name"] in OTHERS:
        overrides = tuple(one.format(classes) for one in OTHERS[entry["name"]])
        return overrides if section == "imagenet" else (*overrides, SPLIT)
    matched = re.fullmatch(r"(S?)WRN (\d+)-(\d+)(?:-(\d+))?", entry["name"])
    if matched is None:
        return None
    shared, depth, width, templates = matched.groups()
    if shared:
        size = (f"model.depth={depth}", f"model.width={width}")
        mixed = f"sharing.templates={templates or 'layers'}"
        overrides = (f"+exp=swrn_cifar{classes}", SPLIT, *size, mixed)
    else:  # WRN 28-10, the network of that experiment
        overrides = (f"+exp=wrn_cifar{classes}", SPLIT, "budget=dense")
    if entry.get("dropout"):
        overrides += (f"model.dropout={entry['dropout']}",)
    return overrides if entry.get("cutout") else (*overrides, "task.cutout=false")
