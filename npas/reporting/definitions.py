"""The tables that can be reproduced, as data: which runs each row is, and what it stands beside.

A new table is one more function, here or in a file beside this one, and its entry in `_TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable

from npas import models
from npas.config import GROUPINGS, SEARCHED
from npas.reporting import larger, published, soft_sharing, vision_language
from npas.reporting.compose import compose
from npas.reporting.counts import dense_count
from npas.reporting.tables import Row, Table

DIGITS_BUDGETS = ("0.02", "0.05", "0.1", "0.25", "0.5", "1", "2", "4")
GROUPS_BUDGETS = ("0.05",)
GROUPS = 4
NARROW_BUDGETS = ("0.05", "0.1", "0.25", "0.5")
SMALL_BUDGETS = ("0.05", "0.1", "0.25", "0.5", "1", "2")
CIFAR_BUDGETS = ("0.05", "0.1", "0.25", "0.5", "1", "1.5", "2")
WIDTH_STEPS = 64  # widths are multiples of 1/64: exact as decimals, and as fine as channels are


def names() -> tuple[str, ...]:
    """List the tables."""
    return tuple(_TABLES)


def table(name: str) -> Table:
    """Return a table's definition; ValueError, with near names, if there is none."""
    if name not in _TABLES:
        raise ValueError(f"there is no table {name!r}; {models.near(name, list(_TABLES))}")
    return _TABLES[name]()


def _digits() -> Table:
    narrow = [
        Row(
            f"narrower dense network of budget {budget}",
            ("+exp=digits_narrow", f"model.width={narrow_width('digits', budget)}"),
            series="narrower dense network",
        )
        for budget in NARROW_BUDGETS
    ]
    return Table(
        name="digits",
        title="Digits: accuracy against parameter budget",
        rows=(
            Row("dense network", ("+exp=digits", "budget=dense"), series="dense network"),
            *narrow,
            *_shared(DIGITS_BUDGETS, "+exp=digits"),
        ),
        note="A Wide ResNet on scikit-learn's 8x8 digits; a fixed fifth of them is the test set."
        " No paper has figures for this task: it shows within minutes what a budget costs.",
    )


def _digits_groups() -> Table:
    def row(groups: str, budget: str) -> Row:
        words, label = ["+exp=digits", f"budget={budget}"], groups
        if groups != "single":
            words.append(f"sharing.groups={groups}")
        if groups in ("random", *SEARCHED):
            words.append(f"sharing.num_groups={GROUPS}")
            label = f"{groups} ({GROUPS})"
        return Row(f"{label}, budget {budget}", tuple(words), series=groups)

    return Table(
        name="digits_groups",
        title="Digits: who should share with whom",
        rows=(
            Row("dense network", ("+exp=digits", "budget=dense"), series="dense network"),
            *(row(groups, budget) for budget in GROUPS_BUDGETS for groups in GROUPINGS),
        ),
        note="The network of the table `digits`, its 17 layers grouped in six ways; in brackets how"
        " many groups were asked for. `learned` and `gradient` find theirs in two epochs of their"
        " own before the 20 of every row. No paper has figures for this task.",
    )


def _cifar10_small() -> Table:
    words = ("+exp=cifar10_small", "data.verify=warn")
    return Table(
        name="cifar10_small",
        title="CIFAR-10, JPEG copy, 16x16 pixels: accuracy against parameter budget",
        rows=(
            Row("dense network", (*words, "budget=dense"), series="dense network"),
            *_narrower("cifar10_small", *words),
            *_shared(SMALL_BUDGETS, *words),
        ),
        note="WRN-16-2, five epochs. The images are a public JPEG copy of CIFAR-10, not the"
        " published bytes, halved in size: compare these figures with each other, not with"
        " published ones. All rows train for the same steps, with the same augmentation and at one"
        " rate, 0.2: of 0.1, 0.2 and 0.4 the best for the dense network on the held-out tenth"
        " (74.8, 75.6 and 75.4%, one seed each), and tuned for no other row.",
    )


def _narrower(exp: str, *words: str) -> list[Row]:
    return [
        Row(
            f"narrower dense network of budget {budget}",
            (*words, "budget=dense", f"model.width={narrow_width(exp, budget)}"),
            series="narrower dense network",
        )
        for budget in NARROW_BUDGETS
    ]


def _wrn_cifar10() -> Table:
    """The poster's figures with cutout, which is our recipe, and without."""
    with_cutout = [
        Row(
            f"{name}, cutout",
            _dense(10) if name == "WRN 28-10" else None,
            series="dense network",
            published=published.figure("nas", name, "c10", cutout=True),
        )
        for name in ("WRN 28-10", "SWRN 28-6-2", "SWRN 28-10-2", "SWRN 28-14-2")
    ]
    return _wrn_cifar(10, with_cutout)


def _wrn_cifar100() -> Table:
    return _wrn_cifar(100, [Row("WRN 28-10, cutout", _dense(100), series="dense network")])


def _wrn_cifar(classes: int, with_cutout: list[Row]) -> Table:
    return Table(
        name=f"wrn_cifar{classes}",
        title=f"CIFAR-{classes}: Wide ResNets inside parameter budgets",
        rows=(
            *with_cutout,
            *_shared(CIFAR_BUDGETS, *_full(classes)),
            *_without_cutout(f"c{classes}"),
        ),
        note="Our runs train on all 50,000 training images with flips, crops and cutout. SSN rows"
        " are WRN 28-10 inside the budget; SWRN d-w-k is soft sharing with k templates. Rows"
        " without cutout and soft sharing are published figures only here: table swrn runs them.",
        as_error=True,
    )


def _full(classes: int) -> tuple[str, ...]:
    return f"+exp=wrn_cifar{classes}", "data.val_fraction=0"


def _dense(classes: int) -> tuple[str, ...]:
    return *_full(classes), "budget=dense"


def _shared(budgets: tuple[str, ...], *words: str) -> list[Row]:
    return [Row(f"SSN, budget {b}", (*words, f"budget={b}"), series="SSN") for b in budgets]


def _without_cutout(column: str) -> list[Row]:
    rows = []
    for entry in published.load()["sections"]["cifar"]["rows"]:
        dropout = {"dropout": entry["dropout"]} if "dropout" in entry else {}
        figure = published.figure("cifar", entry["name"], column, **dropout)
        suffix = ", dropout 0.3" if entry.get("dropout") else ""
        rows.append(Row(f"{entry['name']}{suffix}, no cutout", None, published=figure))
    return rows


def narrow_width(exp: str, budget: str) -> float:
    """Return the largest `model.width` whose dense network stays within the budget's parameters.

    The budget is one of the experiment's own dense network.
    """
    from npas.sharing.budget import parse_budget

    config = compose(f"+exp={exp}", "budget=dense")
    allowed = parse_budget(budget).allowed(dense_count(config, config.model.width))
    fitting = largest(
        lambda steps: dense_count(config, steps / WIDTH_STEPS) <= allowed,
        WIDTH_STEPS // 16,  # one channel
        int(config.model.width * WIDTH_STEPS),
    )
    return fitting / WIDTH_STEPS


def largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number from `low` to `high` for which `holds`; it fails from there on.

    Raises ValueError if it does not even hold for `low`.
    """
    if not holds(low):
        raise ValueError("even the narrowest network has more parameters than this budget allows")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


_TABLES: dict[str, Callable[[], Table]] = {
    "digits": _digits,
    "digits_groups": _digits_groups,
    "cifar10_small": _cifar10_small,
    "wrn_cifar10": _wrn_cifar10,
    "wrn_cifar100": _wrn_cifar100,
    "imagenet": larger.imagenet,
    "perceiver": larger.perceiver,
    "squad": larger.squad,
    "grounding": vision_language.grounding,
    "retrieval": vision_language.retrieval,
    "scenes": vision_language.scenes,
    "scenes_retrieval": vision_language.scenes_retrieval,
    "scenes_groups": vision_language.scenes_groups,
    "swrn": soft_sharing.swrn,
    "digits_swrn": soft_sharing.digits_swrn,
    "shortest_paths": soft_sharing.shortest_paths,
    "shortest_paths_small": soft_sharing.shortest_paths_small,
}
