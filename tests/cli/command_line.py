"""The commands by name, and the answer of one."""

from dataclasses import dataclass

from npas.cli import evaluate, export, fold, plan, report, runs, table, train

COMMANDS = {
    "npas-train": train.main,
    "npas-plan": plan.main,
    "npas-eval": evaluate.main,
    "npas-export": export.main,
    "npas-fold": fold.main,
    "npas-table": table.main,
    "npas-runs": runs.main,
    "npas-report": report.main,
}

# A network and a schedule that train within a second.
SMALL = (
    "model.depth=10",
    "model.width=0.5",
    "epochs=1",
    "batch_size=256",
    "optim.milestones=[]",
    "wandb.mode=disabled",
    "trainer.device=cpu",
)


@dataclass(frozen=True)
class Answer:
    """A command's exit code and output."""

    code: int
    out: str
    err: str
