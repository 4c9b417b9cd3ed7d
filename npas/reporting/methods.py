"""The tables of sharing schemes at equal budgets, with a paired test, and of ablations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from npas.reporting import language_models as lm
from npas.reporting.tables import Cell, Row, Table, grid_line
from npas.reporting.verdicts import measured, verdicts

BUDGETS = {"0.1": "10%", "0.25": "25%", "0.5": "50%"}
NARROWER, PLAIN = "narrower dense network", "coefficients a layer (SSN)"
HASHED = "hashed rows"
SCHEMES = {  # the overrides of each
    "the released form": ("sharing=reference",),
    PLAIN: ("sharing=no_embeddings",),
    "the same, sparse start": ("sharing=sparse_start",),
    "the same, embeddings in the bank": (),
    "two groups by depth": ("sharing=two_depths",),
    "low-rank corrections": ("sharing=low_rank",),
    "coefficients a channel": ("sharing=channels",),
    "one basis of rows": ("sharing=basis",),
    HASHED: ("sharing=hashed",),
    f"{HASHED}, embeddings in the bank": ("sharing.generator=hash",),
    "factorized, not shared": ("sharing=factorized",),
}


def methods() -> Table:
    """Return the schemes on Shakespeare at three budgets, beside narrower networks; two at 5%."""
    exp = "+exp=shakespeare"

    def scheme(name: str, budget: str, share: str) -> Row:
        overrides = (exp, *lm.RATE, *SCHEMES[name], f"budget={budget}")
        section = f"{share} of the parameters"
        return Row(f"{name}, {share}", overrides, name, section=section)

    rows = [Row(lm.DENSE, (exp, *lm.RATE), lm.DENSE, section="The whole network")]
    rows += [scheme(name, "0.05", "5%") for name in (PLAIN, HASHED)]
    for budget, share in BUDGETS.items():
        section = f"{share} of the parameters"
        width = f"model.width={lm.WIDTHS[budget]}"
        label = f"{NARROWER}, {share}"
        rows.append(Row(label, (exp, *lm.RATE, width), NARROWER, section=section))
        rows += [scheme(name, budget, share) for name in SCHEMES]
    return Table(
        name="methods",
        title="Ways to share, on Shakespeare: loss at equal parameters",
        rows=rows,
        note="nanoGPT's CPU setting, 2,000 steps, one rate for all, 0.006, which was chosen for the"
        " dense network and tuned for no scheme (see the table `shakespeare`): loss in nats a"
        " character over the whole val part, lower is better. All schemes leave the embeddings out"
        " of the bank, but for the released form and the rows that say so; each is exact in its"
        " budget, but for the released form, whose coefficients and biases come on top of it."
        " docs/method.md says what each does.",
        metric="loss",
        costed=True,
        appendix=lambda cells: paired(cells, "loss"),
    )


# The row that is changed, its label, and the override.
ABLATIONS = {
    (PLAIN, "at most two templates"): "sharing.max_templates=2",
    (PLAIN, "equal coefficients, which do not train"): "sharing.generator=avg",
    (PLAIN, "coefficients by layer embeddings"): "sharing.generator=emb",
    (PLAIN, "the released start"): "sharing.coefficient_init=released",
    (PLAIN, "no weight decay"): "optim.weight_decay=0",
    (PLAIN, "half the rate for the bank"): "optim.bank_lr=0.003",
    (PLAIN, "twice the rate for the bank"): "optim.bank_lr=0.012",
    (PLAIN, "a third of the rate for coefficients"): "optim.coefficient_lr=0.002",
    (PLAIN, "three times the rate for coefficients"): "optim.coefficient_lr=0.018",
    (HASHED, "no weight decay"): "optim.weight_decay=0",
    (HASHED, "half the rate for the bank"): "optim.bank_lr=0.003",
    (HASHED, "twice the rate for the bank"): "optim.bank_lr=0.012",
}


def ablations() -> Table:
    """Return one change of initialization or training per row, at budget 0.25."""
    common = ("+exp=shakespeare", *lm.RATE, "budget=0.25")
    rows = [Row(lm.DENSE, common[:-1], lm.DENSE)]
    rows += [Row(base, (*common, *SCHEMES[base]), base) for base in (PLAIN, HASHED)]
    pairs = []
    for (base, change), override in ABLATIONS.items():
        label = f"{base}: {change}"
        rows.append(Row(label, (*common, *SCHEMES[base], override), label))
        pairs.append((label, base))
    return Table(
        name="ablations",
        title="How banks and coefficients start and train: Shakespeare at 25%",
        rows=rows,
        note="The setting of the table `methods`. Each row differs from the second or the third in"
        " one thing; a bank's rate is 0.006 there, as all rates are.",
        metric="loss",
        plotted=False,
        appendix=verdicts(pairs, "loss"),
    )


def paired(cells: Sequence[Cell], metric: str) -> list[str]:
    """Compare each scheme with SSN at its budget by a paired t test.

    The pairs are the seeds that both have; rows with fewer than two are left out.
    """
    from scipy.stats import ttest_rel

    rows = []
    for cell in cells:
        name, _, share = cell.row.label.rpartition(", ")
        if not name:
            continue
        base = next(other for other in cells if other.row.label == f"{PLAIN}, {share}")
        ours, theirs = measured(cell, metric), measured(base, metric)
        seeds = sorted(ours.keys() & theirs.keys())
        if name == PLAIN or len(seeds) < 2:
            continue
        pairs = [ours[s] for s in seeds], [theirs[s] for s in seeds]
        apart = statistics.fmean(pairs[0]) - statistics.fmean(pairs[1])
        p = float(ttest_rel(*pairs).pvalue)
        rows.append(grid_line([share, name, f"{apart:+.3f}", f"{p:.3f}", str(len(seeds))]))
    if not rows:
        return []
    return [
        f"## Beside {PLAIN}",
        "",
        "Mean difference over seeds, paired, and the probability of one as large by chance (t test,"
        " two-sided, not corrected for how many are compared). Three seeds tell large differences"
        " alone.",
        "",
        grid_line(["parameters", "scheme", "difference", "p", "n"]),
        grid_line(["---:", "---", "---:", "---:", "---:"]),
        *rows,
        "",
    ]
