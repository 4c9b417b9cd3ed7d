"""`SharedWeights`: when a shared network's weights are generated, and how long they are kept.

The root module owns the trainable tensors, so that each is once in `parameters()` and
`state_dict()`. Layers read their weights here through the properties of `attachment.py`;
`generation.py` makes them.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook

from npas.sharing.layers import PREFIX, SCALES, bank_name, shared_names, shared_value
from npas.sharing.layout.allocation import Allocation
from npas.sharing.runtime.bank import BufferPool, full_precision
from npas.sharing.runtime.errors import Errors
from npas.sharing.runtime.generation import WeightPass, written
from npas.sharing.runtime.reading import Reading
from npas.sharing.torch_private import (
    caller,
    has_saved_tensors_hooks,
    is_executing,
    is_traced,
    outermost_call,
)
from npas.utils.progress import track


class SharedWeights:
    """Generate and cache the weights of one shared network.

    With gradients, a weight is generated once per forward pass of the outermost module that is
    called. Without, it is kept until a bank, a coefficient, their dtype or their device changes, an
    optimizer steps, or `train`, `eval` or `load_state_dict` is called. Changes are detected by
    version counters (see `_note_step` for fused optimizers). Writes through `.data` and collectives
    of `torch.distributed` do not increase them.

    `low` are the indices of layers known to cast their weights under autocast. With `recompute`
    autograd does not save weights; they are generated again in backward.
    """

    def __init__(
        self, root: nn.Module, allocation: Allocation, low: Collection[int], recompute: bool
    ) -> None:
        self.root = root
        self.allocation = allocation
        self.recompute = recompute
        self.reading = Reading(allocation, low)
        self.pool = BufferPool()
        self._open = _OpenPass()
        self._kept: _Kept | None = None
        self.errors: Errors | None = None  # of the fit, if there was one
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        """The modules that sharing has changed, also if moved elsewhere; empty in a copy."""
        self.others: dict[str, tuple[int, bool]] = {}
        """(size, whether it counts) of each unshared parameter; see `audit.count_others`."""
        self.plan = ""
        """A digest of the allocation, which the metadata of state dicts hold."""
        _watch_optimizers(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without generated weights. Raises errors as `refuse_unstorable`."""
        self.refuse_unstorable()
        left_out = ("_open", "modules")
        return {k: v for k, v in self.__dict__.items() if k not in left_out} | {"_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=_OpenPass(), modules=weakref.WeakSet())
        _watch_optimizers(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedWeights:
        """Copy with the network; warn if only a part of it is copied."""
        if id(self.root) not in memo:
            warnings.warn(
                "a part of a shared network was copied by itself: the copy's bank is not among its"
                " parameters, so copy the whole network, or materialize it first",
                stacklevel=2,
            )
        twin = memo[id(self)] = SharedWeights.__new__(SharedWeights)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def sources(self) -> Iterator[Tensor]:
        """Yield every tensor that generated weights depend on."""
        for name in shared_names(self.root):
            yield shared_value(self.root, name)

    def replace(self, allocation: Allocation) -> None:
        """Use another allocation of the same layers from now on."""
        self.allocation, self.reading = allocation, Reading(allocation, self.reading.low)

    def take_scales(self, scale_of: Sequence[int]) -> None:
        """Give each layer the scale at another index. Values of new scales are to be loaded."""
        layers = self.allocation.layers
        if [layer.scale for layer in layers] != scale_of and len(layers) == len(scale_of):
            indices = iter(scale_of)
            self.replace(self.allocation.map(lambda layer: replace(layer, scale=next(indices))))
            self.forget()
            scales = self.root.get_buffer(SCALES)
            scales.data = scales.new_ones(self.allocation.scales)  # DDP holds the tensor itself

    def begin(self, *_: object) -> None:
        """Open a forward pass if none is open (a forward pre-hook)."""
        if not torch.compiler.is_compiling() and not self._open.is_running():
            self._refuse_writes()
            self._open.start(caller(1))
            if self.recompute and torch.is_grad_enabled() and not is_traced():
                self.forget()
                self._open.recompute(self._pass(recompute=True))

    def end(self, *_: object) -> None:
        """Close the forward pass that the same call opened, and drop its weights."""
        if torch.compiler.is_compiling():
            return
        # After an exception the frame that opened the pass no longer runs.
        if self._open.opened_by is caller(1) or not self._open.is_running():
            self._open.start(None)

    def _join(self) -> bool:
        """Open a pass for a submodule that is called without the network; False if none is.

        The submodule gets hooks, which open and close the pass from its next call on.
        """
        if not self.modules:  # in a copy
            self.modules.update(self.root.modules())
        found = None if self.recompute else outermost_call(self.modules)
        if found is None:
            return False
        self._refuse_writes()
        self._open.start(found[0])
        self.watch(found[1])
        return True

    def watch(self, module: nn.Module) -> None:
        """Register the hooks that open and close a pass at each call of a module."""
        module.register_forward_pre_hook(self.begin)
        module.register_forward_hook(self.end, always_call=True)

    def weight(self, index: int) -> Tensor:
        """Return the weight of the layer at `index`, in its shape."""
        if is_traced():
            return self.plain_weight(index)
        running, twin = self._open.is_running() or self._join(), self.reading.twins[index]
        if running and self._open.weights is not None and torch.is_grad_enabled():
            return self._open.weights.weight(twin)
        if not running:
            self._refuse_writes()
        kept = None
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.sources()):
            self.forget()
            weights = self._pass()
            if running:
                self._open.weights = weights
        else:
            kept = self._keep(running)
            weights = kept.weights
        weight = weights.weight(twin)
        if not running:
            # The caller may write to it, as nn.init and adapters do, which is detected later.
            name = self.reading.places[index][1].name
            self._open.read = read = _Read.of(name, weight, kept is not None)
            if kept is not None:
                kept.read.setdefault((twin, weight.dtype), read)
        return weight

    def dense_parameters(self, indices: Iterable[int]) -> dict[int, nn.Parameter]:
        """Return the weights of layers as parameters, bit-equal to those of a forward pass.

        A parameter requires gradients if its bank does.
        """
        made, found = WeightPass(self.root, self.reading, BufferPool(), kept=True), {}
        device = next(self.sources()).device
        with torch.inference_mode(False), torch.no_grad(), full_precision(device):
            for index in track([*indices], "making weights"):
                twin = self.reading.twins[index]
                weight = made.take(twin)
                is_view = weight.untyped_storage().nbytes() > weight.nbytes
                weight = weight.clone() if is_view or twin in self.reading.common else weight
                bank_P = shared_value(self.root, bank_name(self.reading.places[index][0]))
                found[index] = nn.Parameter(weight.detach(), requires_grad=bank_P.requires_grad)
        return found

    def plain_weight(self, index: int) -> Tensor:
        """Return the weight of the layer at `index`, by plain operations that can be traced."""
        return self._pass().plain_weight(index)

    def _pass(self, **how: bool) -> WeightPass:
        return WeightPass(self.root, self.reading, self.pool, **how)

    def _keep(self, running: bool) -> _Kept:
        """Return the kept weights if they are still valid, else an empty cache."""
        kept = self._kept  # read once: another thread may drop it meanwhile
        if kept is not None and running and self._open.checked:
            return kept
        sources = list(self.sources())
        state = self._state(sources)
        if kept is None or state != kept.state:
            self.pool.clear()  # kept weights do not use the pool
            held = [t.detach() for t in sources]
            self._kept = kept = _Kept(self._pass(kept=True), state, held, _sums(sources), {})
        self._open.checked = running
        return kept

    def _state(self, sources: Sequence[Tensor]) -> list[object]:
        """Return what differs after a source has changed in a way that version counters show."""
        state: list[object] = [_last_step[0]]
        for t in sources:
            version = object() if t.is_inference() else t._version
            state.append((version, t.data_ptr(), t.dtype, t.device, t.requires_grad))
        return state

    def refuse_written(self, *_: object) -> None:
        """Raise RuntimeError if a kept weight was written to: that changes no parameter.

        Also called by `train` and `eval`. Kept weights whose bank was changed without a version
        counter are dropped.
        """
        if is_traced():
            return
        self.reading.trust.round += 1
        self._refuse_writes()
        kept = self._kept
        if kept is None:
            return
        sources = list(self.sources())
        is_stale = self._state(sources) != kept.state or _differ(_sums(sources), kept.sums)
        name = kept.weights.find_written()
        for read in list(kept.read.values()):
            if name is None and read.is_written():  # through `.data`
                name = read.name
        if name is not None or is_stale:
            self.forget()
        if name is not None:
            raise written(name)

    def refuse_unstorable(self, *_: object) -> None:
        """Raise RuntimeError for a kept weight that was written to, ValueError for such indices.

        Called before parameters are stored or copied, e.g. as the root's `state_dict` pre-hook.
        """
        self.refuse_written()
        if not is_traced():
            self.reading.check_indices(lambda name: shared_value(self.root, name))

    def note_loaded(self, *_: object) -> None:
        """Drop the kept weights, and trust the indices (a hook, after a state dict was loaded)."""
        self.reading.trust.loads += 1
        self.forget()

    def _refuse_writes(self) -> None:
        """Raise RuntimeError if the weight that was last read outside of a pass was written to.

        A kept weight may be written through `.data`, as adapters are merged, until it is stored.
        """
        read, self._open.read = self._open.read, None
        if read and read.is_written(through_data=not read.is_kept):
            self.forget()
            raise written(read.name)

    def forget(self, *_: object) -> None:
        """Drop the kept weights (also a hook)."""
        self._kept = None


@dataclass(frozen=True)
class _Kept:
    """Kept weights and the state of their sources; threads replace it as a whole."""

    weights: WeightPass
    state: list[object]
    sources: list[Tensor]  # kept alive, so that no other tensor gets an address in `state`
    sums: list[Tensor]
    read: dict[tuple[int, torch.dtype], _Read]  # outside of a pass


@torch.no_grad()
def _sums(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return integer checksums of each tensor's bytes, which detect changes through `.data`.

    Two sums: of eight bytes at a time, and of the remaining bytes. Does not synchronize with a GPU.
    """
    found = []
    for tensor in tensors:
        flat, many = tensor.detach().reshape(-1), 8 // tensor.element_size()
        flat, rest = flat.clone() if flat.storage_offset() % many else flat, len(flat) % many
        whole, last = flat.split([len(flat) - rest, rest])
        found.append(torch.stack([whole.view(torch.int64).sum(), last.view(torch.uint8).sum()]))
    return found


def _differ(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Return whether any checksums differ; False for meta tensors, which have no values."""
    pairs = zip(now, before, strict=True)
    return not all(one.is_meta or torch.equal(one, other) for one, other in pairs)


@dataclass(frozen=True)
class _Read:
    """A weight that was read outside of a pass, and what a write to it changes.

    The tensor itself, since `weight.data = values` moves no other one.
    """

    name: str
    weight: Tensor
    is_kept: bool
    version: int
    address: int
    sums: Tensor

    @classmethod
    def of(cls, name: str, weight: Tensor, is_kept: bool) -> _Read:
        """Return what `is_written` compares."""
        before = weight._version, weight.data_ptr(), _sums([weight])[0]
        return cls(name, weight, is_kept, *before)

    def is_written(self, through_data: bool = True) -> bool:
        """Return whether the weight was written to."""
        if self.weight._version != self.version:
            return True
        if not through_data or is_traced():  # which would trace the sums
            return False
        return self.weight.data_ptr() != self.address or _differ(_sums([self.weight]), [self.sums])


class _OpenPass(threading.local):
    """The forward pass that runs on one thread, and what it has generated.

    It ends when the call that opened it ends, even if Ctrl-C skips the closing hook.
    """

    opened_by: FrameType | None = None
    weights: WeightPass | None = None
    checked = False
    read: _Read | None = None
    hooks: saved_tensors_hooks | None = None

    def start(self, frame: FrameType | None) -> None:
        """Start with an empty cache, as opened by this frame (None: no pass)."""
        if self.hooks is not None:
            self.hooks.__exit__()
        self.opened_by, self.weights, self.checked, self.hooks = frame, None, False, None

    def recompute(self, weights: WeightPass) -> None:
        """Make autograd save no generated weights, unless other saved-tensor hooks are active."""
        self.weights = weights
        if not has_saved_tensors_hooks():
            self.hooks = saved_tensors_hooks(weights.pack, weights.unpack)
            self.hooks.__enter__()

    def is_running(self) -> bool:
        """Return whether the call that opened the pass still runs."""
        return self.opened_by is not None and is_executing(self.opened_by)


_last_step: list[object] = [None]
_alive: tuple[weakref.ref[SharedWeights], ...] = ()  # replaced as a whole: other threads read it
_adding = threading.Lock()


def _watch_optimizers(shared: SharedWeights) -> None:
    """Register `_note_step`: fused optimizers do not increase version counters."""
    global _alive
    with _adding:
        _alive = (*(ref for ref in _alive if ref() is not None), weakref.ref(shared))
        if _last_step[0] is None:
            _last_step[0] = object()
            register_optimizer_step_post_hook(_note_step)


def _note_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Increase the version counters of the shared tensors that an optimizer has changed."""
    _last_step[0] = object()
    ours = {
        id(tensor)
        for ref in _alive
        if (shared := ref()) is not None
        # The root may be empty while another thread copies the network.
        for name, tensor in list(shared.root.__dict__.get("_parameters", {}).items())
        if name.startswith(PREFIX)
    }
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in ours and parameter.grad is not None:
                torch.autograd.graph.increment_version(parameter)
