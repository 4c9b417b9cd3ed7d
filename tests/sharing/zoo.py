"""Tiny networks that cover the kinds of layers: what every promise is checked on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


class Residual(nn.Module):
    """Convolutions of several shapes, norms, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(*[Block(8) for _ in range(3)])
        self.widen = nn.Conv2d(8, 16, 1, bias=False)
        self.stage2 = nn.Sequential(*[Block(16) for _ in range(3)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stage2(self.widen(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Reused(nn.Module):
    """One layer called three times in one forward pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.loop = nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = torch.tanh(self.loop(x))
        return self.last(x)


class Tied(nn.Module):
    """Two layers that hold one parameter, as an embedding and its decoder do."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(12, 20, bias=False)
        self.middle = nn.Linear(20, 20)
        self.again = nn.Linear(12, 20)
        self.again.weight = self.encode.weight
        self.last = nn.Linear(20, 5)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.encode(x) + self.again(x)))))


class Pooled(nn.Module):
    """A body on sequences (N, T, C), averaged over them, and a classifier."""

    def __init__(self, body, width):
        super().__init__()
        self.body = body
        self.last = nn.Linear(width, 5)

    def forward(self, x):
        x = self.body(x)
        if isinstance(x, tuple):  # a recurrent layer also returns its state
            x = x[0]
        return self.last(x.mean(1))


class Recurrences(nn.Module):
    """A bidirectional GRU, an LSTM with a projection, and a cell that is called at every step."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 8, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(16, 8, proj_size=6, batch_first=True)
        self.cell = nn.RNNCell(6, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x, _ = self.gru(x)
        x, _ = self.lstm(x)
        state = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.last(state)


class CrossAttention(nn.Module):
    """Attention whose queries, keys and values differ in width: three weights, not one."""

    def __init__(self):
        super().__init__()
        self.values = nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(
            6, 2, kdim=8, vdim=10, batch_first=True, add_bias_kv=True
        )
        self.keys = nn.Linear(6, 8)

    def forward(self, x):
        return self.attention(x, self.keys(x), self.values(x))[0]


class Words(nn.Module):
    """Embeddings with a padding row, a bag of words, and a decoder tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 12, padding_idx=0)
        self.bag = nn.EmbeddingBag(8, 12, padding_idx=0)
        self.middle = nn.Linear(12, 12)
        self.decode = nn.Linear(12, 8)
        self.decode.weight = self.embed.weight

    def forward(self, x):
        words = ((x > 0) * torch.tensor([1, 2, 4])).sum(-1)
        return self.decode(torch.tanh(self.middle(self.embed(words).sum(1) + self.bag(words))))


class Conv1D(nn.Module):
    """A linear layer whose weight lies transposed, as in GPT-2."""

    def __init__(self, out, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out) * 0.2)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Bare(nn.Module):
    """Parameters without a layer: tables, tokens, lists and dictionaries of matrices."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 6))  # constant, so that it stays as it is
        self.position = nn.Parameter(torch.randn(1, 8, 6) * 0.3)
        self.relative = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.layers = nn.ParameterList([torch.randn(6, 6) * 0.4 for _ in range(2)])
        self.ends = nn.ParameterDict({"first": torch.randn(6, 9) * 0.4})
        self.mix = Conv1D(9, 9)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), 1, 6), x], dim=1) + self.position
        for layer in self.layers:
            x = torch.tanh(self.relative @ x @ layer)
        return self.mix(x @ self.ends["first"])


@dataclass(frozen=True)
class Specimen:
    """A network, how its input looks and how the dense one is called in test names.

    `reached` is the part of the banks that one batch gives a gradient at least.
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    reached: float = 0.99

    def make(self, seed=0):
        """Build the dense network with weights drawn from `seed`."""
        torch.manual_seed(seed)
        return self.build()

    def batch(self, size=4):
        """Return inputs and labels of five classes."""
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(size, *self.input_shape, generator=generator)
        return inputs, torch.arange(size) % 5


ZOO = [
    Specimen("residual", Residual, (3, 6, 6)),
    Specimen("reused", Reused, (12,)),
    Specimen("tied", Tied, (12,)),
    Specimen(
        "sequential",  # the root itself is a container that calls its children in order
        lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 5)),
        (12,),
    ),
    Specimen(
        "depthwise",
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.ConvTranspose2d(12, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        (3, 6, 6),
    ),
    Specimen(
        "volumes",
        lambda: nn.Sequential(
            nn.Conv3d(1, 6, 3, padding=1),
            nn.ConvTranspose3d(6, 4, 2, groups=2),
            nn.Flatten(2),
            nn.Conv1d(4, 8, 3),
            nn.ConvTranspose1d(8, 6, 3, stride=2),
            nn.Conv1d(6, 6, 3, groups=3),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        ),
        (1, 4, 4, 4),
    ),
    Specimen("recurrences", Recurrences, (7, 6)),
    Specimen(
        "encoder",  # which reads its layers' weights without calling them, in evaluation mode
        lambda: Pooled(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
            ),
            8,
        ),
        (7, 8),
    ),
    Specimen("attention", lambda: Pooled(CrossAttention(), 6), (7, 6)),
    Specimen("words", Words, (9, 3), reached=0.85),  # padding gives no gradient
    Specimen("bare", lambda: Pooled(Bare(), 9), (7, 6)),
    Specimen(
        "parametrized",
        lambda: nn.Sequential(
            weight_norm(nn.Linear(12, 16)),
            nn.Tanh(),
            weight_norm(nn.Linear(16, 16)),
            nn.Linear(16, 5),
        ),
        (12,),
    ),
    Specimen("layer", lambda: nn.Linear(40, 5), (40,)),  # the root is the only layer
]
