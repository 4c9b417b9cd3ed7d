"""Small networks of equal blocks that share softly, for the tests of similarity and folding."""

import torch
from torch import nn

import npas
from npas.sharing.layers import generator_names

GRIDS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """Two convs with norms between them, added to the input."""

    def __init__(self, channels, normed):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if normed else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(self.norm(x)))) / 4


class Chain(nn.Module):
    """A stem, six equal blocks and a head; `blocks.N.convM.weight` can share."""

    def __init__(self, normed=True, count=6):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8, normed) for _ in range(count)))
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def chain(templates=3, *, normed=True, **options):
    """Return a chain whose convs are one group that mixes `templates`, its statistics moved."""
    torch.manual_seed(0)
    model = npas.share(
        Chain(normed), templates=templates, groups={"blocks.*.conv*.weight": "blocks"}, **options
    )
    model.train()
    for _ in range(3):
        model(torch.randn(4, 2, 5, 5))
    return model.eval()


@torch.no_grad()
def set_rows(model, rows, group=0):
    """Give the layers of a group these coefficients."""
    (name,) = generator_names(model, group, len(rows[0])).values()
    model.get_parameter(name).copy_(torch.tensor(rows))


def repeated(rows, times):
    """Return the rows again and again."""
    return [list(row) for _ in range(times) for row in rows]
