"""Train a shared network with accelerate: accelerate launch examples/train_accelerate.py"""

import argparse

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from train_loop import accuracy, digits, network

import npas


def main(epochs: int = 10) -> float:
    """Train; return the accuracy on the test images."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    train, test = digits()
    model = npas.share(network(), budget=0.1)  # before `prepare`, and before there is an optimizer
    accelerator.print(npas.summary(model))
    optimizer = torch.optim.AdamW(npas.param_groups(model, 0.05), lr=0.003)
    loader = torch.utils.data.DataLoader(train, 64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    trained = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        npas.save(trained, "shared-digits")
    found = accuracy(trained.cpu(), test)
    accelerator.print(f"test accuracy {found:.1f}%")
    return found


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
