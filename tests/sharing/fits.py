"""Networks that are fitted in tests, as if their random weights were trained."""

import copy

import torch
from torch import nn

import npas


class Blocks(nn.Module):
    """Layers of one shape, one of another and a convolution: a bit of everything."""

    def __init__(self, blocks=4, width=12):
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(width, width) for _ in range(blocks)])
        self.wide = nn.Linear(width, 3 * width)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        hidden = self.wide(self.body(x)).view(len(x), 3, 3, -1)
        return self.conv(hidden.expand(-1, -1, 3, -1)).flatten(1)


def drawn(seed=0, make=Blocks):
    torch.manual_seed(seed)
    return make()


def fitted(model, budget, **options):
    state = copy.deepcopy(model.state_dict())
    return npas.share(model, budget, init="fit", **options), state  # type: ignore[arg-type]
