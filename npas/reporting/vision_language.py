"""Define the tables of phrase grounding and of image-sentence retrieval."""

from __future__ import annotations

from npas.reporting import published
from npas.reporting.soft_sharing import count_planned, no_plot
from npas.reporting.tables import Row, Table

FAST = "precision=bf16"  # what the experiments' own commands train with
DENSE = "budget=dense"
BUDGETS = ("0.02", "0.05", "0.1", "0.5", "1", "2")
GROUNDING = {"Flickr30K Entities": ("flickr30k", 4), "ReferIt": ("referit", 12)}
RETRIEVAL = {"Flickr30K": "f30k", "COCO": "coco"}
RECALLS = {
    "mr": "mean of the six recalls",
    "i2t_r1": "R@1, an image's sentences found",
    "t2i_r1": "R@1, a sentence's image found",
}


def grounding() -> Table:
    """List SimNet inside budgets on both sets, and CITE, whose figures are known."""
    rows = []
    for name, (data, concepts) in GROUNDING.items():
        exp = f"+exp=simnet_{data}"
        figure = published.figure("grounding", "CITE", data)
        cite = (exp, f"model.embeddings={concepts}", DENSE, FAST)
        rows.append(Row(f"CITE, {concepts} embeddings", cite, published=figure, section=name))
        rows.append(Row("SimNet", (exp, DENSE, FAST), section=name))
        rows += [
            Row(f"SSN, SimNet, budget {budget}", (exp, f"budget={budget}", FAST), section=name)
            for budget in BUDGETS
        ]
    return Table(
        name="grounding",
        title="Phrase grounding: accuracy beside the published figures",
        rows=tuple(rows),
        note="The share of phrases whose highest region has an IoU of 0.5 or more with the truth,"
        " on the test part. SSN's own figures are not among those that could be read; CITE is"
        " SimNet with several layers side by side, and its figures are about what its README"
        " says, with a region detector and word vectors of its own.",
        seeds=(0,),
        count=count_planned,
        draw=no_plot,
    )


def retrieval() -> Table:
    """List ADAPT-T2I and the two-branch network on both sets, whole and inside budgets."""
    rows = []
    for name, data in RETRIEVAL.items():
        for metric, meaning in RECALLS.items():
            section = f"{name}: {meaning}"
            for network, exp, column in (
                ("ADAPT-T2I", "adapt", metric if metric != "mr" else ""),
                ("two-branch", "two_branch", metric),
            ):
                key = f"{data}_{column}"
                figure = published.figure("retrieval", network, key) if column else None
                for budget in ("dense", "0.1", "0.5", "2"):
                    label = network if budget == "dense" else f"SSN, {network}, budget {budget}"
                    words = (f"+exp={exp}_{data}", f"budget={budget}", FAST)
                    beside = figure if budget == "dense" else None
                    rows.append(Row(label, words, "", beside, section, metric))
    return Table(
        name="retrieval",
        title="Image-sentence retrieval: recalls beside the published ones",
        rows=tuple(rows),
        note="On the test part; of COCO the mean of five folds of 1,000 images. SSN's own figures"
        " are not among those that could be read. The published two-branch network sees other"
        " features (ResNet-152, one vector an image), of Flickr30K another split, and of COCO a"
        " test part of 1,000 images alone.",
        metric="mr",
        seeds=(0,),
        count=count_planned,
        draw=no_plot,
    )


def scenes() -> Table:
    """Show what a budget costs SimNet on the rendered scenes, between two baselines."""
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
            *(
                Row(f"SSN, SimNet, budget {budget}", (exp, f"budget={budget}"), series="SSN")
                for budget in BUDGETS
            ),
            Row("the best region (oracle)", dense, "oracle", None, "The upper bound", "oracle"),
        ),
        note="Synthetic scenes: shapes drawn by a generator, which stand in for no data set. From"
        " pixels to regions and their features nothing is learned or taken from elsewhere. The bag"
        " of words is linear in the mean of a phrase's word vectors and in a region's features.",
    )


def scenes_retrieval() -> Table:
    """Match sentences with rendered scenes: both networks whole and in a tenth."""
    rows = [
        Row(
            label if budget == "dense" else f"SSN, {label}, budget {budget}",
            (f"+exp={exp}_scenes", f"budget={budget}"),
        )
        for label, exp in (("ADAPT-T2I", "adapt"), ("two-branch", "two_branch"))
        for budget in ("dense", "0.1")
    ]
    return Table(
        name="scenes_retrieval",
        title="Rendered scenes: image-sentence retrieval",
        rows=tuple(rows),
        note="The mean of six recalls over 200 rendered scenes and their 1,000 sentences, by narrow"
        " networks; to draw answers by lot gives 2.6. No paper has figures for it.",
        metric="mr",
        seeds=(0,),
        draw=no_plot,
    )


def scenes_groups() -> Table:
    """Compare text and image layers that share one bank with such that keep to themselves."""
    exp = "+exp=simnet_scenes"
    kinds = {
        "one group for text and image": (),
        "by modality": ("sharing=by_modality",),
        "random (3)": ("sharing.groups=random", "sharing.num_groups=3"),
    }
    rows = [Row("SimNet", (exp, DENSE), series="SimNet, dense")]
    for budget in ("0.05", "0.1"):
        rows += [
            Row(f"{name}, budget {budget}", (exp, f"budget={budget}", *words), series=name)
            for name, words in kinds.items()
        ]
    return Table(
        name="scenes_groups",
        title="Rendered scenes: should text and image layers share?",
        rows=tuple(rows),
        note="The network of the table `scenes`, its layers grouped in three ways: all in one bank,"
        " text, image and joint layers in a bank each, and by lot. No paper"
        " has figures for it.",
    )
