"""Train a shared network with Lightning Fabric: python examples/train_fabric.py

pip install lightning-fabric
"""

import argparse

import torch
from lightning_fabric import Fabric
from torch.nn import functional as F
from train_loop import accuracy, digits, network

import npas


def main(epochs: int = 10, accelerator: str = "auto") -> float:
    """Train; return the accuracy on the test images."""
    fabric = Fabric(accelerator=accelerator, devices=1)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    train, test = digits()
    model = npas.share(network(), budget=0.1)  # before `setup`, and before there is an optimizer
    fabric.print(npas.summary(model))
    optimizer = torch.optim.AdamW(npas.param_groups(model, 0.05), lr=0.003)
    wrapped, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(train, 64, shuffle=True))
    for _ in range(epochs):
        wrapped.train()
        for x, y in loader:
            loss = F.cross_entropy(wrapped(x), y)
            fabric.backward(loss)
            fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
    if fabric.global_rank == 0:
        npas.save(model, "shared-digits")  # the network itself: Fabric's wrapper only calls it
    found = accuracy(model.cpu(), test)
    fabric.print(f"test accuracy {found:.1f}%")
    return found


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
