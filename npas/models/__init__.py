"""The networks that npas trains: one module for each architecture family.

A family has `Config`, a dataclass of its `model.*` keys, and `build(config, spec)`; `family("wrn")`
returns the module `wrn`. If it also has `filters(network)`, its filters can be pruned. Modules with
a leading underscore are helpers. Other packages add families by `npas.utils.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from npas.utils import plugins
from npas.utils.checks import near

if TYPE_CHECKING:
    import torch
    from torch import nn


OUTPUTS = {
    "class": "one output for the whole input",
    "cell": "an output for every cell of the input",
    "text": "a class for the whole text",
    "span": "where in a text an answer starts and ends",
    "token": "the next token at every position of a text",
    "pretraining": "masked tokens of a text, and the order of its parts",
    "regions": "a score for each phrase and region of an image",
    "match": "a score for each sentence and image",
}


class Input(NamedTuple):
    """One of several inputs: its shape without the batch, and whether it is integer."""

    shape: tuple[int, ...]
    is_integer: bool = False


class Reader(NamedTuple):
    """The layers that read a conv's output, by name."""

    norm: str  # the norm after the conv
    layer: str  # the layer after that norm
    first: int = 0  # index of the conv's first channel there


@dataclass(frozen=True)
class InputSpec:
    """The inputs and outputs of a network.

    `input_shape` has no batch dimension: (channels, height, width) for images, (tokens,) for texts.
    Several inputs are in `inputs`, by name. `outputs` is a key of `OUTPUTS`, `num_classes` their
    number, for the whole input or each of its cells or tokens.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    outputs: str = "class"
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def width(self, name: str) -> int:
        return self.inputs[name].shape[-1]

    def example(self, device: torch.device | str) -> Any:
        """Return a batch of one example input: a tensor, or several by name."""
        import torch

        if self.inputs:  # 1 is valid for lengths and for token ids
            return {
                name: torch.ones(1, *shape, dtype=torch.int64, device=device)
                if is_integer
                else torch.zeros(1, *shape, device=device)
                for name, (shape, is_integer) in self.inputs.items()
            }
        is_text = self.outputs in ("text", "span", "pretraining")
        dtype = torch.int64 if is_text or self.outputs == "token" else None
        zeros = torch.zeros(1, *self.input_shape, dtype=dtype, device=device)
        if not is_text:
            return zeros
        if self.outputs == "text":
            # transformers would read the mask's values, which meta tensors do not have.
            mask = {} if zeros.is_meta else {"attention_mask": torch.ones_like(zeros)}
            return {"input_ids": zeros, **mask}
        # Not 1 x tokens, whose values transformers would read.
        whole = torch.ones(1, 1, *zeros.shape, dtype=torch.bool, device=device)
        return {"input_ids": zeros, "token_type_ids": zeros.clone(), "attention_mask": whole}


def family(name: str) -> Any:
    """Return the module of model family `name`; raises ValueError with similar names if unknown."""
    return find_family(__name__, "model", name)


def build(config: Any, spec: InputSpec, architecture: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network of a family's config for a task.

    A family's module lists its outputs, if not "class", as OUTPUTS = ("cell",). With
    `architecture`, from `architecture_of` for a network of this config, the network is built
    without the files that it was loaded from. Raises ValueError if the family cannot build it.
    """
    module = family(config.family)
    supported: tuple[str, ...] = getattr(module, "OUTPUTS", ("class",))
    if spec.outputs not in supported:
        raise ValueError(
            f"model.family={config.family} gives"
            f" {' or '.join(OUTPUTS[name] for name in supported)}, and the task needs"
            f" {OUTPUTS[spec.outputs]}: choose another model or another task"
        )
    extra = {} if architecture is None else {"architecture": architecture}
    return module.build(config, spec, **extra)


def architecture_of(config: Any, network: nn.Module) -> dict[str, Any] | None:
    """Return a network's architecture, as data for JSON, if its config does not determine it.

    Calls the family's `architecture(network)`; families without it return None.
    """
    describe: Any = getattr(family(config.family), "architecture", lambda network: None)
    return describe(network)


def filters_of(config: Any, network: nn.Module) -> dict[str, list[Reader]]:
    """Return the convs whose filters can be pruned, and the layers that read each.

    Not those whose output is added to another. Raises ValueError for a family without `filters`.
    """
    list_filters = getattr(family(config.family), "filters", None)
    if list_filters is None:
        raise ValueError(f"model.family={config.family} has no filters that can be pruned")
    return list_filters(network)


def find_family(package: str, kind: str, name: str, helpers: Collection[str] = ()) -> Any:
    """Import a family of a package, or of a plugin, by name; `helpers` are not families.

    A config can import no other module: other names raise ValueError, with similar names.
    """
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    own = {module.name for module in found if not module.name.startswith("_")} - set(helpers)
    if name in own:
        module = importlib.import_module(f"{package}.{name}")
        in_package = hasattr(module, "__path__")
        return importlib.import_module(f"{package}.{name}.task") if in_package else module
    if name in (others := plugins.names(kind)):
        return plugins.family(kind, name)
    raise ValueError(f"there is no {kind} family {name!r}; {near(name, sorted({*own, *others}))}")
