"""Generate a shared network's weights: once per forward pass, and only then.

The root module holds the trainable tensors as its own parameters, so that each stands once in
`parameters()` and `state_dict()`. Every shared layer reads its weight through a property of a
subclass of its own class; nothing else about the layer changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.allocation import Allocation, LayerAllocation
from npas.sharing.bank import BankReader, mix
from npas.sharing.buffers import BufferPool
from npas.sharing.generators import GENERATORS
from npas.sharing.upsamplers import UPSAMPLERS

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"
_SHARED_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


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
        self.depth = 0
        self.pool = BufferPool()
        self._pass: WeightPass | None = None
        self._kept: WeightPass | None = None
        self._kept_state: object = None
        self._checked = False
        self.places = self._find_places()
        self.twins = self._find_twins()
        self.rows = self._find_rows()

    def __getstate__(self) -> dict[str, Any]:
        """Leave generated weights out of copies and pickles."""
        fresh = {"depth": 0, "_pass": None, "_kept": None, "_kept_state": None, "_checked": False}
        return self.__dict__ | fresh

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

    def parameter(self, name: str) -> Tensor:
        """Return one of the root's tensors as it is now; `functional_call` may have replaced it."""
        tensor = self.root._parameters.get(name, self.root._buffers.get(name))
        assert tensor is not None, name
        return tensor

    def sources(self) -> Iterator[Tensor]:
        """Yield every tensor that generated weights depend on."""
        for tensors in (self.root._parameters, self.root._buffers):
            for name, tensor in tensors.items():
                if name.startswith(PREFIX) and tensor is not None:
                    yield tensor

    def begin(self, *_: object) -> None:
        """Open a forward pass (a pre-hook of every module that holds shared layers)."""
        if torch.compiler.is_compiling():
            return
        if self.depth == 0:
            self._pass = None
            self._checked = False
        self.depth += 1

    def end(self, *_: object) -> None:
        """Close a forward pass, also one that raised; the outermost drops its weights."""
        if torch.compiler.is_compiling():
            return
        self.depth -= 1
        if self.depth == 0:
            self._pass = None

    def weight(self, index: int) -> Tensor:
        """Return the weight of the layer at `index`, in its shape."""
        if torch.compiler.is_compiling() or _in_function_transform():
            return WeightPass(self, plain=True).weight(index)
        if self._pass is not None and torch.is_grad_enabled():
            return self._pass.weight(self.twins[index])
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in self.sources()):
            return self._keep().weight(self.twins[index])
        self._kept = None
        weights = WeightPass(self)
        if self.depth:
            self._pass = weights
        return weights.weight(self.twins[index])

    def _keep(self) -> WeightPass:
        """Return the kept weights if they still hold, else a place for new ones."""
        if self._kept is not None and self._checked and self.depth:
            return self._kept
        state = [
            (object() if t.is_inference() else t._version, t.data_ptr(), t.dtype, t.device)
            for t in self.sources()
        ]
        if self._kept is None or state != self._kept_state:
            self.pool.clear()  # kept weights are not made anew every step
            self._kept, self._kept_state = WeightPass(self, kept=True), state
        self._checked = True
        return self._kept


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
            return self._generate(index)
        if index not in self._weights:
            weight = self._generate_kept(index) if self._is_kept else self._generate(index)
            self._weights[index] = weight, weight._version
        weight, version = self._weights[index]
        if weight._version != version:
            name = self._shared.places[index][1].name
            raise RuntimeError(
                f"the generated weight {name!r} was modified in place, which changes no parameter:"
                " initialize the network before npas.share, or materialize it first"
            )
        return weight

    def _generate_kept(self, index: int) -> Tensor:
        """Generate a weight that any later mode may use, inference mode or not."""
        with torch.inference_mode(False), torch.no_grad():
            return self._generate(index)

    def _generate(self, index: int) -> Tensor:
        _, layer = self._shared.places[index]
        alpha_K = self._alpha(index)
        values = self._mix(index, alpha_K)
        if layer.upsampler is None:
            return values.view(layer.shape)
        upsampler = UPSAMPLERS[layer.upsampler]
        if layer.upsampler == "inter":
            return upsampler.weight(values.view(layer.source), None, layer.matrix).view(layer.shape)
        learned = None
        if layer.learned[0]:
            learned = self._shared.parameter(upsampler_name(index))
        return upsampler.weight(values, learned, layer.matrix).view(layer.shape)

    def _mix(self, index: int, alpha_K: Tensor) -> Tensor:
        group, layer = self._shared.places[index]
        bank_P = self._shared.parameter(bank_name(group))
        if self._plain:
            return mix(bank_P, alpha_K.to(bank_P.dtype), layer.templates, layer.template_size)
        if group not in self._readers:
            self._readers[group] = BankReader(bank_P, self._shared.pool)
        return self._readers[group].mix(index, alpha_K, layer.templates, layer.template_size)

    def _alpha(self, index: int) -> Tensor:
        """Return the layer's coefficients times its scale; computed for all that share a map."""
        scales = self._shared.parameter(SCALES)
        _, layer = self._shared.places[index]
        if layer.mixing == "none":
            return scales[layer.scale : layer.scale + 1]
        if index not in self._alphas:
            _, _, members = self._shared.rows[index]
            alpha_LK = self._coefficients(index)
            at = [self._shared.places[i][1].scale for i in members]
            rows = (alpha_LK.to(scales.device) * scales[at, None]).unbind(0)
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


@dataclass
class Attachment:
    """Link an owner of shared tensors to the weights: which attribute is which layer."""

    shared: SharedWeights
    layers: dict[str, int]
    order: list[str]


def attach(owner: nn.Module, name: str, layer: int, shared: SharedWeights) -> None:
    """Let a module read its parameter `name` from the shared weights."""
    attachment = owner.__dict__.setdefault("_npas", Attachment(shared, {}, list(owner._parameters)))
    attachment.layers[name] = layer
    del owner._parameters[name]
    base = _dense_class(owner)
    owner.__class__ = _shared_class(base, tuple(sorted(attachment.layers)))


def detach(owner: nn.Module, parameters: dict[int, nn.Parameter]) -> None:
    """Give a module its own class and parameters back, in the dense order."""
    attachment: Attachment = owner.__dict__.pop("_npas")
    owner.__class__ = _dense_class(owner)
    kept = dict(owner._parameters)
    restored = {name: parameters[layer] for name, layer in attachment.layers.items()}
    owner._parameters.clear()
    for name in attachment.order:
        owner._parameters[name] = restored[name] if name in restored else kept[name]


def open_passes(root: nn.Module, shared: SharedWeights) -> None:
    """Let a call of any module that holds shared layers open a forward pass."""
    for module in root.modules():
        held = module.modules()
        if module is root or any("_npas" in m.__dict__ for m in held if m is not module):
            module.register_forward_pre_hook(shared.begin)
            module.register_forward_hook(shared.end, always_call=True)


def close_passes(root: nn.Module, shared: SharedWeights) -> None:
    """Take the hooks of `open_passes` away."""
    for module in root.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is shared:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)


def _dense_class(owner: nn.Module) -> type[nn.Module]:
    cls = type(owner)
    return cls.__mro__[1] if "_npas_names" in cls.__dict__ else cls


def _shared_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of a module class whose named parameters are generated."""
    if (base, names) in _SHARED_CLASSES:
        return _SHARED_CLASSES[base, names]

    def reader(name: str) -> property:
        return property(lambda module: module._npas.shared.weight(module._npas.layers[name]))

    def reduce(module: nn.Module, _: object) -> tuple[Any, ...]:
        return _revive, (base, names), module.__getstate__()

    body: dict[str, Any] = {name: reader(name) for name in names} | {"_npas_names": names}
    body |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    if issubclass(base, nn.RNNBase):  # its forward reads this list, not the attributes
        body["_flat_weights"] = property(
            lambda module: [getattr(module, name) for name in module._flat_weights_names],
            lambda module, value: None,
        )
    return _SHARED_CLASSES.setdefault((base, names), type(base.__name__, (base,), body))


def _revive(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Make an empty module of a shared class, for copies and pickles."""
    cls = _shared_class(base, names)
    return cls.__new__(cls)


def _in_function_transform() -> bool:
    """Tell whether a `torch.func` transform is running, which needs plain operations."""
    return torch._C._functorch.peek_interpreter_stack() is not None
