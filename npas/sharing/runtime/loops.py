"""Replace runs of equal modules in `nn.Sequential`s and `nn.ModuleList`s by `Loop`s.

Modules are equal if their weights are the same parameter objects (so banks play no role here).
Norms, biases and statistics may differ: each iteration keeps its own. An iteration is then a module
of its own that holds the first one's weights; no tensor is swapped during a forward pass, so that
checkpoints, threads, traces and compilers see a plain network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from npas.sharing.layers import require_network

_BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
NUMBER = "layer_idx"  # of transformers' layers: their index in a cache, used for nothing else
FOLDED = "_npas_folded"  # an attribute of networks with weights that folding has tied
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))


@dataclass(frozen=True)
class Repeat:
    """The modules `blocks` of a container became a loop over the first `period` of them."""

    container: str
    blocks: tuple[str, ...]
    period: int
    times: int
    own: int  # values that differ between iterations (norms, biases, statistics), over all of them


class Loop(nn.Module):
    """Apply a body several times in a row.

    `iterations` are those after the first: the body itself, or modules with its weights but their
    own norms, biases and statistics.
    """

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        first, *others = bodies
        common = {id(tensor) for tensor in _tensors(first)}
        self.body = first
        self.iterations = nn.ModuleList(
            other
            if any(id(tensor) not in common for tensor in _tensors(other)) or _is_numbered(other)
            else first
            for other in others
        )

    def forward(self, x: Any, *more: Any, **options: Any) -> Any:
        """Return x after all iterations; each gets the same further arguments."""
        x = self.body(x, *more, **options)
        for iteration in self.iterations:
            x = iteration(x, *more, **options)
        return x

    def extra_repr(self) -> str:
        return f"times={len(self.iterations) + 1}"

    def further(self) -> set[nn.Module]:
        """Return the modules of the iterations after the first, without the body's own."""
        return {*self.iterations.modules()} - {*self.body.modules()}

    def count_own(self) -> int:
        """Count the values of tensors that not all iterations share."""
        held = [
            {id(tensor): tensor for tensor in _tensors(body) if tensor.is_floating_point()}
            for body in (self.body, *self.iterations)
        ]
        common = set.intersection(*map(set, held))
        every = {key: tensor for tensors in held for key, tensor in tensors.items()}
        return sum(tensor.numel() for key, tensor in every.items() if key not in common)


def fold_repeats(model: nn.Module, lists: bool = False) -> list[Repeat]:
    """Replace every run of equal modules in an `nn.Sequential` by a `Loop`, in place.

    With `lists` in an `nn.ModuleList`, too, which is correct only if the network applies the list's
    modules one after the other. Modules are equal if they have the same structure and share all
    tensors of two or more dimensions, at least one. Returns the runs.
    """
    found: list[Repeat] = []
    # Children first, while every container still has its original name.
    for name, child in model.named_children():
        inner = fold_repeats(child, lists)
        found += (replace(r, container=f"{name}.{r.container}".rstrip(".")) for r in inner)
    if _is_container(model, lists):
        found += _fold_container(model)
    return found


def apply_repeats(model: nn.Module, repeats: Sequence[Repeat]) -> None:
    """Replace the runs that `fold_repeats` found in a network of the same architecture, in place.

    Raises AttributeError or KeyError if the network has no such modules.
    """
    for name, found in itertools.groupby(repeats, key=lambda repeat: repeat.container):
        container = model.get_submodule(name)
        for repeat in found:
            _replace(container, repeat.blocks, repeat.period)
        _number(container)


def refuse_folded(model: nn.Module) -> None:
    """Raise ValueError if the network has loops, or weights that folding has tied."""
    modules = require_network(model).modules()
    if FOLDED in model.__dict__ or any(isinstance(module, Loop) for module in modules):
        raise ValueError(
            "the network is folded already: fold the original network, and save folded ones with"
            " npas.sharing.save_folded"
        )


def block_containers(model: nn.Module, layers: Sequence[str]) -> dict[str, list[str]]:
    """Return the children's names of each container in which two or more modules hold `layers`.

    Containers are `nn.Sequential`s and `nn.ModuleList`s. Those that only hold others are left out.
    """
    found = {}
    for name, module in model.named_modules():
        if not _is_container(module, lists=True):
            continue
        start = f"{name}." if name else ""
        holding = {
            key for key in module._modules if any(la.startswith(f"{start}{key}.") for la in layers)
        }
        nested = {key for key in holding if _is_container(module._modules[key], lists=True)}
        if len(holding) > 1 and nested != holding:
            found[name] = [key for key, child in module._modules.items() if child is not None]
    return found


def list_blocks(containers: dict[str, list[str]], repeats: Sequence[Repeat]) -> list[Repeat]:
    """Return a `Repeat` for every module of the containers in order, one for those of a loop."""
    looped = {(repeat.container, repeat.blocks[0]): repeat for repeat in repeats}
    found: list[Repeat] = []
    for container, names in containers.items():
        rest = list(names)
        while rest:
            single = Repeat(container, (rest[0],), period=1, times=1, own=0)
            found.append(looped.get((container, rest[0]), single))
            del rest[: len(found[-1].blocks)]
    return found


def _is_container(module: nn.Module | None, lists: bool) -> bool:
    is_list = lists and type(module) is nn.ModuleList
    return is_list or (module is not None and type(module).forward is nn.Sequential.forward)


def _fold_container(container: nn.Module) -> list[Repeat]:
    names = [key for key, child in container._modules.items() if child is not None]
    signatures = [_Signature(container._modules[key]) for key in names]
    found, start = [], 0
    while start < len(names):
        period, times = _longest_run(signatures[start:])
        if times > 1:
            blocks = tuple(names[start : start + period * times])
            own = _replace(container, blocks, period)
            found.append(Repeat("", blocks, period, times, own))
        start += period * times
    _number(container)
    return found


def _number(container: nn.Module) -> None:
    """Renumber a container's remaining modules from 0."""
    if all(name.isdigit() for name in container._modules):
        left = list(container._modules.values())
        container._modules.clear()
        container._modules.update({str(i): module for i, module in enumerate(left)})


def _longest_run(signatures: Sequence[_Signature]) -> tuple[int, int]:
    """Return (period, times) of the repetition at the start that saves most modules, or (1, 1)."""
    best = (1, 1)
    for period in range(1, len(signatures) // 2 + 1):
        times = 1
        while signatures[times * period : (times + 1) * period] == signatures[:period]:
            times += 1
        saves_more = period * (times - 1) > best[0] * (best[1] - 1)
        if saves_more and any(signature.same for signature in signatures[:period]):
            best = (period, times)
    return best


class _Signature:
    """What must be equal in two modules that can be one body: structure and large tensors."""

    def __init__(self, module: nn.Module | None) -> None:
        self.modules: list[object] = []
        self.same: list[int] = []
        for name, part in module.named_modules(remove_duplicate=False) if module else ():
            plain = {
                key: id(value) if isinstance(value, Tensor) else value
                for key, value in vars(part).items()
                if key not in _BOOKKEEPING and key != NUMBER
            }
            hooks = [list(getattr(part, key).values()) for key in _HOOKS]
            self.modules.append((name, type(part), plain, hooks))
            for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is None:
                    self.modules.append((key, None))
                    continue
                self.modules.append((key, tensor.shape, tensor.dtype, tensor.device))
                if is_large(tensor):
                    self.same.append(id(tensor))

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, _Signature)
        if self.same != other.same:
            return False
        try:
            return bool(self.modules == other.modules)
        except (RuntimeError, ValueError, TypeError):  # attributes whose == is not a bool
            return False

    __hash__ = None  # type: ignore[assignment]


def is_large(tensor: Tensor) -> bool:
    """Return whether a tensor has two or more non-unit dimensions, unlike norms and biases."""
    return sum(length > 1 for length in tensor.shape) > 1


def _replace(container: nn.Module, blocks: Sequence[str], period: int) -> int:
    """Replace these modules by a loop; return the number of values that its iterations own."""
    chosen = [module for name in blocks if (module := container._modules[name]) is not None]
    bodies = chosen
    if period > 1:
        starts = range(0, len(chosen), period)
        bodies = [nn.Sequential(*chosen[start : start + period]) for start in starts]
    loop = Loop(bodies)
    for module in (loop, loop.iterations, *(bodies if period > 1 else ())):
        module.training = container.training  # the bodies keep their own modes
    container._modules[blocks[0]] = loop
    for name in blocks[1:]:
        del container._modules[name]
    return loop.count_own()


def _is_numbered(module: nn.Module) -> bool:
    return any(NUMBER in vars(part) for part in module.modules())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
