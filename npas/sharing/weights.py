"""Generate a shared network's weights: once per forward pass, and only then.

The root module holds the trainable tensors as its own parameters, so that each stands once in
`parameters()` and `state_dict()`. How layers come to read from here: see `attachment.py`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from npas.sharing.allocation import Allocation, LayerAllocation
from npas.sharing.bank import MODIFIED, BankReader, in_function_transform, mix, versions
from npas.sharing.buffers import BufferPool
from npas.sharing.generators import GENERATORS
from npas.sharing.upsamplers import UPSAMPLERS

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"
LARGEST_BLOCK = 1 << 22
"""Weights whose gradients may have to wait for each other: more memory than that is mapped anew."""


def bank_name(group: int) -> str:
    """Name the root's parameter that is the bank of the group at this place."""
    return f"{PREFIX}bank_{group}"


def generator_name(kind: str, group: int, templates: int) -> str:
    """Name a generator's parameter for the layers of a group that mix `templates` templates."""
    return f"{PREFIX}{kind}_{group}_{templates}"


def upsampler_name(layer: int) -> str:
    """Name the upsampler's weights of the layer at this place in `Allocation.layers`."""
    return f"{PREFIX}upsampler_{layer}"


class SharedWeights:
    """Generate and cache the weights of one shared network.

    With gradients, a weight lives for one forward pass of the outermost module that was called (and
    is generated anew for the next). Without, it is kept until a bank, a coefficient, their dtype or
    their device changes: version counters tell, which writing through `.data` escapes.
    """

    def __init__(self, root: nn.Module, allocation: Allocation) -> None:
        self.root = root
        self.allocation = allocation
        self.pool = BufferPool()
        self._open = _OpenPass()
        self._kept: WeightPass | None = None
        self._kept_state: object = None
        self._kept_sources: list[Tensor] = []
        self.places = self._find_places()
        self.twins = self._find_twins()
        self.rows = self._find_rows()
        self.blocks = self._find_blocks()

    def __getstate__(self) -> dict[str, Any]:
        """Leave generated weights out of copies and pickles."""
        fresh: dict[str, Any] = {"_kept": None, "_kept_state": None, "_kept_sources": []}
        return {k: v for k, v in self.__dict__.items() if k != "_open"} | fresh

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back with no pass open."""
        self.__dict__.update(state, _open=_OpenPass())

    def _find_places(self) -> list[tuple[int, LayerAllocation]]:
        """Return group index and plan of every layer, in the order of `Allocation.layers`."""
        return [
            (g, layer) for g, group in enumerate(self.allocation.groups) for layer in group.layers
        ]

    def _find_twins(self) -> list[int]:
        """Return for every layer the first one whose weight is identical to its own.

        Without coefficients or weights of its own, a layer that reads the same values into the same
        shape at the same scale has the same weight; it is generated once.
        """
        first: dict[object, int] = {}
        found = []
        for i, (g, layer) in enumerate(self.places):
            own = GENERATORS[layer.mixing].count([1]) if layer.mixing != "none" else 0
            if own or layer.learned[0]:
                found.append(i)
                continue
            key = (g, layer.shape, layer.templates, layer.mixing, layer.source, layer.scale)
            found.append(first.setdefault(key, i))
        return found

    def _find_rows(self) -> dict[int, tuple[str, int, list[int]]]:
        """Return for every mixing layer its generator, K and all layers that it stands among."""
        found: dict[int, tuple[str, int, list[int]]] = {}
        among: dict[tuple[int, str, int], list[int]] = {}
        for i, (g, layer) in enumerate(self.places):
            if layer.mixing != "none":
                key = (g, layer.mixing, len(layer.templates))
                members = among.setdefault(key, [])
                members.append(i)
                found[i] = (layer.mixing, key[2], members)
        return found

    def _find_blocks(self) -> dict[int, list[int]]:
        """Return for every layer that is generated those that read the same templates with it."""
        found: dict[int, list[int]] = {}
        among: dict[object, list[int]] = {}
        for i, (g, layer) in enumerate(self.places):
            if self.twins[i] != i:
                continue
            key = (g, layer.templates, layer.template_size)
            block = among.setdefault(key, [])
            if block and (len(block) + 1) * layer.size > LARGEST_BLOCK:
                block = among[key] = []
            block.append(i)
            found[i] = among[key]
        return found

    def parameter(self, name: str) -> Tensor:
        """Return one of the root's tensors as it is now; `functional_call` may have replaced it."""
        tensor: Tensor = getattr(self.root, name)
        return tensor

    def sources(self) -> Iterator[Tensor]:
        """Yield every tensor that generated weights depend on."""
        for tensors in (self.root._parameters, self.root._buffers):
            for name, tensor in tensors.items():
                if name.startswith(PREFIX) and tensor is not None:
                    yield tensor

    def begin(self, *_: object) -> None:
        """Open a forward pass (a pre-hook of every module that holds shared layers)."""
        if not torch.compiler.is_compiling() and not self._open.is_running():
            self._open.start(sys._getframe(1))

    def end(self, *_: object) -> None:
        """Close the forward pass that the same call opened, and drop its weights."""
        if not torch.compiler.is_compiling() and self._open.opened_by is sys._getframe(1):
            self._open.start(None)

    def weight(self, index: int) -> Tensor:
        """Return the weight of the layer at `index`, in its shape."""
        if torch.compiler.is_compiling() or in_function_transform():
            return WeightPass(self, plain=True).weight(index)
        running = self._open.is_running()
        if running and self._open.weights is not None and torch.is_grad_enabled():
            return self._open.weights.weight(self.twins[index])
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in self.sources()):
            return self._keep(running).weight(self.twins[index])
        self._forget()
        weights = WeightPass(self)
        if running:
            self._open.weights = weights
        return weights.weight(self.twins[index])

    def _keep(self, running: bool) -> WeightPass:
        """Return the kept weights if they still hold, else a place for new ones."""
        if self._kept is not None and running and self._open.checked:
            return self._kept
        state = [
            (object() if t.is_inference() else t._version, t.data_ptr(), t.dtype, t.device)
            for t in self.sources()
        ]
        if self._kept is None or state != self._kept_state:
            self.pool.clear()  # kept weights are not made anew every step
            self._kept, self._kept_state = WeightPass(self, kept=True), state
            # Held, so that no other tensor can come to lie at an address that was compared.
            self._kept_sources = [t.detach() for t in self.sources()]
        self._open.checked = running
        return self._kept

    def _forget(self) -> None:
        self._kept, self._kept_state, self._kept_sources = None, None, []


class _OpenPass(threading.local):
    """Remember, for one thread, the forward pass that is running and what it has generated.

    The pass is running while the frame that opened it is on the stack: that stays true to fact
    also where an exception, or Ctrl-C, keeps the closing hook from being called.
    """

    opened_by: FrameType | None = None
    weights: WeightPass | None = None
    checked = False

    def start(self, frame: FrameType | None) -> None:
        """Begin with nothing generated, as opened by this frame; None: no pass."""
        self.opened_by, self.weights, self.checked = frame, None, False

    def is_running(self) -> bool:
        """Tell whether the frame that opened the pass is still on this thread's stack."""
        if self.opened_by is None:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.opened_by:
            frame = frame.f_back
        return frame is not None


class WeightPass:
    """Hold what one forward pass generates: readers, coefficients, weights."""

    def __init__(self, shared: SharedWeights, plain: bool = False, kept: bool = False) -> None:
        self._shared = shared
        self._plain = plain
        self._is_kept = kept
        self._readers: dict[int, BankReader] = {}
        self._alphas: dict[int, Tensor] = {}
        self._weights: dict[int, tuple[Tensor, int]] = {}

    def weight(self, index: int) -> Tensor:
        """Return the layer's weight, generated at the first call."""
        if self._plain:
            _, layer = self._shared.places[index]
            bank_P = self._bank(index)
            alpha_K = self._alpha(index).to(bank_P.dtype)
            return self._shape(index, mix(bank_P, alpha_K, layer.templates, layer.template_size))
        if index not in self._weights:
            # Kept weights serve any later mode, inference mode or not.
            kept = torch.inference_mode(False) if self._is_kept else nullcontext()
            with kept, torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_kept):
                self._generate(self._shared.blocks[index])
        weight, version = self._weights[index]
        if weight._version != version:
            name = self._shared.places[index][1].name
            raise RuntimeError(
                f"the generated weight {name!r} was modified in place, which changes no parameter:"
                " initialize the network before npas.share, or materialize it first"
            )
        return weight

    def _generate(self, block: list[int]) -> None:
        """Generate a block's weights in full precision; no checkpoint sees a tensor saved here."""
        group, layer = self._shared.places[block[0]]
        bank_P = self._bank(block[0])
        if group not in self._readers:
            self._readers[group] = BankReader(bank_P, self._shared.pool)
        device = bank_P.device.type
        full = nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
        with saved_tensors_hooks(_hold, _give_back), full:
            alpha_LK = torch.stack([self._alpha(i) for i in block])
            reader = self._readers[group]
            mixed = reader.mix(block, alpha_LK, layer.templates, layer.template_size)
            for i, values in zip(block, mixed, strict=True):
                weight = self._shape(i, values)
                self._weights[i] = weight, weight._version

    def _bank(self, index: int) -> Tensor:
        return self._shared.parameter(bank_name(self._shared.places[index][0]))

    def _shape(self, index: int, values: Tensor) -> Tensor:
        """Make the layer's weight of the values it reads: upsampled if need be, in its shape."""
        _, layer = self._shared.places[index]
        if layer.upsampler is None:
            return values.view(layer.shape)
        upsampler = UPSAMPLERS[layer.upsampler]
        if layer.upsampler == "inter":
            return upsampler.weight(values.view(layer.source), None, layer.matrix).view(layer.shape)
        learned = None
        if layer.learned[0]:
            learned = self._shared.parameter(upsampler_name(index))
        return upsampler.weight(values, learned, layer.matrix).view(layer.shape)

    def _alpha(self, index: int) -> Tensor:
        """Return the layer's coefficients times its scale; computed for all that share a map."""
        scales = self._shared.parameter(SCALES)
        _, layer = self._shared.places[index]
        if layer.mixing == "none":
            return scales[layer.scale : layer.scale + 1]
        if index not in self._alphas:
            _, _, members = self._shared.rows[index]
            alpha_LK = self._coefficients(index)
            # Picked one by one: an index tensor would make a GPU wait.
            scale_L = torch.stack([scales[self._shared.places[i][1].scale] for i in members])
            rows = (alpha_LK.to(scales.device) * scale_L[:, None]).unbind(0)
            self._alphas.update(zip(members, rows, strict=True))
        return self._alphas[index]

    def _coefficients(self, index: int) -> Tensor:
        """Return alpha_LK of all layers that share the layer's group, generator and K."""
        mixing, templates, members = self._shared.rows[index]
        group = self._shared.places[index][0]
        prefix, suffix = PREFIX, f"_{group}_{templates}"
        parameters = {
            name.removeprefix(prefix).removesuffix(suffix): tensor
            for name, tensor in self._shared.root._parameters.items()
            if name.startswith(prefix) and name.endswith(suffix) and tensor is not None
        }
        return GENERATORS[mixing].coefficients(parameters, len(members), templates)


def _hold(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    return tensor, versions(tensor)


def _give_back(held: tuple[Tensor, tuple[int, ...]]) -> Tensor:
    if versions(held[0]) != held[1]:
        raise RuntimeError(MODIFIED)
    return held[0]
