"""The table of pruned networks: HRank's, and the same networks with shared weights."""

from __future__ import annotations

from npas.reporting import published
from npas.reporting.tables import Row, Table

# By the name of the published row: experiment, pruning overrides, half the parameters.
NETWORKS = {
    "VGG-16": ("vgg16_cifar10", ("pruning=hrank_vgg16",), "1.32M"),
    "ResNet-56": ("resnet56_cifar10", ("pruning=hrank_resnet56",), "245K"),
    "ResNet-110": ("resnet110_cifar10", ("pruning=hrank",), "520K"),
    "DenseNet-40": ("densenet40_cifar10", ("pruning=hrank", "pruning.amount=0.3"), "330K"),
}


def hrank() -> Table:
    """Return each network pruned by HRank, shared at that size, and shared and pruned at half."""
    rows = []
    for name, (exp, pruned, half) in NETWORKS.items():
        own, figure = f"+exp={exp}", published.figure("hrank_cifar10", name, "accuracy")
        rows += [
            Row("pruned by HRank", (own, "budget=dense", *pruned), "", figure, name),
            Row("SSN", (own,), section=name),
            Row("SSN, pruned", (own, f"budget={half}", *pruned), section=name),
        ]
    return Table(
        name="hrank",
        title="CIFAR-10: pruned networks",
        rows=rows,
        note="Test accuracy. Filters of the lowest-ranked feature maps are pruned once, after half"
        " of the training. Parameters of a dense network are those it has once the filters, and"
        " the channels that read them, are taken out; SSN's are what is trained and, where filters"
        " are pruned, a bit for each. HRank's README says that its counts do not take off the"
        " channels that the next layer loses; our shares of pruned filters are such that our counts"
        " stay below its. Multiply-adds are of one image.",
        counted=True,
        plotted=False,
    )
