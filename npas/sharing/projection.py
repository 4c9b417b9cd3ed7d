"""Project dense weights into the banks of a shared network, by least squares.

Of all weights that the network's banks and coefficients can generate, find those nearest to the
given ones: minimise sum_i |W_i - generated_i|^2 over each group. A generated weight is linear in
the bank, and in its layer's coefficients, so the two take turns: the bank by conjugate gradients on
the normal equations, the coefficients of `wavg` by a system of K equations a layer. Those of the
other generators, and what upsamplers have learned, stay as they are.

Where all layers of a group read the same templates, side by side, this finds the best there is, the
singular vectors. Elsewhere the weights it ends in have none nearer beside them, perhaps elsewhere.

Everything is computed in float64. What is held at once is a few vectors of the bank's size and a
few layers' weights, however many layers there are.

Shapes: L layers, K templates, N values a template, P values a bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npas.sharing.allocation import LayerAllocation
from npas.sharing.audit import follow, refuse_unloadable, shared_layers
from npas.sharing.bank import full_precision
from npas.sharing.install import is_shared, shared_weights
from npas.sharing.layers import PREFIX, SCALES, bank_name, upsampler_name
from npas.sharing.low_rank import factor_names
from npas.sharing.pruning import MASK
from npas.sharing.reading import Reading
from npas.sharing.shaping import shaped
from npas.utils.progress import track

SOLVED = 1e-12
"""Residual of the normal equations, against the right-hand side, that ends a bank's turn."""
SETTLED = 1e-5
"""Part of the squared error that a round must win for there to be another."""
AT_ONCE = 1 << 24
"""Values of layers that go through one matrix product."""
EXACT = 1e-13
"""Squared error, against the weights', that is none."""
FITTED = "wavg"


@dataclass(frozen=True)
class Projection:
    """How near generated weights came, and what became of the other tensors.

    `errors` are |W - generated| / |W| of each projected layer, `error` the same of all together.
    `copied` names what was taken over as it is, `fresh` what the given weights do not have.
    """

    errors: dict[str, float]
    error: float
    copied: list[str]
    fresh: list[str]


@torch.no_grad()
def project(
    model: nn.Module, dense_state: Mapping[str, Tensor], *, rounds: int = 20, steps: int = 10
) -> Projection:
    """Give a shared network the weights nearest to `dense_state`'s, in place.

    `rounds` is how often, at most, bank and coefficients take turns, `steps` how many conjugate
    gradient steps a turn has. Tensors that are not shared are copied where name and shape agree.

    Raises ValueError, before anything changes, for a network that is not shared or cannot be stored
    as it is now (see `npas.save`), and where a shared layer's weight is missing, has another shape
    or is not finite.
    """
    shared = follow(shared_weights(model))
    refuse_unloadable(shared, "npas.sharing.project")
    reading = Reading(shared.allocation)
    names = shared_layers(shared)
    targets = {
        i: _target(dense_state, names[i], layer)
        for i, (_, layer) in enumerate(reading.places)
        if layer.templates
    }
    for i, (_, layer) in enumerate(reading.places):
        if layer.rank:  # what is projected is what the bank generates
            model.get_parameter(factor_names(i)[0]).zero_()
    wrong: dict[int, float] = {}
    squares: dict[int, float] = {}
    with torch.inference_mode(False), torch.no_grad(), full_precision(torch.device("cpu")):
        for g, group in enumerate(shared.allocation.groups):
            if group.bank:
                own = [i for i in targets if reading.places[i][0] == g]
                fit = _Fit(model, reading, g, own, targets)
                fit.run(rounds, steps)
                fit.write(model)
                wrong |= fit.wrong
                squares |= fit.squares
    copied, fresh = copy_others(model, dense_state)
    errors = {reading.places[i][1].name: _ratio(wrong[i], squares[i]) for i in sorted(wrong)}
    error = _ratio(sum(wrong.values()), sum(squares[i] for i in wrong)) if wrong else 0.0
    return Projection(errors, error, copied, fresh)


def _ratio(wrong: float, whole: float) -> float:
    """Return the relative error of squared norms."""
    return (max(0.0, wrong) / whole) ** 0.5 if whole else float(wrong > 0)


class _Kind:
    """Layers that read the same templates and are upsampled alike, if at all."""

    def __init__(self, layer: LayerAllocation, learned: Tensor | None) -> None:
        self.layer = layer
        self.learned = learned
        self.layers: list[int] = []

    def templates(self, bank_P: Tensor) -> Tensor:
        """Return the templates as a matrix, KxN."""
        return torch.stack([bank_P[low:high] for low, high in self.layer.intervals])

    def add(self, bank_P: Tensor, values_KN: Tensor) -> None:
        """Add to the templates' places: what reads a bank, the other way round."""
        for (low, high), values_N in zip(self.layer.intervals, values_KN, strict=True):
            bank_P[low:high] += values_N

    def narrow(self, weight: Tensor) -> Tensor:
        """Apply the adjoint of the upsampling to a flat weight: N values."""
        if self.layer.upsampler is None:
            return weight
        with torch.enable_grad():
            source_N = weight.new_zeros(self.layer.template_size).requires_grad_()
            return torch.autograd.grad(self._widen(source_N), source_N, weight)[0]

    def widen_and_narrow(self, values_KN: Tensor) -> Tensor:
        """Apply upsampling and its adjoint to each row."""
        if self.layer.upsampler is None:
            return values_KN
        return torch.stack([self.narrow(self._widen(values_N)) for values_N in values_KN])

    def _widen(self, values_N: Tensor) -> Tensor:
        return shaped(values_N, self.learned, self.layer)


class _Fit:
    """Fit one group: its bank, and its layers' coefficients times their scales, `alpha_K` each."""

    def __init__(
        self,
        model: nn.Module,
        reading: Reading,
        group: int,
        layers: Sequence[int],
        targets: Mapping[int, Tensor],
    ) -> None:
        self.group = group
        self.reading = reading
        self.targets = targets
        self.bank_P = _exact(model.get_parameter(bank_name(group)))
        self.scales = _exact(model.get_buffer(SCALES))
        self.alphas = {i: self._alpha(model, i) for i in layers}
        self.squares = {i: float(self.target(i).square().sum()) for i in layers}
        self.wrong: dict[int, float] = {}  # the squared errors, by layer
        kinds: dict[object, _Kind] = {}
        for i in layers:
            _, layer = reading.places[i]
            learned = _exact(getattr(model, upsampler_name(i))) if layer.learned[0] else None
            key: object = layer.templates, layer.template_size
            if layer.upsampler is not None:
                own = i if learned is not None else None
                key = key, layer.upsampler, layer.source, layer.matrix, layer.first, own
            kinds.setdefault(key, _Kind(layer, learned)).layers.append(i)
        self.kinds = list(kinds.values())

    def run(self, rounds: int, steps: int) -> None:
        """Alternate between bank and coefficients until a round gains next to nothing."""
        whole, before = sum(self.squares.values()), float("inf")
        for _ in track(range(max(1, rounds)), "projecting, at most"):
            self._fit_bank(steps)
            self._fit_coefficients()
            wrong = sum(self.wrong.values())
            if wrong <= EXACT * whole or before - wrong <= SETTLED * wrong:
                return
            before = wrong

    def write(self, model: nn.Module) -> None:
        """Put bank and coefficients into the network."""
        model.get_parameter(bank_name(self.group)).copy_(self.bank_P)
        for i, alpha_K in self.alphas.items():
            rows = self.reading.rows.get(i)
            if rows is not None and rows.mixing == FITTED:
                parameter = model.get_parameter(rows.names["coefficients"])
                parameter[rows.layers.index(i)].copy_(alpha_K / self._scale(i))

    def _fit_bank(self, steps: int) -> None:
        """Take conjugate gradient steps on the normal equations, from the bank as it is."""
        wanted_P = torch.zeros_like(self.bank_P)
        for kind in self.kinds:
            values_KN = torch.zeros_like(kind.templates(self.bank_P))
            for layers, wanted_LN in self._wanted(kind):
                values_KN.addmm_(torch.stack([self.alphas[i] for i in layers]).T, wanted_LN)
            kind.add(wanted_P, values_KN)
        residual_P = wanted_P - self._normal(self.bank_P)
        direction_P = residual_P.clone()
        square, enough = residual_P.dot(residual_P), SOLVED**2 * wanted_P.dot(wanted_P)
        for _ in range(steps):
            if square <= enough:
                return
            mapped_P = self._normal(direction_P)
            length = square / direction_P.dot(mapped_P)
            self.bank_P.add_(length * direction_P)
            residual_P.sub_(length * mapped_P)
            before, square = square, residual_P.dot(residual_P)
            direction_P.mul_(square / before).add_(residual_P)

    def _normal(self, bank_P: Tensor) -> Tensor:
        """Generate every weight of a bank, and apply the adjoint to all: one product a kind."""
        found_P = torch.zeros_like(bank_P)
        for kind in self.kinds:
            alpha_LK = torch.stack([self.alphas[i] for i in kind.layers])
            values_KN = kind.widen_and_narrow(kind.templates(bank_P))
            kind.add(found_P, (alpha_LK.T @ alpha_LK) @ values_KN)
        return found_P

    def _fit_coefficients(self) -> None:
        """Solve each layer's own K equations where its coefficients are free; note the errors."""
        for kind in self.kinds:
            templates_KN = kind.templates(self.bank_P)
            gram_KK = templates_KN @ kind.widen_and_narrow(templates_KN).T
            for layers, wanted_LN in self._wanted(kind):
                for i, wanted_K in zip(layers, wanted_LN @ templates_KN.T, strict=True):
                    rows = self.reading.rows.get(i)
                    if rows is not None and rows.mixing == FITTED and self._scale(i):
                        found = torch.linalg.lstsq(gram_KK, wanted_K[:, None], driver="gelsd")
                        self.alphas[i] = found.solution[:, 0]
                    alpha_K = self.alphas[i]
                    explained = 2 * alpha_K.dot(wanted_K) - alpha_K.dot(gram_KK @ alpha_K)
                    self.wrong[i] = max(0.0, self.squares[i] - float(explained))

    def _wanted(self, kind: _Kind) -> Iterator[tuple[list[int], Tensor]]:
        """Yield some of the layers, and their targets brought back to the templates' size."""
        count = max(1, AT_ONCE // kind.layer.template_size)
        for start in range(0, len(kind.layers), count):
            layers = kind.layers[start : start + count]
            yield layers, torch.stack([kind.narrow(self.target(i)) for i in layers])

    def target(self, i: int) -> Tensor:
        """Return the flat weight that a layer is to have."""
        return _exact(self.targets[i]).reshape(-1)

    def _scale(self, i: int) -> float:
        return float(self.scales[self.reading.places[i][1].scale])

    def _alpha(self, model: nn.Module, i: int) -> Tensor:
        """Return the layer's coefficients times its scale."""
        rows = self.reading.rows.get(i)
        if rows is None:
            return self.scales.new_full((1,), self._scale(i))
        alpha_LK = rows.coefficients(lambda name: _exact(getattr(model, name)))
        return _exact(alpha_LK)[rows.layers.index(i)] * self._scale(i)


def _exact(tensor: Tensor) -> Tensor:
    """Return a copy to compute with."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def dense_names(model: nn.Module) -> set[str]:
    """Return the names that the tensors of a network have, or had before it was shared."""
    layers = shared_layers(shared_weights(model)) if is_shared(model) else {}
    shared = {name for names in layers.values() for name in names}
    return shared | {name for name in model.state_dict() if not name.startswith(PREFIX)}


def _target(
    dense_state: Mapping[str, Tensor], names: Sequence[str], layer: LayerAllocation
) -> Tensor:
    """Return the weight that a layer is to have; ValueError if there is none that fits."""
    given = next((dense_state[name] for name in (layer.name, *names) if name in dense_state), None)
    other = "take weights of the same architecture, or exclude that layer from sharing"
    if given is None:
        raise ValueError(f"there is no tensor {layer.name}, which the network shares: {other}")
    if tuple(given.shape) != layer.shape:
        raise ValueError(
            f"{layer.name} has shape {list(given.shape)} there and {list(layer.shape)} in the"
            f" network: {other}"
        )
    if not given.isfinite().all():
        raise ValueError(f"{layer.name} is not finite there: take weights that did not diverge")
    return given


@torch.no_grad()
def copy_others(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what is not shared, where name and shape agree; name what was copied, what was not."""
    tied: dict[object, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(PREFIX):
            tied.setdefault((tensor.data_ptr(), tensor.shape), {})[name] = tensor
    copied: list[str] = []
    fresh: list[str] = []
    for own in tied.values():
        first, tensor = next(iter(own.items()))
        fits = [state[name] for name in own if name in state and state[name].shape == tensor.shape]
        if fits:
            if not fits[0].isfinite().all():
                raise ValueError(f"{first} is not finite there: take weights that did not diverge")
            tensor.copy_(fits[0])
        if fits or not first.endswith(f".{MASK}"):  # where nothing was pruned there is no mask
            (copied if fits else fresh).append(first)
    return copied, fresh
