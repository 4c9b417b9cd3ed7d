"""The Perceiver for images (Jaegle et al., ICML 2021, arXiv 2103.03206).

A few hundred latent vectors read all pixels by cross-attention, followed by self-attention, both
`cross_attentions` times. The mean of the latents is classified. A pixel's position is appended as
Fourier features of `bands` frequencies per axis, up to Nyquist's at `resolution` pixels.

The authors share weights across layers: all cross-attentions but the first have the same weights,
and so do all stacks of self-attention. `share: cross_layer` does so by calling the same modules.

    share none: 326,241,856 parameters for 1,000 classes; cross_layer: 44,912,254

Dimensions: B images, P pixels, I channels of a pixel with its position, L latents of C channels, H
heads of D channels, F bands.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks
from npas.utils.checks import Ranged


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a Perceiver."""

    family: str = "perceiver"
    share: Literal["none", "cross_layer"] = "none"
    latents: Annotated[int, "[1, 65536]"] = 512
    channels: Annotated[int, "[1, 65536]"] = 1024  # of a latent
    cross_attentions: Annotated[int, "[1, 1000]"] = 8
    blocks: Annotated[int, "[1, 1000]"] = 6  # of self-attention, after each cross-attention
    heads: int = 8  # of self-attention; cross-attention has one
    bands: Annotated[int, "[1, 4096]"] = 64
    resolution: Annotated[int, "[1, 65536]"] = 224
    dropout: Annotated[float, "[0, 1)"] = 0.0  # after attention and MLP

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.divides(self, "channels")


class Attention(nn.Module):
    """Attention of BxLxC over BxPxI; q, k and v have `inner` channels in `heads` heads."""

    def __init__(self, channels: int, context: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(context, inner)
        self.value = nn.Linear(context, inner)
        self.out = nn.Linear(inner, channels)

    def forward(self, x_BLC: Tensor, context_BPI: Tensor) -> Tensor:
        q_BHLD, k_BHPD, v_BHPD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x_BLC), self.key(context_BPI), self.value(context_BPI))
        )
        mixed_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHPD, v_BHPD)
        return self.out(mixed_BHLD.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention of latents, BxLxC, over the input, BxPxI, or without `inputs` themselves; an MLP.

    The MLP has C hidden channels, as in the paper.
    """

    def __init__(self, config: Config, inputs: int | None = None) -> None:
        super().__init__()
        channels = config.channels
        self.norm = nn.LayerNorm(channels)
        if inputs is None:
            self.attention = Attention(channels, channels, channels, config.heads)
        else:
            self.context_norm = nn.LayerNorm(inputs)
            self.attention = Attention(channels, inputs, inputs, heads=1)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLC: Tensor, input_BPI: Tensor | None = None) -> Tensor:
        own_BLC = self.norm(x_BLC)
        context = own_BLC if input_BPI is None else self.context_norm(input_BPI)
        x_BLC = x_BLC + self.dropout(self.attention(own_BLC, context))
        return x_BLC + self.dropout(self.mlp(self.mlp_norm(x_BLC)))


class Perceiver(nn.Module):
    """Classify images of any size, BxCxHxW -> B x num_classes logits.

    Latents are initialized with a standard deviation of 0.02, weights with 1 / sqrt(fan-in), biases
    with 0. The authors truncate both at two deviations, which is slow and makes little difference.
    """

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        _checks.images(config, spec)
        self.bands, self.resolution = config.bands, config.resolution
        self.passes = config.cross_attentions
        shares = config.share == "cross_layer"
        crosses = min(2, self.passes) if shares else self.passes
        inputs = spec.input_shape[0] + 2 * (2 * config.bands + 1)
        self.latents = nn.Parameter(torch.empty(config.latents, config.channels))
        self.crosses = nn.ModuleList(Layer(config, inputs) for _ in range(crosses))
        self.stacks = nn.ModuleList(
            nn.Sequential(*(Layer(config) for _ in range(config.blocks)))
            for _ in range(1 if shares else self.passes)
        )
        self.classifier = nn.Linear(config.channels, spec.num_classes)
        nn.init.normal_(self.latents, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        input_BPI = self.with_places(x)
        # Not an expanded view, which still requires gradients under no_grad: torch's FLOP counter
        # does not support that.
        x_BLC = self.latents.repeat(len(x), 1, 1)
        for i in range(self.passes):
            x_BLC = self.crosses[min(i, len(self.crosses) - 1)](x_BLC, input_BPI)
            x_BLC = self.stacks[min(i, len(self.stacks) - 1)](x_BLC)
        return self.classifier(x_BLC.mean(dim=1))

    def with_places(self, x: Tensor) -> Tensor:
        """Append each pixel's position to its colours: BxCxHxW -> BxPxI."""
        sizes = x.shape[2:]
        rows_HF, columns_WF = (
            fourier_features(size, self.bands, self.resolution, x.device) for size in sizes
        )
        rows_HWF = rows_HF[:, None].expand(*sizes, -1)
        places_HWF = torch.cat((rows_HWF, columns_WF.expand(*sizes, -1)), dim=-1).to(x.dtype)
        places_BHWF = places_HWF.expand(len(x), -1, -1, -1)
        return torch.cat((x.permute(0, 2, 3, 1), places_BHWF), dim=-1).flatten(1, 2)


def fourier_features(size: int, bands: int, resolution: int, device: torch.device) -> Tensor:
    """Return features of `size` positions from -1 to 1: size x (2F + 1), sines, cosines, position.

    The frequencies are equally spaced, from pi to pi x `resolution` / 2.
    """
    position_S = torch.linspace(-1, 1, size, device=device)
    frequency_F = torch.linspace(1, resolution / 2, bands, device=device)
    angle_SF = math.pi * position_S[:, None] * frequency_F
    return torch.cat((angle_SF.sin(), angle_SF.cos(), position_S[:, None]), dim=1)


build = Perceiver
