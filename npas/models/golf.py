"""The baseline transformer of the Parameter Golf contest (openai/parameter-golf, MIT).

Nine blocks of width 512, with U-net skips from the first four to blocks 4 to 7 in reverse order;
RMS norms without weights, rotary positions, grouped queries, squared ReLU, tied embeddings, logits
capped by tanh. 17,059,912 parameters at 1,024 tokens. The projections of attention and MLP are
initialized with zero. Such weights cannot be shared, since generated weights would be zero too; so
a shared network sets `zero_projections=false`, which initializes them as in GPT-2.

Dimensions: B rows, L tokens, C channels, H heads of D channels, V tokens of the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks
from npas.utils.checks import Ranged

OUTPUTS = ("token",)
ROPE_BASE = 10_000.0
TOKEN_STD = 0.005


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of the contest's baseline."""

    family: str = "golf"
    layers: Annotated[int, "[1, 1000]"] = 9
    heads: Annotated[int, "[1, 1000]"] = 8
    kv_heads: int = 4
    width: Annotated[int, "[1, 100000]"] = 512
    mlp: Annotated[int, "[1, 100]"] = 2  # expansion factor of the MLP
    logit_cap: Annotated[float, "(0, inf)"] = 30.0
    zero_projections: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.divides(self, "heads", by="kv_heads")
        if self.width % (2 * self.heads):
            raise ValueError(f"model.width={self.width} is not divisible by 2 x {self.heads} heads")


class Attention(nn.Module):
    """Grouped-query attention with normalized, rotated queries and keys: BxLxC -> BxLxC."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner = config.width, config.width // config.heads * config.kv_heads
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.q_gain = nn.Parameter(torch.full((config.heads,), 1.5))

    def forward(self, x_BLC: Tensor) -> Tensor:
        pairs = (self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads)
        q_BHLD, k_BHLD, v_BHLD = (
            layer(x_BLC).unflatten(-1, (heads, -1)).transpose(1, 2) for layer, heads in pairs
        )
        q_BHLD, k_BHLD = (rotate(_norm(part)) for part in (q_BHLD, k_BHLD))
        q_BHLD = q_BHLD * self.q_gain.to(q_BHLD.dtype)[:, None, None]
        mixed_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BHLD, v_BHLD.to(q_BHLD.dtype), is_causal=True, enable_gqa=True
        )
        return self.proj(mixed_BHLD.transpose(1, 2).flatten(2))


def rotate(x_BHLD: Tensor) -> Tensor:
    """Rotate the two halves of each head's channels by position (Su et al. 2021)."""
    length, half = x_BHLD.shape[2], x_BHLD.shape[3] // 2
    frequency_F = ROPE_BASE ** (-torch.arange(half, device=x_BHLD.device) / half)
    angle_LF = torch.arange(length, device=x_BHLD.device)[:, None] * frequency_F
    cos_LF, sin_LF = angle_LF.cos().to(x_BHLD.dtype), angle_LF.sin().to(x_BHLD.dtype)
    first, second = x_BHLD.chunk(2, dim=-1)
    return torch.cat((first * cos_LF + second * sin_LF, second * cos_LF - first * sin_LF), dim=-1)


class MLP(nn.Module):
    """Two linear layers with a squared ReLU between them: BxLxC -> BxLxC."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp * config.width, bias=False)
        self.down = nn.Linear(config.mlp * config.width, config.width, bias=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_BLC)).square())


class Block(nn.Module):
    """Mix in the network's input, then add attention and an MLP, each scaled per channel."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ones_C = torch.ones(config.width)
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.attention_scale = nn.Parameter(ones_C.clone())
        self.mlp_scale = nn.Parameter(ones_C.clone())
        self.mix = nn.Parameter(torch.stack((ones_C, torch.zeros_like(ones_C))))

    def forward(self, x_BLC: Tensor, input_BLC: Tensor) -> Tensor:
        mix_2C = self.mix.to(x_BLC.dtype)
        x_BLC = mix_2C[0] * x_BLC + mix_2C[1] * input_BLC
        x_BLC = x_BLC + self.attention_scale.to(x_BLC.dtype) * self.attention(_norm(x_BLC))
        return x_BLC + self.mlp_scale.to(x_BLC.dtype) * self.mlp(_norm(x_BLC))


def _norm(x_BLC: Tensor) -> Tensor:
    return F.rms_norm(x_BLC, (x_BLC.shape[-1],))


class Golf(nn.Module):
    """Predict the next token at each position: BxL int64 -> BxLxV logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        self.cap = config.logit_cap
        self.tokens = nn.Embedding(spec.num_classes, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.skips = nn.Parameter(torch.ones(config.layers // 2, config.width))
        nn.init.normal_(self.tokens.weight, std=TOKEN_STD)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                if config.zero_projections:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        input_BLC = x_BLC = _norm(self.tokens(tokens_BL))
        kept: list[Tensor] = []
        half = len(self.skips)
        for i, block in enumerate(self.blocks):
            if i >= half and kept:
                x_BLC = x_BLC + self.skips[i - half].to(x_BLC.dtype) * kept.pop()
            x_BLC = block(x_BLC, input_BLC)
            if i < half:
                kept.append(x_BLC)
        logits_BLV = F.linear(_norm(x_BLC), self.tokens.weight)
        return self.cap * torch.tanh(logits_BLV / self.cap)


build = Golf
