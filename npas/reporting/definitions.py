"""Definitions of all tables: the runs of each row, and the published figures beside them.

To add a table, add a function to `_TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from npas.config import GROUPINGS, SEARCHED
from npas.reporting import distilled, language_models, methods, pruned, published, soft_sharing
from npas.reporting.language_models import FAST
from npas.reporting.soft_sharing import poster_rows
from npas.reporting.tables import Row, Table
from npas.reporting.verdicts import verdicts
from npas.utils.checks import near

DIGITS_BUDGETS = ("0.02", "0.05", "0.1", "0.25", "0.5", "1", "2", "4")
NARROW_WIDTHS = {"0.05": 0.421875, "0.1": 0.609375, "0.25": 0.984375, "0.5": 1.40625}
"""The greatest `model.width`, in steps of 1/64, of a WRN-16-2 with at most the budget's parameters:
exact as decimals, and as fine as channels are."""
NARROW_BUDGETS = tuple(NARROW_WIDTHS)
SPARSE_BUDGETS = ("0.1", "0.5", "1", "2")
SMALL_BUDGETS = ("0.05", "0.1", "0.25", "0.5", "1", "2")
CIFAR_BUDGETS = ("0.05", "0.1", "0.25", "0.5", "1", "1.5", "2")
IMAGENET_BUDGETS = ("0.1", "19M", "0.5", "1", "2")
GROUNDING_BUDGETS = ("0.02", "0.05", "0.1", "0.5", "1", "2")
GROUPS = 4
DENSE = "budget=dense"
RECALLS = {
    "mr": "mean of the six recalls",
    "i2t_r1": "R@1, an image's sentences found",
    "t2i_r1": "R@1, a sentence's image found",
}


def names() -> tuple[str, ...]:
    """Return the names of the tables."""
    return tuple(_TABLES)


def table(name: str) -> Table:
    """Return a table's definition. Raises ValueError, with similar names, if there is none."""
    if name not in _TABLES:
        raise ValueError(f"there is no table {name!r}; {near(name, list(_TABLES))}")
    return _TABLES[name]()


def _ssn(budgets: Sequence[str], overrides: str, network: str = "SSN", **row: Any) -> list[Row]:
    """Return rows of a network inside these budgets; `{}` in the overrides is the budget."""
    return [
        Row(f"{network}, budget {b}", tuple(overrides.format(b).split()), **row) for b in budgets
    ]


def _narrower(*overrides: str) -> list[Row]:
    """Return rows of the widest dense networks inside `NARROW_BUDGETS`."""
    name = "narrower dense network"
    return [
        Row(f"{name} of budget {budget}", (*overrides, f"model.width={width}"), series=name)
        for budget, width in NARROW_WIDTHS.items()
    ]


def _digits() -> Table:
    return Table(
        name="digits",
        title="Digits: accuracy against parameter budget",
        rows=(
            Row("dense network", ("+exp=digits", DENSE), series="dense network"),
            *_narrower("+exp=digits_narrow"),
            *_ssn(DIGITS_BUDGETS, "+exp=digits budget={}", series="SSN"),
        ),
        note="A Wide ResNet on scikit-learn's 8x8 digits; a fixed fifth of them is the test set."
        " No paper has figures for this task: it shows within minutes what a budget costs.",
    )


def _digits_groups() -> Table:
    rows = [Row("dense network", ("+exp=digits", DENSE), series="dense network")]
    for groups in GROUPINGS:
        overrides: tuple[str, ...] = ("+exp=digits", "budget=0.05")
        label = groups
        if groups != "single":
            overrides += (f"sharing.groups={groups}",)
        if groups in ("random", *SEARCHED):
            overrides += (f"sharing.num_groups={GROUPS}",)
            label = f"{groups} ({GROUPS})"
        rows.append(Row(f"{label}, budget 0.05", overrides, series=groups))
    return Table(
        name="digits_groups",
        title="Digits: who should share with whom",
        rows=rows,
        note="The network of the table `digits`, its 17 layers grouped in six ways; in brackets how"
        " many groups were asked for. `learned` and `gradient` find theirs in two epochs of their"
        " own before the 20 of every row. No paper has figures for this task.",
    )


def _cifar10_small() -> Table:
    overrides = ("+exp=cifar10_small", "data.verify=warn")
    ssn, sparse, hashed, dense = "SSN", "SSN, sparse start", "hashed rows", "dense network"
    channels, released = "coefficients a channel", "the released form"
    shared = f"{' '.join(overrides)} budget={{}}"
    schemes = {  # the budgets and the overrides of each
        ssn: (SMALL_BUDGETS, ""),
        sparse: (SPARSE_BUDGETS, "sharing.coefficient_init=sparse"),
        hashed: (SMALL_BUDGETS[:3], "sharing.generator=hash"),
        channels: (SMALL_BUDGETS[:2], "sharing.generator=channels"),
        released: (SMALL_BUDGETS[:2], "sharing=reference"),
        "four maps mixed": (SMALL_BUDGETS[:1], "sharing.upsample_templates=4"),
        "factorized, not shared": (("0.1",), "sharing.generator=factorized"),
    }
    for groups in ("type", "shape", "random", *SEARCHED):
        count = "" if groups in ("type", "shape") else f" sharing.num_groups={GROUPS}"
        schemes[f"groups: {groups}"] = ("0.1",), f"sharing.groups={groups}{count}"
    narrow = [(b, f"narrower dense network of budget {b}") for b in NARROW_BUDGETS]
    pairs = [(f"{ssn}, budget {b}", label) for b, label in narrow]
    pairs += [(f"{ssn}, budget {b}", dense) for b in SMALL_BUDGETS[3:]]
    pairs += [(f"{hashed}, budget {b}", label) for b, label in narrow[:3]]
    pairs += [(f"{hashed}, budget 0.25", dense)]
    pairs += [(f"{sparse}, budget {b}", dense) for b in SPARSE_BUDGETS[2:]]
    for name, (budgets, _) in list(schemes.items())[1:]:
        pairs += [(f"{name}, budget {b}", f"{ssn}, budget {b}") for b in budgets]
    pairs += [(f"{hashed}, budget {b}", f"{released}, budget {b}") for b in SMALL_BUDGETS[:2]]
    return Table(
        name="cifar10_small",
        title="CIFAR-10, JPEG copy, 16x16 pixels: accuracy against parameter budget",
        rows=(
            Row(dense, (*overrides, DENSE), series=dense),
            *_narrower(*overrides, DENSE),
            *(
                row
                for name, (budgets, more) in schemes.items()
                for row in _ssn(budgets, f"{shared} {more}", name, series=name)
            ),
        ),
        appendix=verdicts(pairs, "accuracy"),
        costed=True,
        note="WRN-16-2, five epochs. The images are a public JPEG copy of CIFAR-10, not the"
        " published bytes, halved in size: compare these figures with each other, not with"
        " published ones. All rows train for the same steps, with the same augmentation and at one"
        " rate, 0.2: of 0.1, 0.2 and 0.4 the best for the dense network on the held-out tenth"
        " (74.8, 75.6 and 75.4%, one seed each), and tuned for no other row. With a sparse start"
        " each layer begins with one of its templates alone; hashed rows are `sharing=hashed`; the"
        " released form keeps its bank alone inside the budget, and counts more in all.",
    )


def _wrn_cifar(classes: int) -> Table:
    """Return the poster's figures with cutout, our runs with cutout, and figures without."""
    overrides = (f"+exp=wrn_cifar{classes}", soft_sharing.SPLIT)
    dense = Row("WRN 28-10, cutout", (*overrides, DENSE), series="dense network")
    with_cutout = [dense]
    if classes == 10:
        figures = [
            published.figure("nas", name, "c10", cutout=True)
            for name in ("WRN 28-10", "SWRN 28-6-2", "SWRN 28-10-2", "SWRN 28-14-2")
        ]
        with_cutout = [
            Row(f"{own.name}, cutout", None, dense.series, published=own) for own in figures
        ]
        with_cutout[0] = replace(dense, published=figures[0])
    without = [
        Row(f"{row.label}, no cutout", None, published=row.published)
        for row in poster_rows("cifar", f"c{classes}", "")
    ]
    return Table(
        name=f"wrn_cifar{classes}",
        title=f"CIFAR-{classes}: Wide ResNets inside parameter budgets",
        rows=(
            *with_cutout,
            *_ssn(CIFAR_BUDGETS, f"{' '.join(overrides)} budget={{}}", series="SSN"),
            *without,
        ),
        note="Our runs train on all 50,000 training images with flips, crops and cutout. SSN rows"
        " are WRN 28-10 inside the budget; SWRN d-w-k is soft sharing with k templates. Rows"
        " without cutout and soft sharing are published figures only here: table swrn runs them.",
        as_error=True,
    )


def _imagenet() -> Table:
    """Return the poster's networks, and a Wide ResNet inside budgets."""
    overrides = f"+exp=wrn50_2_three_convs_imagenet budget={{}} {FAST}"
    rows: list[Row] = []
    for heading, column, metric in (("Top-1", "top1", ""), ("Top-5", "top5", "top5_accuracy")):
        rows += poster_rows("imagenet", column, heading)
        rows += _ssn(IMAGENET_BUDGETS, overrides, "SSN, WRN 50-2", section=heading, metric=metric)
    return Table(
        name="imagenet",
        title="ImageNet: errors beside the published ones",
        rows=rows,
        note="One crop of 224 pixels of the 50,000 validation images. SSN rows are the network of"
        " the released code, with three convs as its stem, inside the budget: its figures are not"
        " among those that could be read.",
        as_error=True,
        seeds=(0,),
        counted=True,
        plotted=False,
    )


def _perceiver() -> Table:
    """Compare a Perceiver with and without sharing."""
    rows = [
        Row(
            f"Perceiver, sharing: {sharing}",
            (f"+exp={exp}", FAST),
            published=published.figure("perceiver", "Perceiver", "valid", sharing=sharing),
        )
        for sharing, exp in (
            ("none", "perceiver_imagenet"),
            ("cross-layer", "perceiver_shared_imagenet"),
        )
    ]
    by_groups = ("+exp=perceiver_groups_imagenet", FAST)
    return Table(
        name="perceiver",
        title="Perceiver: why sharing helps",
        rows=(*rows, Row("Perceiver, the same sharing by groups", by_groups)),
        note="Top-1 accuracy on the validation images of ImageNet. The last row ties the weights"
        " of the unshared network by groups of one template; its norms and biases stay each"
        " layer's own.",
        seeds=(0,),
        counted=True,
        plotted=False,
    )


def _grounding() -> Table:
    """Return SimNet inside budgets on both datasets, and CITE with its published figures."""
    rows = []
    for name, data, concepts in (
        ("Flickr30K Entities", "flickr30k", 4),
        ("ReferIt", "referit", 12),
    ):
        exp, figure = f"+exp=simnet_{data}", published.figure("grounding", "CITE", data)
        cite = (exp, f"model.embeddings={concepts}", DENSE, FAST)
        rows += [
            Row(f"CITE, {concepts} embeddings", cite, published=figure, section=name),
            Row("SimNet", (exp, DENSE, FAST), section=name),
        ]
        overrides = f"{exp} budget={{}} {FAST}"
        rows += _ssn(GROUNDING_BUDGETS, overrides, "SSN, SimNet", section=name)
    return Table(
        name="grounding",
        title="Phrase grounding: accuracy beside the published figures",
        rows=rows,
        note="The share of phrases whose highest region has an IoU of 0.5 or more with the truth,"
        " on the test part. SSN's own figures are not among those that could be read; CITE is"
        " SimNet with several layers side by side, and its figures are about what its README"
        " says, with a region detector and word vectors of its own.",
        seeds=(0,),
        counted=True,
        plotted=False,
    )


def _retrieval() -> Table:
    """Return ADAPT-T2I and the two-branch network on both datasets, dense and inside budgets."""
    rows = []
    for name, data in (("Flickr30K", "f30k"), ("COCO", "coco")):
        for metric, meaning in RECALLS.items():
            for network, exp in (("ADAPT-T2I", "adapt"), ("two-branch", "two_branch")):
                figure = None
                if (network, metric) != ("ADAPT-T2I", "mr"):
                    figure = published.figure("retrieval", network, f"{data}_{metric}")
                exp, section = f"+exp={exp}_{data}", f"{name}: {meaning}"
                rows.append(Row(network, (exp, DENSE, FAST), "", figure, section, metric))
                overrides, ssn = f"{exp} budget={{}} {FAST}", f"SSN, {network}"
                rows += _ssn(("0.1", "0.5", "2"), overrides, ssn, section=section, metric=metric)
    return Table(
        name="retrieval",
        title="Image-sentence retrieval: recalls beside the published ones",
        rows=rows,
        note="On the test part; of COCO the mean of five folds of 1,000 images. SSN's own figures"
        " are not among those that could be read. The published two-branch network sees other"
        " features (ResNet-152, one vector an image), of Flickr30K another split, and of COCO a"
        " test part of 1,000 images alone.",
        metric="mr",
        seeds=(0,),
        counted=True,
        plotted=False,
    )


def _scenes() -> Table:
    """Compare SimNet inside budgets on the rendered scenes with baselines and bounds."""
    exp = "+exp=simnet_scenes"
    dense = (exp, DENSE)
    return Table(
        name="scenes",
        title="Rendered scenes: accuracy of phrase grounding against parameter budget",
        rows=(
            Row("a region at random (chance)", dense, series="chance", metric="chance"),
            Row("bag of words", ("+exp=bag_of_words_scenes",), series="bag of words"),
            Row("SimNet", dense, series="SimNet, dense"),
            Row("SimNet, phrases by a GRU", (exp, "model.phrase=gru", DENSE), series="with a GRU"),
            *_ssn(GROUNDING_BUDGETS, f"{exp} budget={{}}", "SSN, SimNet", series="SSN"),
            Row("the best region (oracle)", dense, "oracle", None, "The upper bound", "oracle"),
        ),
        note="Synthetic scenes: shapes drawn by a generator, which stand in for no data set. From"
        " pixels to regions and their features nothing is learned or taken from elsewhere. The bag"
        " of words is linear in the mean of a phrase's word vectors and in a region's features.",
    )


def _scenes_retrieval() -> Table:
    """Compare both retrieval networks, dense and at a tenth, on the rendered scenes."""
    rows = []
    for network, exp in (("ADAPT-T2I", "adapt"), ("two-branch", "two_branch")):
        rows.append(Row(network, (f"+exp={exp}_scenes", DENSE)))
        rows += _ssn(("0.1",), f"+exp={exp}_scenes budget={{}}", f"SSN, {network}")
    return Table(
        name="scenes_retrieval",
        title="Rendered scenes: image-sentence retrieval",
        rows=rows,
        note="The mean of six recalls over 200 rendered scenes and their 1,000 sentences, by narrow"
        " networks; to draw answers by lot gives 2.6. No paper has figures for it.",
        metric="mr",
        seeds=(0,),
        plotted=False,
    )


def _scenes_groups() -> Table:
    """Compare one bank for text and image layers with one bank for each."""
    exp = "+exp=simnet_scenes"
    kinds = {
        "one group for text and image": (),
        "by modality": ("sharing=by_modality",),
        "random (3)": ("sharing.groups=random", "sharing.num_groups=3"),
    }
    rows = [Row("SimNet", (exp, DENSE), series="SimNet, dense")]
    for budget in ("0.05", "0.1"):
        rows += [
            Row(f"{name}, budget {budget}", (exp, f"budget={budget}", *overrides), series=name)
            for name, overrides in kinds.items()
        ]
    return Table(
        name="scenes_groups",
        title="Rendered scenes: should text and image layers share?",
        rows=rows,
        note="The network of the table `scenes`, its layers grouped in three ways: all in one bank,"
        " text, image and joint layers in a bank each, and by lot. No paper"
        " has figures for it.",
    )


_TABLES: dict[str, Callable[[], Table]] = {
    "digits": _digits,
    "digits_groups": _digits_groups,
    "cifar10_small": _cifar10_small,
    "shakespeare": language_models.shakespeare,
    "minilm_squad": language_models.minilm_squad,
    "methods": methods.methods,
    "ablations": methods.ablations,
    "wrn_cifar10": lambda: _wrn_cifar(10),
    "wrn_cifar100": lambda: _wrn_cifar(100),
    "imagenet": _imagenet,
    "perceiver": _perceiver,
    "squad": language_models.squad,
    "grounding": _grounding,
    "retrieval": _retrieval,
    "hrank": pruned.hrank,
    "kd": distilled.kd,
    "scenes": _scenes,
    "scenes_retrieval": _scenes_retrieval,
    "scenes_groups": _scenes_groups,
    "swrn": soft_sharing.swrn,
    "digits_swrn": soft_sharing.digits_swrn,
    "shortest_paths": lambda: soft_sharing.shortest_paths("shortest_paths", "grids"),
    "shortest_paths_small": lambda: soft_sharing.shortest_paths(
        "shortest_paths_small", "small grids"
    ),
}
