"""nanoGPT's transformer (karpathy/nanoGPT, MIT), optionally looped.

LayerNorms come before attention and MLP; the head is tied to the embedding. With 4 blocks of width
128, 65 tokens and rows of 64 it has 804,096 parameters, positions included.

`loops` repeats the stack of blocks: 1 block with 12 loops is like ALBERT, 3 with 4 loops a looped
transformer. Before each loop, `iteration_embeddings` adds a learned vector, initialized with zero.

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
STD = 0.02  # of initial weights


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a GPT."""

    family: str = "gpt"
    layers: Annotated[int, "[1, 1000]"] = 4  # blocks, each with its own weights
    loops: Annotated[int, "[1, 1000]"] = 1
    iteration_embeddings: bool = False
    heads: Annotated[int, "[1, 1000]"] = 4
    width: Annotated[int, "[1, 100000]"] = 128
    dropout: Annotated[float, "[0, 1)"] = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.divides(self, "width")


class Attention(nn.Module):
    """Causal self-attention: BxLxC -> BxLxC."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.proj = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_BLC: Tensor) -> Tensor:
        q_BHLD, k_BHLD, v_BHLD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BLC).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BHLD, v_BHLD, dropout_p=dropout, is_causal=True
        )
        return self.proj(mixed_BHLD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers, with 4 C channels between them: BxLxC -> BxLxC."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.down = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BLC)))


class Block(nn.Module):
    """A pre-norm transformer block: BxLxC -> BxLxC."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BLC = x_BLC + self.dropout(self.attention(self.attention_norm(x_BLC)))
        return x_BLC + self.dropout(self.mlp(self.mlp_norm(x_BLC)))


class GPT(nn.Module):
    """Predict the next token at each position: BxL int64 -> BxLxV logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        (length,), vocab_size = spec.input_shape, spec.num_classes
        self.loops = config.loops
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Embedding(length, config.width)
        if config.iteration_embeddings:
            self.iterations = nn.Parameter(torch.zeros(config.loops, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("proj.weight", "down.weight")):  # added to the residual stream
                nn.init.normal_(parameter, std=STD / math.sqrt(2 * config.layers * config.loops))
            elif parameter.dim() == 2 and name != "iterations":
                nn.init.normal_(parameter, std=STD)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        position_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        x_BLC = self.dropout(self.tokens(tokens_BL) + self.positions(position_L))
        for loop in range(self.loops):
            if hasattr(self, "iterations"):
                x_BLC = x_BLC + self.iterations[loop]
            for block in self.blocks:
                x_BLC = block(x_BLC)
        return F.linear(self.norm(x_BLC), self.tokens.weight)


build = GPT
