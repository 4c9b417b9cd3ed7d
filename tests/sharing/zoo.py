"""Tiny networks that cover the kinds of layers: what every promise is checked on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same."""
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


class Residual(nn.Module):
    """Convolutions of several shapes, norms, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(*[Block(8) for _ in range(3)])
        self.widen = nn.Conv2d(8, 16, 1, bias=False)
        self.stage2 = nn.Sequential(*[Block(16) for _ in range(3)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, 5)."""
        x = self.stage2(self.widen(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Reused(nn.Module):
    """One layer called three times in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.loop = nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 12) to logits (N, 5)."""
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = torch.tanh(self.loop(x))
        return self.last(x)


class Tied(nn.Module):
    """Two layers that hold one parameter, as an embedding and its decoder do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 20, bias=False)
        self.middle = nn.Linear(20, 20)
        self.again = nn.Linear(12, 20)
        self.again.weight = self.encode.weight
        self.last = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 12) to logits (N, 5)."""
        return self.last(torch.tanh(self.middle(torch.tanh(self.encode(x) + self.again(x)))))


class Recurrent(nn.Module):
    """An LSTM, whose forward reads a list of its weights, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 12, num_layers=2, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences (N, T, 6) to logits (N, 5)."""
        x, _ = self.rnn(x)
        x, _ = self.attention(x, x, x)
        return self.last(x.mean(1))


@dataclass(frozen=True)
class Specimen:
    """A network, how its input looks and how the dense one is called in test names."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def make(self, seed: int = 0) -> nn.Module:
        """Build the dense network with weights drawn from `seed`."""
        torch.manual_seed(seed)
        return self.build()

    def batch(self, size: int = 4) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of five classes."""
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(size, *self.input_shape, generator=generator)
        return inputs, torch.arange(size) % 5


ZOO = [
    Specimen("residual", Residual, (3, 6, 6)),
    Specimen("reused", Reused, (12,)),
    Specimen("tied", Tied, (12,)),
    Specimen("recurrent", Recurrent, (7, 6)),
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
    Specimen("layer", lambda: nn.Linear(40, 5), (40,)),  # the root is the only layer
]
