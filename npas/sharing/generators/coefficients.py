"""Generators of the coefficients that mix templates into weights (Plummer et al., 3.1.1).

`GENERATORS` make alpha_LK for the L layers of a group that mix K templates; E is EMBEDDING_SIZE.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 24
FIXED = "fixed"
"""The name of the generator of coefficients that are not trained, and of its buffers' kind."""


class Average:
    """Average the templates, without parameters. Base class of the other generators."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        """Return the parameters' shapes by name for L layers that mix K templates each."""
        return {}

    def count(self, templates: Sequence[int]) -> int:
        """Count the parameters of a group whose layer i mixes `templates[i]` templates."""
        alike = Counter(templates).items()
        return sum(math.prod(shape) for k, n in alike for shape in self.shapes(n, k).values())

    def initial(self, alpha_LK: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the initial parameters by name that make these coefficients."""
        return {}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        """Return alpha_LK, differentiable in the parameters."""
        return torch.full((layers, templates), 1 / templates, device="cpu", dtype=torch.float32)


class WeightedAverage(Average):
    """Mix by free coefficients, K per layer; of kind FIXED they are a buffer, which stays."""

    def __init__(self, kind: str = "coefficients") -> None:
        self.kind = kind

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        return {self.kind: (layers, templates)}

    def count(self, templates: Sequence[int]) -> int:
        return 0 if self.kind == FIXED else super().count(templates)

    def initial(self, alpha_LK: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {self.kind: alpha_LK}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        return parameters[self.kind]


class Embedding(Average):
    """Mix by an affine map of a layer embedding: alpha = phi W + b, one map per group and K."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        affine = (EMBEDDING_SIZE, templates)
        return {"embeddings": (layers, EMBEDDING_SIZE), "affine": affine, "shift": (templates,)}

    def initial(self, alpha_LK: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        layers, templates = alpha_LK.shape
        if templates <= EMBEDDING_SIZE:
            affine_EK = orthogonal_rows(templates, EMBEDDING_SIZE, rng).T
            embeddings_LE = alpha_LK @ affine_EK.T
        else:
            affine_EK = orthogonal_rows(EMBEDDING_SIZE, templates, rng)
            embeddings_LE = orthogonal_rows(layers, EMBEDDING_SIZE, rng)
        return {
            "embeddings": embeddings_LE.contiguous(),
            "affine": affine_EK.contiguous(),
            "shift": torch.zeros(templates),
        }

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        return torch.addmm(parameters["shift"], parameters["embeddings"], parameters["affine"])


class MLP(Embedding):
    """Mix by an MLP of a layer embedding: alpha = tanh(phi U + c) W + b."""

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        inner = {"inner": (EMBEDDING_SIZE, EMBEDDING_SIZE), "offset": (EMBEDDING_SIZE,)}
        return inner | super().shapes(layers, templates)

    def initial(self, alpha_LK: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        drawn = super().initial(alpha_LK, rng)
        inner_EE = orthogonal_rows(EMBEDDING_SIZE, EMBEDDING_SIZE, rng)
        hidden_LE = (drawn["embeddings"] / 2).atanh()  # within (-1, 1): rows have norm one
        return drawn | {
            "embeddings": hidden_LE @ inner_EE.T,
            "inner": inner_EE,
            "offset": torch.zeros(EMBEDDING_SIZE),
            "affine": drawn["affine"] * 2,
        }

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        inner = parameters["offset"], parameters["embeddings"], parameters["inner"]
        return torch.addmm(parameters["shift"], torch.addmm(*inner).tanh(), parameters["affine"])


class Alike(Average):
    """Start with equal coefficients for all layers, for a search that learns their differences.

    A short search moves orthogonal rows little, so k-means would only find the initial draw again.
    With `softmax` the parameters are logits of the coefficients, as in the released search.
    """

    def __init__(self, generator: Average, softmax: bool = False) -> None:
        self.generator, self.softmax = generator, softmax

    def shapes(self, layers: int, templates: int) -> dict[str, tuple[int, ...]]:
        return self.generator.shapes(layers, templates)

    def initial(self, alpha_LK: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the generator's parameters, with equal coefficients 1 / sqrt(K)."""
        drawn, (layers, templates) = self.generator.initial(alpha_LK, rng), alpha_LK.shape
        alpha_K = torch.full((templates,), 1 / math.sqrt(templates))
        if "embeddings" in drawn:
            return drawn | {"embeddings": (drawn["affine"] @ alpha_K).repeat(layers, 1)}
        return drawn | {"coefficients": alpha_K.repeat(layers, 1)}

    def coefficients(self, parameters: Mapping[str, Tensor], layers: int, templates: int) -> Tensor:
        alpha_LK = self.generator.coefficients(parameters, layers, templates)
        return alpha_LK.softmax(1) if self.softmax else alpha_LK


STRUCTURED = ("channels", "tiles", "basis", "factorized", "hash")
"""Generators without coefficients per layer; `bases` and `hashing` make their weights."""
CHOICES = ("avg", "wavg", "emb", "mlp", *STRUCTURED)
"""The generators that users choose from; the others are internal."""
ROWS = ("coefficients", "embeddings", FIXED)
"""The kinds of parameters and buffers that have a row per layer."""

GENERATORS: dict[str, Average] = {
    "avg": Average(),
    "wavg": WeightedAverage(),
    "emb": Embedding(),
    "mlp": MLP(),
    FIXED: WeightedAverage(FIXED),
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
    """Draw one orthogonal matrix, as both papers' code does; more rows than columns are shorter."""
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


def start_rows(start: str, layers: Sequence[int], templates: int, rng: torch.Generator) -> Tensor:
    """Return the initial alpha_LK; `layers` are the numbers of layers of each size.

    `orthogonal` and `sparse` rows have unit norm and are orthogonal within every K layers of one
    size. `released` rows are drawn for all sizes at once.
    """
    if start == "released":
        return released_rows(sum(layers), templates, rng)
    return torch.cat([STARTS[start](n, templates, rng) for n in layers])
