"""How much a network's outputs change with each weight, by which a fit weights its errors.

A change D of a layer's weight changes the network's outputs by J D x to first order, for inputs x
of the layer and the Jacobian J of the network's outputs by the layer's. The sum of squares over
inputs is approximated by one Kronecker product per layer, tr(G D C D^T), as in K-FAC (Martens and
Grosse, ICML 2015), but with the factors
    C = sum |g|^2 x x^T,   G = sum |x|^2 g g^T,   each divided by (sum |x|^2 |g|^2)^(1/2),
one step towards the nearest Kronecker product: it does not suppose that sizes of inputs and
gradients are independent. g is the gradient of <outputs, v> by the layer's outputs, for random
normal v: its second moment is J^T J. Outputs are divided by their norm, so that the errors of all
layers are parts of the squared relative error of the network's outputs.

With C = M M^T and G = L L^T the error is |L^T D M|^2, and its best approximation of some rank is
known (`Root`). Shapes: weights R x N, C is N x N, G is R x R, M inputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.sharing.layers import Layer, computes_as, is_transposed_linear, matrix_form
from npas.sharing.trained.distillation import tensors
from npas.utils.checks import one_line, require
from npas.utils.progress import track

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Arguments of a network's call: one tensor, a sequence, or a mapping of keywords."""
DAMPING = 0.01
"""The least shrinkage of C and G towards multiples of the identity."""
UNSEEN = 0.1
"""Added to the times that each row of an embedding was read, with the mean gradient."""
WIDEST = 8192
"""The largest C or G; of larger ones only the diagonal is used."""


def call(model: nn.Module, batch: Batch, name: str) -> Any:
    """Call a network in eval mode; raise ValueError, which names the batch, if that fails."""
    try:
        with evaluating(model):
            require("it", batch, (Tensor, Sequence, Mapping), "a tensor, a tuple or a dict")
            if (given := tensors(batch).values()) and not any(own.numel() for own in given):
                raise ValueError("it is empty")
            if isinstance(batch, Mapping):
                return model(**batch)
            return model(batch) if isinstance(batch, Tensor) else model(*batch)
    except Exception as error:  # whatever a forward raises
        raise ValueError(
            f"{name} cannot be run through the network ({type(error).__name__}: {one_line(error)}):"
            " give a tensor, a tuple of arguments or a dict of them by name"
        ) from error


def refuse_batches(batches: object, init: str, templates: object) -> None:
    """Raise ValueError for invalid batches, and for batches that no fit uses."""
    is_list = isinstance(batches, (list, tuple)) and len(batches) > 0
    if batches is not None and (not is_list or init != "fit" or templates is not None):
        raise ValueError(
            "batches must be a list of one or more batches, and only init='fit' with a budget uses"
            " them: leave them out"
        )


@dataclass(frozen=True)
class Root:
    """The factors L and M of a layer; a vector is a diagonal, None the identity.

    `has_gradients` says whether errors are those of the network's outputs, or of the layer's.
    """

    left: Tensor | None
    right: Tensor | None
    has_gradients: bool

    def weigh(self, weight_RN: Tensor) -> Tensor:
        """Return L^T weight M."""
        return _times(self.left, _times(self.right, weight_RN.T).T)

    def importance(self, rows: int, columns: int) -> Tensor:
        """Return the weight of each value's squared error, R x N: G_rr C_nn."""
        return _diagonal(self.left, rows)[:, None] * _diagonal(self.right, columns)

    def undo(self, left_RK: Tensor, right_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of a weight, given those of `weigh(weight)`."""
        return _solve(self.left, left_RK), _solve(self.right, right_KN.T).T


def _times(factor: Tensor | None, matrix: Tensor) -> Tensor:
    if factor is None:
        return matrix
    return factor[:, None] * matrix if factor.dim() == 1 else factor.T @ matrix


def _diagonal(factor: Tensor | None, size: int) -> Tensor:
    if factor is None:
        return torch.ones(size, dtype=torch.float64)
    return (factor if factor.dim() == 1 else factor.norm(dim=1)).square()


def _solve(factor: Tensor | None, matrix: Tensor) -> Tensor:
    if factor is None:
        return matrix
    if factor.dim() == 1:
        return matrix / factor[:, None]
    return torch.linalg.solve_triangular(factor.T, matrix, upper=True)


PATCHES = 2**23  # about the most values of a convolution's patches at a time, in fp64
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
SPANS = ("start_logits", "end_logits")  # outputs with one number per token


@dataclass(frozen=True)
class _Masks:
    """The masks of a batch's tokens, B x L: True for tokens, False for padding.

    An encoder-decoder network has two, with the key "encoder" and "decoder"; the names of modules
    and outputs tell which one they belong to, if any. Other networks have the key "".
    """

    by_part: dict[str, Tensor]
    has_parts: bool

    @classmethod
    def of_batch(cls, model: nn.Module, batch: Mapping[str, Tensor]) -> _Masks:
        """Return the masks of a network's arguments by name."""
        has_parts = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        has_parts = has_parts or any(name.startswith("decoder_") for name in batch)
        keys = {"encoder" if has_parts else "": "attention_mask"}
        keys |= {"decoder": "decoder_attention_mask"} if has_parts else {}
        found = {part: batch[key] for part, key in keys.items() if key in batch}
        masks = {part: torch.atleast_2d(mask).flatten(1) > 0 for part, mask in found.items()}
        return cls(masks, has_parts)

    def of(self, name: str, tensor: Tensor, is_output: bool = False) -> Tensor | None:
        """Return the mask of a tensor of this name, B x L x ...; None if it has none."""
        part = "decoder" if self.has_parts and is_output else ""
        if self.has_parts:
            words = name.replace("_", ".").split(".")
            part = next((word for word in ("decoder", "encoder") if word in words), part)
        mask = self.by_part.get(part)
        if mask is None or tensor.shape[:2] != mask.shape:
            return None
        # Features or classes of a whole text may be as many as its tokens.
        per_token = not tensor.is_floating_point() or name.endswith(SPANS)
        return mask if tensor.dim() > 2 or per_token else None


@dataclass
class _Sums:
    """The sums C and G of a layer before the division, and its number of inputs."""

    module: nn.Module
    c: Tensor | float = 0.0
    g: Tensor | float = 0.0
    total: float = 0.0  # of |x|^2 |g|^2
    squares: float = 0.0  # of (|x|^2 |g|^2)^2
    count: int = 0

    def add(self, inputs: Tensor, gradients: Tensor | None) -> None:
        """Add a call's inputs and, if there are any, the gradients by its outputs."""
        module, size = self.module, max(1, len(inputs))
        if isinstance(module, CONVOLUTIONS) and inputs.dim() == 2 + len(module.kernel_size):
            size = max(1, PATCHES // (inputs[0].numel() * math.prod(module.kernel_size)))
        for first in range(0, len(inputs), size):
            own = slice(first, first + size)
            self._add(inputs[own], None if gradients is None else gradients[own])

    def _add(self, inputs: Tensor, gradients: Tensor | None) -> None:
        module = self.module
        is_embedding = isinstance(module, nn.Embedding)
        x = inputs.reshape(-1) if is_embedding else _flat(module, inputs).double()
        size_M = x.square().sum(1) if x.dim() == 2 else torch.ones_like(x, dtype=torch.float64)
        slope_M = torch.ones_like(size_M)  # |g|^2, as size_M is |x|^2
        if gradients is not None:
            if isinstance(module, CONVOLUTIONS):
                gradients = gradients.movedim(-1 - len(module.kernel_size), -1)
            g = gradients.reshape(-1, gradients.shape[-1]).double()
            slope_M = g.square().sum(1)
            self.g = self.g + _square(g * size_M.sqrt()[:, None]).cpu()
        if isinstance(module, nn.Embedding):
            self.c = self.c + x.bincount(slope_M, minlength=module.num_embeddings).cpu()
        else:
            self.c = self.c + _square(x * slope_M.sqrt()[:, None]).cpu()
        both_M = size_M * slope_M
        self.total += float(both_M.sum())
        self.squares += float(both_M.square().sum())
        self.count += len(x)


def roots(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]) -> dict[str, Root]:
    """Return the factors of layers by name, measured in eval mode.

    Covers linear layers, embeddings and 1-D and 2-D convolutions without groups, as far as the
    batches reach them and the outputs depend on them. If no output has a gradient, G is the
    identity and C that of inputs alone. Raises ValueError for inputs or gradients that are not
    finite, and if no layer is reached.
    """
    sums: dict[str, _Sums] = {}
    calls: list[tuple[str, nn.Module, Tensor]] = []  # of layers, in a batch, with their inputs
    masks = _Masks({}, False)

    def add(name: str, module: nn.Module, inputs: Tensor, gradients: Tensor | None) -> None:
        sums.setdefault(name, _Sums(module)).add(inputs, gradients)

    def see(name: str, module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
        if not arguments:  # called with keywords only
            return
        inputs: Tensor = arguments[0].detach()
        kept: Any = ...  # all
        if not isinstance(module, CONVOLUTIONS):
            found = masks.of(names[module], inputs)
            kept = kept if found is None else found
        calls.append((name, module, inputs[kept]))
        if out.requires_grad:
            out.register_hook(lambda gradient: add(name, module, inputs[kept], gradient[kept]))

    hooks = []
    names = {module: name for name, module in model.named_modules()}
    for layer in layers:
        if matrix_form(layer.spec.shape)[0] != layer.spec.shape[0]:
            continue  # one output: no matrix of outputs x inputs
        readers = [own for own, key in layer.owners if key == "weight" and _is_seen(own)]
        for own in readers:  # for an embedding tied to a head: only the embedding
            if isinstance(own, nn.Embedding) == isinstance(readers[0], nn.Embedding):
                hooks.append(own.register_forward_hook(functools.partial(see, layer.spec.name)))
    try:
        for i, batch in enumerate(track(batches, "measuring activations")):
            masks = _Masks.of_batch(model, tensors(batch))
            calls.clear()
            # cuDNN has no backward for RNNs in eval mode.
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False), evaluating(model):
                if not _backward(call(model, batch, f"batches[{i}]"), layers, masks, i):
                    for seen in calls:
                        add(*seen, None)
    finally:
        for hook in hooks:
            hook.remove()
    if hooks and not sums and not calls:
        raise ValueError(
            "the batches reach no layer (linear, convolution or embedding, called as a module):"
            " leave them out, or pass the network before torch.compile"
        )
    has_gradients = any(isinstance(own.g, Tensor) and own.total for own in sums.values())
    return {
        name: _root(name, own)
        for name, own in sums.items()
        if own.total and isinstance(own.g, Tensor) == has_gradients
    }


def _backward(found: Any, layers: Sequence[Layer], masks: _Masks, seed: int) -> bool:
    """Run <outputs, v> backward for random normal v; return whether any output has a gradient."""
    products = []
    draw = torch.Generator("cpu").manual_seed(seed)
    for name, own in _compared(found).items():
        if own.requires_grad:
            v = torch.randn(own.shape, generator=draw, device="cpu", dtype=torch.float32)
            v = v.to(own.device)
            if (text_BL := masks.of(name, own, is_output=True)) is not None:
                v = v * text_BL.reshape(*own.shape[:2], *[1] * (own.dim() - 2))
            length = own.detach().float().norm()
            if 0 < length < float("inf"):
                products.append((own.float() * v).sum() / length)
    if products:
        weights = [layer.parameter for layer in layers]
        try:
            torch.autograd.grad(torch.stack(products).sum(), weights, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(
                f"batches[{seed}] cannot be run backward through the network ({one_line(error)}):"
                " leave batches out"
            ) from error
    return bool(products)


@torch.no_grad()
def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return all floating-point outputs of one or more dimensions as one vector, perhaps empty."""
    found = _compared(call(model, batch, "batches[0]"))
    none = torch.zeros(0, dtype=torch.float64, device="cpu")
    return torch.cat([none, *(own.reshape(-1).double().cpu() for own in found.values())])


def _compared(found: Any) -> dict[str, Tensor]:
    """Return the floating-point outputs of one or more dimensions by name, also nested ones."""
    return {
        name: own
        for name, own in tensors(found, nested=True).items()
        if own.dim() and own.layout is torch.strided and own.is_floating_point()
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode; restore each module's mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _is_seen(module: nn.Module) -> bool:
    """Return whether the module's call multiplies its input by its weight, as its class does.

    A subclass with a forward of its own may do something else: Whisper's positional embedding is
    called with tokens, and reads its rows by their positions.
    """
    if isinstance(module, CONVOLUTIONS):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        kind = next(base for base in CONVOLUTIONS if isinstance(module, base))
        return plain and module.groups == 1 and computes_as(type(module), kind)
    known = any(computes_as(type(module), base) for base in (nn.Linear, nn.Embedding))
    return known or is_transposed_linear(type(module))


def _flat(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a layer's inputs (patches of a convolution) as a matrix, M x N."""
    if not isinstance(module, CONVOLUTIONS):
        return inputs.reshape(-1, inputs.shape[-1])
    assert not isinstance(module.padding, str)
    inputs = inputs if inputs.dim() == 2 + len(module.kernel_size) else inputs[None]
    form: list[Any] = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):  # an image of one row
        inputs = inputs.unsqueeze(-2)
        form = [(first, *rest) for first, rest in zip((1, 1, 0, 1), form, strict=True)]
    patches_BNM = F.unfold(inputs, *form)
    return patches_BNM.transpose(1, 2).reshape(-1, patches_BNM.shape[1])


def _square(rows_MN: Tensor) -> Tensor:
    """Return X^T X, or its diagonal if it is too large."""
    wide = rows_MN.shape[1] > WIDEST
    return rows_MN.square().sum(0) if wide else rows_MN.T @ rows_MN


def _root(name: str, own: _Sums) -> Root:
    """Return the factors of a layer's C and G. Raises ValueError if one is not finite."""
    c, g = own.c, own.g
    assert isinstance(c, Tensor)
    if not all(bool(part.isfinite().all()) for part in (c, g) if isinstance(part, Tensor)):
        raise ValueError(
            f"the batches give {name} inputs or gradients that are not finite: leave them out"
        )
    outputs = _factor(g, own) if isinstance(g, Tensor) else None
    is_embedding = isinstance(own.module, nn.Embedding)
    if is_embedding:
        inputs = (c + UNSEEN * own.total / own.count).sqrt() / own.total**0.25
    else:
        inputs = _factor(c, own)
    if is_embedding or is_transposed_linear(type(own.module)):  # one row for each input
        return Root(inputs, outputs, has_gradients=outputs is not None)
    return Root(outputs, inputs, has_gradients=outputs is not None)


def _factor(sums: Tensor, own: _Sums) -> Tensor:
    """Return the Cholesky factor, or the roots of a diagonal, after shrinkage for few inputs.

    The shrinkage is OAS (Chen et al., IEEE Transactions on Signal Processing 58, 2010, equation 23)
    for the effective number of inputs, (sum w)^2 / sum w^2 with weights w = |x|^2 |g|^2.
    """
    sums = sums / own.total**0.5
    if sums.dim() == 1:
        return ((1 - DAMPING) * sums + DAMPING * sums.mean()).sqrt()
    count, width = own.total**2 / max(own.squares, 1e-300), len(sums)
    trace, square = float(sums.trace()), float(sums.square().sum())
    spread = (count + 1 - 2 / width) * (square - trace**2 / width)
    rate = ((1 - 2 / width) * square + trace**2) / spread if spread > 0 else 1.0
    rate = min(1.0, max(DAMPING, rate))
    sums *= 1 - rate
    sums.diagonal().add_(rate * trace / width)
    factor: Tensor = torch.linalg.cholesky(sums)
    return factor
