"""Low-rank corrections of a fit by a codebook: the nearest ones to its errors.

So does LoftQ (Li et al., ICLR 2024) for quantized weights. With batches, they are the nearest ones
for the network's outputs, to first order (`activations.Root`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npas.sharing.generators.low_rank import factor_names
from npas.sharing.layers import Layer
from npas.sharing.trained.activations import Root
from npas.sharing.trained.codebooks import generated_errors
from npas.sharing.trained.stacks import Placed, norm
from npas.utils.progress import track

ITERATIONS = 8


def corrections(
    layers: Sequence[Layer], placed: Placed, roots: Mapping[str, Root]
) -> dict[str, Tensor]:
    """Return B and A of each layer that has a rank in a codebook's plan, by their names."""
    planned = enumerate(plan for group in placed[0] for plan in group.layers)
    places = {plan.name: (i, plan.rank) for i, plan in planned}
    wrong = track(generated_errors(layers, *placed), "correcting the codebook", len(layers))
    found: dict[str, Tensor] = {}
    for layer, wrong_RN in zip(layers, wrong, strict=True):
        index, rank = places[layer.spec.name]
        if rank:
            factors = nearest(wrong_RN * norm(layer), rank, roots.get(layer.spec.name))
            found |= dict(zip(factor_names(index), factors, strict=True))
    return found


def nearest(weight_RN: Tensor, rank: int, root: Root | None = None) -> tuple[Tensor, Tensor]:
    """Return B and A whose product is near a matrix's best approximation of this rank.

    A has orthonormal rows, so that |A x| is at most |x|, and B is the best one for it. By subspace
    iteration (Halko et al., SIAM Review 53, 2011, algorithm 4.4) on the weighed matrix.
    """
    weighed_RN = weight_RN if root is None else root.weigh(weight_RN)
    start = torch.Generator().manual_seed(0)
    basis_Nr = torch.randn(weight_RN.shape[1], rank, generator=start, dtype=weight_RN.dtype)
    for _ in range(ITERATIONS):
        basis_Nr = torch.linalg.qr(weighed_RN.T @ (weighed_RN @ basis_Nr)).Q
    left_Rr, right_rN = weighed_RN @ basis_Nr, basis_Nr.T
    if root is not None:
        left_Rr, right_rN = root.undo(left_Rr, right_rN)
        basis_Nr, upper_rr = torch.linalg.qr(right_rN.T)
        left_Rr, right_rN = left_Rr @ upper_rr.T, basis_Nr.T
    return left_Rr, right_rN.contiguous()
