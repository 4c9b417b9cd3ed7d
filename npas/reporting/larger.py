"""Define the tables of the larger tasks, ImageNet and SQuAD, beside the figures of the slides."""

from __future__ import annotations

from npas.config import run_dir
from npas.reporting import published
from npas.reporting.compose import compose
from npas.reporting.counts import planned_count
from npas.reporting.soft_sharing import count_planned, no_plot, poster_rows
from npas.reporting.tables import Row, Table

FAST = "precision=bf16"  # what the experiments' own commands train with
IMAGENET_BUDGETS = ("0.1", "19M", "0.5", "1", "2")
PERCEIVER = {"none": "perceiver_imagenet", "cross-layer": "perceiver_shared_imagenet"}
# The rows of both versions, the experiment of each, and what an experiment's own words leave open.
SQUAD = {
    "BERT-Large": ("bert_large", "model.pretrained=bert-large-uncased"),
    "ALBERT": ("albert_large", "model.pretrained=albert/albert-large-v1"),
    "LB-SSN": ("ssn",),
}


def imagenet() -> Table:
    """List the poster's networks, and a Wide ResNet inside budgets."""
    shared = [
        Row(
            f"SSN, WRN 50-2, budget {budget}",
            ("+exp=wrn50_2_three_convs_imagenet", f"budget={budget}", FAST),
            section=heading,
            metric=metric,
        )
        for heading, metric in (("Top-1", ""), ("Top-5", "top5_accuracy"))
        for budget in IMAGENET_BUDGETS
    ]
    top1 = [*poster_rows("imagenet", "top1", "Top-1"), *(r for r in shared if not r.metric)]
    top5 = [*poster_rows("imagenet", "top5", "Top-5"), *(r for r in shared if r.metric)]
    return Table(
        name="imagenet",
        title="ImageNet: errors beside the published ones",
        rows=(*top1, *top5),
        note="One crop of 224 pixels of the 50,000 validation images. SSN rows are the network of"
        " the released code, with three convs as its stem, inside the budget: its figures are not"
        " among those that could be read.",
        as_error=True,
        seeds=(0,),
        count=count_planned,
        draw=no_plot,
    )


def perceiver() -> Table:
    """Compare a Perceiver whose layers share with one whose layers do not."""
    rows = [
        Row(
            f"Perceiver, sharing: {sharing}",
            (f"+exp={exp}", FAST),
            published=published.figure("perceiver", "Perceiver", "valid", sharing=sharing),
        )
        for sharing, exp in PERCEIVER.items()
    ]
    by_groups = ("+exp=perceiver_groups_imagenet", FAST)
    rows.append(Row("Perceiver, the same sharing by groups", by_groups))
    return Table(
        name="perceiver",
        title="Perceiver: why sharing helps",
        rows=tuple(rows),
        note="Top-1 accuracy on the validation images of ImageNet. The last row ties the weights"
        " of the unshared network by groups of one template; its norms and biases stay each"
        " layer's own.",
        seeds=(0,),
        count=count_planned,
        draw=no_plot,
    )


def squad() -> Table:
    """List the slides' networks on both versions of SQuAD."""
    rows = []
    for version, metric in ((1, "f1"), (2, "best_f1")):
        for name, (exp, *words) in SQUAD.items():
            figure = published.figure("squad", name, f"squad{version}_f1")
            heading = f"SQuAD {version}.{'1' if version == 1 else '0'}"
            command = (f"+exp={exp}_squad{version}", *words, FAST)
            if name == "LB-SSN":
                command = (*command, f"sharing.init={run_dir(compose('+exp=ssn_mlm', FAST))}")
            rows.append(Row(name, command, published=figure, section=heading, metric=metric))
    return Table(
        name="squad",
        title="SQuAD: F1 beside the published figures",
        rows=tuple(rows),
        note="F1 on the development sets, of SQuAD 2.0 at the threshold that does best there, as"
        " the official evaluation reports it. LB-SSN is BERT-large inside 18 million parameters,"
        " the embeddings among them. BERT and ALBERT start from their published weights; LB-SSN"
        " from a pre-training of its own, `npas-train +exp=ssn_mlm precision=bf16`, whose run"
        " `sharing.init` names.",
        metric="f1",
        count=_count,
        draw=no_plot,
    )


def _count(row: Row) -> int:
    """Count a row's parameters, for which no weights need be there to start from."""
    assert row.words is not None
    starts = ("model.pretrained=", "sharing.init=")
    return planned_count(*(word for word in row.words if not word.startswith(starts)))
