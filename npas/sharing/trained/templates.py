"""Fit templates and coefficients of a given allocation to trained weights (`templates=k`).

Shapes: L layers of N weights each, K templates.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from npas.sharing.layers import SCALES, bank_name
from npas.sharing.runtime.install import shared_weights


@torch.no_grad()
def fill_templates(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fit the values of a network whose groups mix K templates each to trained weights.

    With `wavg` and more layers than templates, coefficients and templates are the truncated SVD of
    the layers' weights. Otherwise coefficients stay, and the templates are fitted by least squares.
    """
    shared, first = shared_weights(model), 0
    scales = model.get_buffer(SCALES).double().cpu()
    for g, group in enumerate(shared.allocation.groups):
        count = len(group.layers)
        if group.bank:
            rows = shared.reading.rows[first]
            scale_L1 = scales[[layer.scale for layer in group.layers]][:, None]
            bank = model.get_parameter(bank_name(g))
            bank_KN = bank.detach().double().cpu().view(rows.templates, -1)
            weight_LN = torch.stack([exact(state[layer.name]) for layer in group.layers])
            if rows.mixing == "wavg" and rows.templates < count:
                alpha_LK, bank_KN = _singular(weight_LN, bank_KN)
                model.get_parameter(rows.names["coefficients"]).copy_(alpha_LK / scale_L1)
            else:
                alpha_LK = rows.coefficients(lambda name: getattr(model, name)).double().cpu()
                alpha_LK = alpha_LK * scale_L1
                bank_KN += torch.linalg.pinv(alpha_LK) @ (weight_LN - alpha_LK @ bank_KN)
            bank.copy_(bank_KN.reshape(-1))
        first += count


def _singular(weight_LN: Tensor, bank_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Return (coefficients L x K, templates K x N) of the truncated SVD of the weights, L x N.

    Coefficients are scaled to rows of about norm one. Templates of singular value zero keep the
    values of `bank_KN`, with coefficients of zero.
    """
    count, k = len(weight_LN), len(bank_KN)
    squares, vectors_LL = torch.linalg.eigh(weight_LN @ weight_LN.T)
    singular_K, vectors_LK = squares.flip(0)[:k].clamp(min=0).sqrt(), vectors_LL.flip(1)[:, :k]
    length = float(squares.clamp(min=0).sum() / count) ** 0.5  # root mean square norm of a weight
    needed_K = singular_K > 1e-6 * singular_K[0]
    alpha_LK = torch.where(needed_K, vectors_LK * singular_K / length, 0.0)
    templates_KN = vectors_LK.T @ weight_LN * (length / singular_K.clamp(min=1e-300))[:, None]
    return alpha_LK, torch.where(needed_K[:, None], templates_KN, bank_KN)


def exact(weight: Tensor) -> Tensor:
    """Return the flat weight in float64 on the CPU."""
    return weight.detach().to("cpu", torch.float64).reshape(-1)
