"""Generators of the coefficients that mix templates into weights (Plummer et al., 3.1.1).

`GENERATORS` make alpha_LK for the L layers of a group that mix K templates; E is EMBEDDING_SIZE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 24
FIXED = "fixed"
"""The name of the generator of coefficients that are not trained, and of its buffers' kind."""
Start = str | Tensor
"""One of `STARTS`, or the initial coefficients alpha_LK."""


class Average:
    """Average the templates, without parameters. Base class of the other generators."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return the parameters' shapes by name for L layers that mix K templates each."""
        return {}

    def count(self, templates: Sequence[int]) -> int:
        """Count the parameters of a group whose layer i mixes `templates[i]` templates."""
        alike = Counter(templates).items()
        return sum(math.prod(shape) for k, n in alike for shape in self.shapes(n, k).values())

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return the initial parameters by name.

        `layers` are the numbers of layers of each size, whose sum is L.
        """
        return {}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return alpha_LK, differentiable in the parameters."""
        return torch.full((layers, templates), 1 / templates, device="cpu")


class WeightedAverage(Average):
    """Mix by free coefficients, K per layer."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return L x K."""
        return {"coefficients": (layers, templates)}

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return alpha_LK as `start_rows` draws them."""
        return {"coefficients": start_rows(start, layers, templates, rng)}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return the parameter itself."""
        return parameters["coefficients"]


class Fixed(WeightedAverage):
    """Mix by the initial coefficients, which are a buffer and stay fixed."""

    def count(self, templates: Sequence[int]) -> int:
        """Return 0."""
        return 0

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return L x K, the shape of a buffer."""
        return {FIXED: (layers, templates)}

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return alpha_LK as `start_rows` draws them."""
        return {FIXED: start_rows(start, layers, templates, rng)}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return the buffer itself."""
        return parameters[FIXED]


class Embedding(Average):
    """Mix by an affine map of a layer embedding: alpha = phi W + b, one map per group and K."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return L x 24, 24 x K and K."""
        affine = (EMBEDDING_SIZE, templates)
        return {"embeddings": (layers, EMBEDDING_SIZE), "affine": affine, "shift": (templates,)}

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return phi_LE, affine_EK and shift_K so that alpha starts as with `wavg`."""
        alpha_LK = start_rows(start, layers, templates, rng)
        if templates <= EMBEDDING_SIZE:
            affine_EK = orthogonal_rows(templates, EMBEDDING_SIZE, rng).T
            embeddings_LE = alpha_LK @ affine_EK.T
        else:
            affine_EK = orthogonal_rows(EMBEDDING_SIZE, templates, rng)
            embeddings_LE = orthogonal_rows(len(alpha_LK), EMBEDDING_SIZE, rng)
        return {
            "embeddings": embeddings_LE.contiguous(),
            "affine": affine_EK.contiguous(),
            "shift": torch.zeros(templates),
        }

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return phi W + b."""
        return torch.addmm(parameters["shift"], parameters["embeddings"], parameters["affine"])


class Alike(Average):
    """Start with equal coefficients for all layers, for a search that learns their differences.

    A short search moves orthogonal rows little, so k-means would only find the initial draw again.
    With `softmax` the parameters are logits of the coefficients, as in the released search.
    """

    def __init__(self, generator: Average, softmax: bool = False) -> None:
        self.generator = generator
        self.softmax = softmax

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the wrapped generator."""
        return self.generator.shapes(layers, templates)

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return the generator's parameters, with equal coefficients 1 / sqrt(K)."""
        drawn = self.generator.parameters(layers, templates, rng)
        alpha_K = torch.full((templates,), 1 / math.sqrt(templates))
        if "embeddings" in drawn:
            drawn["embeddings"] = (drawn["affine"] @ alpha_K).repeat(sum(layers), 1)
        else:
            drawn["coefficients"] = alpha_K.repeat(sum(layers), 1)
        return drawn

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return the generator's coefficients, or their softmax over the templates."""
        alpha_LK = self.generator.coefficients(parameters, layers, templates)
        return alpha_LK.softmax(1) if self.softmax else alpha_LK


STRUCTURED = ("channels", "basis", "factorized", "hash")
"""Generators without coefficients per layer; `bases` and `hashing` make their weights."""
CHOICES = ("avg", "wavg", "emb", *STRUCTURED)
"""The generators that users choose from; the others are internal."""
ROWS = ("coefficients", "embeddings", FIXED)
"""The kinds of parameters and buffers that have a row per layer."""

GENERATORS: dict[str, Average] = {
    "avg": Average(),
    "wavg": WeightedAverage(),
    "emb": Embedding(),
    FIXED: Fixed(),
    "search_wavg": Alike(WeightedAverage()),
    "search_emb": Alike(Embedding()),
    "softmax_wavg": Alike(WeightedAverage(), softmax=True),
    "softmax_emb": Alike(Embedding(), softmax=True),
}


def orthogonal_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Draw rows of unit norm, orthogonal within every block of `columns` consecutive rows.

    With more layers than templates, the rows of one orthogonal matrix would have norms of about
    sqrt(K / L). Stacked square blocks preserve each layer's variance.
    """
    blocks = []
    for _ in range(math.ceil(rows / columns)):
        gaussian = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
        orthogonal, triangular = torch.linalg.qr(gaussian)
        blocks.append(orthogonal * triangular.diagonal().sign())
    return torch.cat(blocks)[:rows].float()


def sparse_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Return one-hot rows: layer i starts with template i modulo `columns`.

    They are orthogonal within every block of `columns` rows. Nothing is drawn.
    """
    return torch.eye(columns)[torch.arange(rows) % columns]


def released_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Draw one orthogonal matrix; with more rows than columns, rows have norms below one.

    As the code of Savarese & Maire (2019) and of Plummer et al. (2022) does.
    """
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=rng)


STARTS = {"orthogonal": orthogonal_rows, "sparse": sparse_rows, "released": released_rows}
"""Initializations. Savarese & Maire (2019) describe the first two; their code does the last."""
LEAST = 0.01
OF_DEPTH = ("legendre", "cosine")
"""Initializations that are functions of a layer's depth among those of its group and shape."""


def at_depths(start: str, depths: Sequence[float], templates: int) -> Tensor:
    """Return alpha_LK of layers at depths t from -1 to 1, with rows of unit norm.

    The coefficient of template k, from 0 on, is the Legendre polynomial P_k(t) or
    cos(k pi (t + 1) / 2). Unit norm preserves variance. Small coefficients are set to LEAST, since
    values that are read by a coefficient of 0 alone could not train.
    """
    depth_L = torch.tensor(depths, dtype=torch.float64)
    if start == "cosine":
        order_K = torch.arange(templates, dtype=torch.float64)
        alpha_LK = torch.cos(order_K * ((depth_L[:, None] + 1) * math.pi / 2))
    else:
        columns = [torch.ones_like(depth_L), depth_L]
        for k in range(1, templates - 1):  # (k + 1) P_k+1 = (2 k + 1) t P_k - k P_k-1
            columns.append(((2 * k + 1) * depth_L * columns[k] - k * columns[k - 1]) / (k + 1))
        alpha_LK = torch.stack(columns[:templates], dim=1)
    alpha_LK = alpha_LK.where(alpha_LK.abs() > LEAST, LEAST)
    return nn.functional.normalize(alpha_LK, dim=1).float()


def start_rows(start: Start, layers: Sequence[int], templates: int, rng: torch.Generator) -> Tensor:
    """Return the initial alpha_LK; `layers` are the numbers of layers of each size.

    `orthogonal` and `sparse` rows have unit norm and are orthogonal within every K layers of one
    size. `released` rows are drawn for all sizes at once.
    """
    if isinstance(start, Tensor):
        return start
    if start == "released":
        return released_rows(sum(layers), templates, rng)
    return torch.cat([STARTS[start](n, templates, rng) for n in layers])
