"""The table of distillation on CIFAR-100: WRN-40-2 to WRN-16-2, dense and shared."""

from __future__ import annotations

from npas.config import run_dir
from npas.reporting import published
from npas.reporting.compose import compose
from npas.reporting.tables import Row, Table

EXP = "+exp=kd_cifar100"
TEACHER = (EXP, "model=wrn_40_2", "budget=dense")
BUDGETS = ("0.25", "0.5")


def kd() -> Table:
    """Return the teacher, students with and without it, and other methods' published figures."""
    teacher = f"distill.teacher={run_dir(compose(*TEACHER))}"
    rows = [
        Row("WRN-40-2, the teacher", TEACHER, "", _figure("teacher")),
        Row("WRN-16-2 alone", (EXP, "budget=dense"), "alone", _figure("student")),
        Row("WRN-16-2, taught", (EXP, "budget=dense", teacher), "taught", _figure("KD")),
    ]
    for budget in BUDGETS:
        own = (EXP, f"budget={budget}")
        rows += [
            Row(f"SSN alone, budget {budget}", own, "alone"),
            Row(f"SSN, taught, budget {budget}", (*own, teacher), "taught"),
        ]
    others = ("FitNet", "AT", "VID", "CRD")
    rows += [Row(f"WRN-16-2 by {name}", None, "", _figure(name)) for name in others]
    return Table(
        name="kd",
        title="CIFAR-100: students taught by a larger network",
        rows=rows,
        note="Test accuracy of a WRN-16-2 whose teacher is a WRN-40-2: RepDistiller's setting and"
        " its published figures, ours by the loss of Hinton et al. (2015) alone. SSN's students are"
        " the same network inside a budget. The teacher of all seeds is the run of seed 0.",
        counted=True,
        plotted=False,
    )


def _figure(name: str) -> published.Figure:
    return published.figure("kd_cifar100", name, "accuracy")
