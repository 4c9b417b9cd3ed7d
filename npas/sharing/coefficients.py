"""Make the coefficients that mix a layer's templates into its weight (Plummer et al., 3.1.1).

L layers of one group mix K templates each; E is the size of their embeddings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 24
FIXED = "fixed"
"""The generator of coefficients that do not train, and the kind of its buffers."""
Start = str | Tensor
"""One of `STARTS`, or the rows themselves."""


class Average:
    """Mix by the plain mean: no parameters. The base of the other generators."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, by name, of layers that mix `templates` each."""
        return {}

    def count(self, templates: Sequence[int]) -> int:
        """Count the parameters for the layers of a group that mix `templates[i]` templates."""
        alike = Counter(templates).items()
        return sum(math.prod(shape) for k, n in alike for shape in self.shapes(n, k).values())

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return the initial parameters, by name, of layers that are counted size by size.

        `start` is one of `STARTS`.
        """
        return {}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return alpha_LK, differentiable in the parameters."""
        return torch.full((layers, templates), 1 / templates, device="cpu")


class WeightedAverage(Average):
    """Mix by free coefficients alpha, K numbers a layer."""

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
    """Mix by the coefficients that layers start with: they stay, and are no parameters."""

    def count(self, templates: Sequence[int]) -> int:
        """Return 0."""
        return 0

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return L x K, of a buffer."""
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
        """Return phi_LE, affine_EK and shift_K such that alpha starts as `wavg`'s."""
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
    """Equal coefficients for all layers at the start of a search: differences are then learned.

    Orthogonal rows lie far apart from the start, and a short search moves them little, so that
    k-means would find the initial draw again.
    With `softmax` the coefficients are the logits of those that mix, as in the released search.
    """

    def __init__(self, generator: Average, softmax: bool = False) -> None:
        self.generator = generator
        self.softmax = softmax

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return the generator's own shapes."""
        return self.generator.shapes(layers, templates)

    def parameters(
        self,
        layers: Sequence[int],
        templates: int,
        rng: torch.Generator,
        start: Start = "orthogonal",
    ) -> dict[str, Tensor]:
        """Return the generator's parameters, such that every layer weighs all templates alike."""
        drawn = self.generator.parameters(layers, templates, rng)
        alpha_K = torch.full((templates,), 1 / math.sqrt(templates))
        if "embeddings" in drawn:
            drawn["embeddings"] = (drawn["affine"] @ alpha_K).repeat(sum(layers), 1)
        else:
            drawn["coefficients"] = alpha_K.repeat(sum(layers), 1)
        return drawn

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return the generator's own, or their softmax: rows that sum to one, of a smaller norm."""
        alpha_LK = self.generator.coefficients(parameters, layers, templates)
        return alpha_LK.softmax(1) if self.softmax else alpha_LK


STRUCTURED = ("channels", "basis", "factorized", "hash")
"""Generators without coefficients a layer: `bases` and `hashing` make their weights."""
CHOICES = ("avg", "wavg", "emb", *STRUCTURED)
"""The generators to choose from; `fixed` is wavg without training, the others are the search's."""
ROWS = ("coefficients", "embeddings", FIXED)
"""The parameters, and the buffer, that have a row for each layer."""

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

    Where more layers than templates share, one orthogonal matrix would have orthonormal columns
    and rows that shrink by sqrt(K / L); stacked square blocks keep each layer's variance.
    """
    blocks = []
    for _ in range(math.ceil(rows / columns)):
        gaussian = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
        orthogonal, triangular = torch.linalg.qr(gaussian)
        blocks.append(orthogonal * triangular.diagonal().sign())
    return torch.cat(blocks)[:rows].float()


def sparse_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Return rows of a single one: layer i starts with template i modulo `columns`, and no other.

    Like the others orthogonal within every block of `columns` rows; nothing is drawn.
    """
    return torch.eye(columns)[torch.arange(rows) % columns]


def released_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Draw one orthogonal matrix: of more rows than columns the rows are shorter than one.

    So do the codes of Savarese & Maire (2019) and of Plummer et al. (2022).
    """
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=rng)


STARTS = {"orthogonal": orthogonal_rows, "sparse": sparse_rows, "released": released_rows}
"""How coefficients start. Savarese & Maire (2019) name the first two; their code does the last."""
LEAST = 0.01
OF_DEPTH = ("legendre", "cosine")
"""Starts that follow from where a layer stands among its likes; nothing is drawn."""


def at_depths(start: str, depths: Sequence[float], templates: int) -> Tensor:
    """Return alpha_LK of layers at depths t from -1 to 1: functions of depth, rows of unit norm.

    The k-th template, k from 0 on, weighs the Legendre polynomial P_k(t), or cos(k pi (t + 1) / 2).
    Unit norm keeps the variance of what a row mixes. None is 0: a value that it alone would read
    could not train.
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
    """Return alpha_LK for layers that are counted size by size.

    `orthogonal` and `sparse` rows have unit norm and are orthogonal within every K layers of one
    size; `released` ones are drawn for all sizes at once.
    """
    if isinstance(start, Tensor):
        return start
    if start == "released":
        return released_rows(sum(layers), templates, rng)
    return torch.cat([STARTS[start](n, templates, rng) for n in layers])
