"""One small shared network, one batch and one training step, for tests that need no more."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from zoo import Residual

import npas

INPUTS = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(4)


def shared(budget=0.4, seed=0, generator="wavg", **options):
    """Return a small residual network, shared; the seed also draws what stays unshared."""
    torch.manual_seed(seed)
    return npas.share(Residual(), budget, seed=seed, generator=generator, **options)


class Part(nn.Module):
    """Two linear layers and what stands between."""

    def __init__(self, inner, outer):
        super().__init__()
        self.first, self.last = nn.Linear(inner, 16), nn.Linear(16, outer)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Mlp(nn.Module):
    """Four linear layers in two parts, quick to compile."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Part(12, 16), Part(16, 5)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def mlp(budget=0.7, generator="wavg", **options):
    """Return a smaller shared network, quick to compile."""
    torch.manual_seed(0)
    return npas.share(Mlp(), budget, generator=generator, **options)


def loss(model):
    """Return the loss of one batch."""
    return F.cross_entropy(model(INPUTS), LABELS)


def bank(model):
    """Return the one bank."""
    return model.get_parameter("npas_bank_0")


def gradients(model):
    """Return the gradients of one step of a copy in evaluation mode."""
    model = copy.deepcopy(model).eval()
    model.zero_grad()
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def outputs(model):
    """Return what the network answers to the batch."""
    return model(INPUTS)
