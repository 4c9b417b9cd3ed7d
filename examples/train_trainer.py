"""Train a shared network with the Trainer of transformers: python examples/train_trainer.py

Any network will do whose outputs hold a loss, those of transformers first. `npas.BudgetCallback`
prints the allocation at the start and refuses a network over its budget. The Trainer's own
optimizer would decay coefficients and spare banks: give it `npas.param_groups`.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_loop import digits, network
from transformers import Trainer, TrainingArguments

import npas


class WithLoss(nn.Module):
    """Give the Trainer the loss that it trains by, as transformers' networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def main(folder: str = "trainer-digits", epochs: int = 10, **arguments: object) -> float:
    """Train; return the accuracy on the test images."""
    torch.manual_seed(0)
    train, test = ([{"x": x, "labels": y} for x, y in part] for part in digits())
    model = npas.share(WithLoss(), budget=0.1)
    how = {"num_train_epochs": epochs, "per_device_train_batch_size": 64, "report_to": []}
    trainer = Trainer(
        model,
        TrainingArguments(folder, **how | arguments),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=lambda p: {"accuracy": 100 * (p[0].argmax(1) == p[1]).mean()},
        optimizers=(torch.optim.AdamW(npas.param_groups(model, 0.05), lr=0.003), None),
        callbacks=[npas.BudgetCallback()],
    )
    trainer.train()
    npas.save(model, "shared-digits")  # npas.load("shared-digits", WithLoss()) reads it
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"test accuracy {main():.1f}%")
