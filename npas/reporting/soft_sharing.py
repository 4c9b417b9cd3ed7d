"""The tables of soft sharing (Savarese & Maire, ICLR 2019): every row of the poster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from npas.reporting import curriculum, published
from npas.reporting.tables import Row, Table

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
DIGITS_TEMPLATES = {
    "1": "1 template",
    "2": "2 templates",
    "layers": "as many templates as layers",
}
NETWORKS = {
    "CNN": ("budget=dense", "sharing.templates=null"),
    "SCNN": ("sharing=scnn",),
    "SCNN-R": ("sharing=scnn_r",),
}


def swrn() -> Table:
    """Return the poster's networks on CIFAR, on ImageNet and against architecture search."""
    return Table(
        name="swrn",
        title="Soft sharing: parameters and errors beside the published ones",
        rows=(
            *poster_rows("cifar", "c10", "CIFAR-10, without cutout"),
            *poster_rows("cifar", "c100", "CIFAR-100, without cutout"),
            *poster_rows("imagenet", "top1", "ImageNet, top-1"),
            *poster_rows("imagenet", "top5", "ImageNet, top-5"),
            *poster_rows("nas", "c10", "CIFAR-10 against architecture search"),
        ),
        note="SWRN L-w-k mixes k templates in each stage, SWRN L-w as many as the stage has layers"
        " that share. Published counts are as printed: those of SWRN on CIFAR are cut off, not"
        " rounded, so that 33.54 million stand there as 33. Ours are exact, planned without"
        " training. Our runs train on all 50,000 training images; the WRN and SWRN rows against"
        " architecture search with cutout, all others without. GPU-days are of one run on one GPU.",
        as_error=True,
        counted=True,
        plotted=False,  # errors of different tasks do not fit into one plot
    )


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


def digits_swrn() -> Table:
    """Compare initializations of coefficients on the digits."""

    def row(templates: str, series: str, *more: str) -> Row:
        overrides = ("+exp=digits_swrn", f"sharing.templates={templates}", *more)
        return Row(f"{DIGITS_TEMPLATES[templates]}, {series}", overrides, series=series)

    dense = ("+exp=digits_swrn", "budget=dense", "sharing.templates=null")
    return Table(
        name="digits_swrn",
        title="Digits: how the coefficients of soft sharing start",
        rows=(
            Row("dense network", dense, series="dense network"),
            *(row(templates, "orthogonal") for templates in DIGITS_TEMPLATES),
            # A sparse start needs more than one template.
            *(row(k, "sparse", "sharing.coefficient_init=sparse") for k in ("2", "layers")),
            row("2", "regularized", "sharing.recurrence_weight=1"),
        ),
        note="A deep and narrow Wide ResNet on the digits of the table `digits`; the layers of a"
        " stage behind its first block mix the stage's templates. `orthogonal`: the layers'"
        " coefficients start at right angles, as far as there are templates enough; `sparse`: each"
        " layer starts with one template alone. The poster names both, without figures."
        " `regularized`: orthogonal, and the recurrence regularizer rewards layers for growing"
        " alike, to be folded. A tenth of the training images is held out.",
        counted=True,
    )


def shortest_paths(exp: str, where: str) -> Table:
    """Compare networks with and without sharing on grids."""
    return Table(
        name=exp,
        title=f"Shortest paths in {where}: F1 where the points lie further apart than in training",
        rows=tuple(
            Row(name, (f"+exp={exp}", *overrides), name) for name, overrides in NETWORKS.items()
        ),
        note="Three networks of one depth and width mark the cells on shortest paths between two"
        " points. The points lie further apart phase by phase: see the settings in"
        f" `configs/exp/{exp}.yaml`. CNN shares nothing, SCNN mixes templates, SCNN-R is rewarded"
        " for layers that are alike as well. F1 is over the cells of all bands of distances"
        " together, the grids the same for every run and none of them trained on. The poster shows"
        " curves without figures.",
        metric="f1",
        counted=True,
        appendix=curriculum.appendix,
        draw=curriculum.draw,
    )
