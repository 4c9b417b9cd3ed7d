"""The tables of language models: Shakespeare, SQuAD, and MiniLM on questions."""

from __future__ import annotations

from collections.abc import Sequence

from npas.config import run_dir
from npas.reporting import plots, published
from npas.reporting.compose import compose
from npas.reporting.tables import Cell, Row, Table, grid_line, summarize
from npas.reporting.verdicts import verdicts

FAST = "precision=bf16"  # as in the experiments' own commands
RATE = ("optim.lr=0.006", "optim.min_lr=0.0006")
BUDGETS = ("0.1", "0.25", "0.5", "1", "2")
# The narrowest width of four heads with at least the budget's parameters.
WIDTHS = {"0.1": 40, "0.25": 64, "0.5": 92}
DENSE, SPARSE = "dense network", "SSN, sparse start"
SCHEMES = {  # preset and budget of each
    "two groups by depth": ("two_depths", "0.25"),
    "low-rank corrections": ("low_rank", "0.25"),
    "groups by place": ("by_place", "0.5"),
    "groups by place, Legendre coefficients": ("legendre", "0.5"),
    "groups by place, cosine coefficients": ("cosine", "0.5"),
    "first and last block unshared": ("sandwich", "0.6"),
}
ALBERT = "one block in four loops (ALBERT)"
LOOPED = {ALBERT: (1, 4), "two blocks in two loops": (2, 2)}
# The rows of both versions: the prefix of the experiment's name, and overrides.
SQUAD = {
    "BERT-Large": ("bert_large", "model.pretrained=bert-large-uncased"),
    "ALBERT": ("albert_large", "model.pretrained=albert/albert-large-v1"),
    "LB-SSN": ("ssn",),
}


def shakespeare() -> Table:
    """Return nanoGPT's network of its CPU setting, shared, narrower and looped."""
    exp = "+exp=shakespeare"

    def shared(name: str, budgets: Sequence[str], *overrides: str) -> list[Row]:
        return [
            Row(f"{name}, budget {b}", (exp, *RATE, *overrides, f"budget={b}"), series=name)
            for b in budgets
        ]

    narrow = {budget: f"narrower dense network, {width}" for budget, width in WIDTHS.items()}
    kinds = {"SSN": "no_embeddings", SPARSE: "sparse_start"}
    pairs = [(f"{kind}, budget {b}", label) for kind in kinds for b, label in narrow.items()]
    pairs += [(f"{kind}, budget {b}", DENSE) for kind in kinds for b in BUDGETS]
    pairs += [(f"{SPARSE}, budget {b}", f"SSN, budget {b}") for b in BUDGETS]
    pairs += [(ALBERT, narrow["0.25"]), (ALBERT, DENSE)]
    rows = [
        Row("dense network at nanoGPT's rate, 0.001", (exp,), series="nanoGPT's rate"),
        Row(DENSE, (exp, *RATE), series=DENSE),
        *(
            Row(label, (exp, *RATE, f"model.width={WIDTHS[b]}"), series="narrower dense network")
            for b, label in narrow.items()
        ),
        *(
            row
            for kind, preset in kinds.items()
            for row in shared(kind, BUDGETS, f"sharing={preset}")
        ),
        *shared("SSN, embeddings in the bank", BUDGETS),
    ]
    for name, (preset, budget) in SCHEMES.items():
        rows += shared(name, (budget,), f"sharing={preset}")
    for name, (layers, loops) in LOOPED.items():
        overrides = (
            f"model.layers={layers}",
            f"model.loops={loops}",
            "model.iteration_embeddings=true",
        )
        rows.append(Row(name, (exp, *RATE, *overrides), series=name))
    return Table(
        name="shakespeare",
        title="Shakespeare, characters: loss against parameter budget",
        rows=rows,
        note="nanoGPT's CPU setting on tinyshakespeare: four blocks of 128, rows of 64, 2,000 steps"
        " of 12 rows. The loss is in nats a character over the whole val part; nanoGPT's README"
        " gives 1.88, a mean over random rows. Except in the first row all train at one rate,"
        " 0.006: of 0.003, 0.006 and 0.012 the dense network's best on a held-out tenth of the"
        " training text, one seed each (1.740, 1.725, 1.729). There a narrower one of a quarter has"
        " 1.890, 1.822 and 1.815, SSN at a quarter 1.746, 1.720 and 1.713: both would gain 0.007 at"
        " twice the rate. SSN is one bank for all matrices, without the embeddings of tokens and"
        " places; each layer starts with all of its templates or, in rows of a sparse start, with"
        " one of them alone. A narrower network has the least width, a multiple of four, whose"
        " parameters are at least the budget's.",
        metric="loss",
        draw=plots.against_bytes_too,
        costed=True,
        appendix=lambda cells: [*verdicts(pairs, "loss")(cells), *_artifacts(cells)],
    )


def squad() -> Table:
    """Return the slides' networks on both versions of SQuAD."""
    start = f"sharing.init={run_dir(compose('+exp=ssn_mlm', FAST))}"
    rows = []
    for version, section, metric in ((1, "SQuAD 1.1", "f1"), (2, "SQuAD 2.0", "best_f1")):
        for name, (exp, *more) in SQUAD.items():
            overrides = (f"+exp={exp}_squad{version}", *more, FAST)
            overrides += (start,) if name == "LB-SSN" else ()
            figure = published.figure("squad", name, f"squad{version}_f1")
            rows.append(Row(name, overrides, "", figure, section, metric))
    return Table(
        name="squad",
        title="SQuAD: F1 beside the published figures",
        rows=rows,
        note="F1 on the development sets, of SQuAD 2.0 at the threshold that does best there, as"
        " the official evaluation reports it. LB-SSN is BERT-large inside 18 million parameters,"
        " the embeddings among them. BERT and ALBERT start from their published weights; LB-SSN"
        " from a pre-training of its own, `npas-train +exp=ssn_mlm precision=bf16`, whose run"
        " `sharing.init` names.",
        metric="f1",
        counted=True,
        plotted=False,
    )


def minilm_squad() -> Table:
    """Return MiniLM-L6 dense and inside budgets: fresh, fitted, and fitted with a teacher."""
    exp = "+exp=minilm_squad"
    starts = {
        "shared afresh": (),
        "fitted": ("sharing.init=fit",),
        "fitted, taught": ("sharing.init=fit", "distill.teacher=dense"),
    }
    rows = [Row("dense network", (exp,), series="dense network")]
    for name, overrides in starts.items():
        rows += [
            Row(f"{name}, budget {b}", (exp, f"budget={b}", *overrides), series=name)
            for b in ("0.5", "0.25")
        ]
    return Table(
        name="minilm_squad",
        title="XQuAD-en: F1 of a trained network inside parameter budgets",
        rows=rows,
        note="MiniLM-L6 with its published weights, fine-tuned on 2,000 questions of SquadShifts'"
        " new_wiki and of SQuAD's dev set without XQuAD's paragraphs, tested on XQuAD-en's 1,190:"
        " these are no figures of SQuAD's dev set. The teacher is the dense network of the same"
        " seed. Shared afresh, what is shared loses the published weights; norms and biases keep"
        " theirs.",
        metric="f1",
        plotted=False,
    )


def _artifacts(cells: Sequence[Cell]) -> list[str]:
    """Return lines on the size of each network's int8 artifact, and its loss when read back."""
    lines = []
    for cell in cells:
        found = [run.artifact for run in cell.having("done").values() if run.artifact is not None]
        losses = [one.metrics["loss"] for one in found if one.metrics is not None]
        if losses:
            summary = summarize(losses)
            assert summary is not None
            loss = f"{summary.mean:.3f}" + ("" if summary.std is None else f" ± {summary.std:.3f}")
            lines.append(
                grid_line([cell.row.label, f"{cell.artifact_bytes():,}", loss, str(summary.n)])
            )
    if not lines:
        return []
    return [
        "## Artifacts",
        "",
        "Weights as int8, a scale a row, compressed by zlib; the loss is of what is read back.",
        "",
        grid_line(["network", "bytes", "test loss", "n"]),
        grid_line(["---", "---:", "---:", "---:"]),
        *lines,
        "",
    ]
