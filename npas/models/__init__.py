"""Build the networks that npas trains: one architecture family a module of this folder.

A family is a module that offers `Config` (a dataclass: the closed set of its `model.*` keys) and
`build(config, spec)`. There is no table to keep: `family("wrn")` finds `wrn.py`. Modules whose
name starts with an underscore are helpers and no families. Other packages bring families as
`npas.utils.plugins` says. Of a family that offers `filters(network)` filters can be pruned.
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
    "class": "one answer for the whole input",
    "cell": "an answer for every cell of the input",
    "text": "a class for the whole text",
    "span": "where in a text an answer starts and ends",
    "token": "what comes next at every place of a text",
    "pretraining": "the words hidden in a text, and the order of its halves",
    "regions": "how well each phrase fits each region of an image",
    "match": "how well each sentence fits each image",
}


class Input(NamedTuple):
    """One of several inputs: its shape without the batch, and whether it counts things."""

    shape: tuple[int, ...]
    is_integer: bool = False


class Reader(NamedTuple):
    """What reads a conv's filters: the norm behind it, that norm's reader, its first channel."""

    norm: str
    layer: str
    first: int = 0


@dataclass(frozen=True)
class InputSpec:
    """What a network reads and answers.

    `input_shape` leaves out the batch dimension: (channels, height, width) for images, (tokens,)
    for texts. A network of several inputs has them by name in `inputs`. What is answered is one of
    `OUTPUTS`: by `num_classes` numbers for the input, or that many for each of its cells; for texts
    the network says itself how many.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    outputs: str = "class"
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def width(self, name: str) -> int:
        """Return the last dimension of one of several inputs: how many numbers describe a thing."""
        return self.inputs[name].shape[-1]

    def example(self, device: torch.device | str) -> Any:
        """Return one empty input as training feeds it: a tensor, or several by name."""
        import torch

        if self.inputs:  # a count of at least 1 is what a count may be, and so may a word's number
            return {
                name: torch.ones(1, *shape, dtype=torch.int64, device=device)
                if is_integer
                else torch.zeros(1, *shape, device=device)
                for name, (shape, is_integer) in self.inputs.items()
            }
        if self.outputs == "token":
            return torch.zeros(1, *self.input_shape, dtype=torch.int64, device=device)
        if self.outputs not in ("text", "span", "pretraining"):
            return torch.zeros(1, *self.input_shape, device=device)
        zeros = torch.zeros(1, *self.input_shape, dtype=torch.int64, device=device)
        if self.outputs == "text":
            # On the meta device, where nothing has a value to look at, no mask means all is text.
            mask = {} if zeros.is_meta else {"attention_mask": torch.ones_like(zeros)}
            return {"input_ids": zeros, **mask}
        # As attention asks for it: given 1 x tokens, transformers would look at its values.
        whole = torch.ones(1, 1, *zeros.shape, dtype=torch.bool, device=device)
        return {"input_ids": zeros, "token_type_ids": zeros.clone(), "attention_mask": whole}


def family(name: str) -> Any:
    """Return the module of model family `name`. ValueError, with near names, if there is none."""
    return find_family(__name__, "model", name)


def build(config: Any, spec: InputSpec, architecture: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network of a family's config for a task's inputs.

    A family whose networks answer anything but a class says so: OUTPUTS = ("cell",). With an
    `architecture`, what `architecture_of` returned for a network of this config, that network is
    built again without the files it was loaded from. ValueError where the task asks for something
    else, or for what the family cannot build.
    """
    module = family(config.family)
    given: tuple[str, ...] = getattr(module, "OUTPUTS", ("class",))
    if spec.outputs not in given:
        raise ValueError(
            f"model.family={config.family} gives {' or '.join(OUTPUTS[name] for name in given)},"
            f" and the task asks for {OUTPUTS[spec.outputs]}: choose another model or another task"
        )
    again = {} if architecture is None else {"architecture": architecture}
    network: nn.Module = module.build(config, spec, **again)
    return network


def architecture_of(config: Any, network: nn.Module) -> dict[str, Any] | None:
    """Return, as JSON-able data, what a network is beyond its config: None for most families.

    A family that may load a network offers `architecture(network)`.
    """
    describe = getattr(family(config.family), "architecture", None)
    found: dict[str, Any] | None = describe(network) if describe else None
    return found


def filters_of(config: Any, network: nn.Module) -> dict[str, list[Reader]]:
    """Return the convs of a network whose filters can be taken out, and all that reads each.

    What is added to something else is not among them: its channels are not its own. ValueError for
    a family that does not say so.
    """
    say = getattr(family(config.family), "filters", None)
    if say is None:
        raise ValueError(
            f"model.family={config.family} has no filters that can be pruned: choose vgg,"
            " resnet_cifar, wrn or densenet"
        )
    found: dict[str, list[Reader]] = say(network)
    return found


def find_family(package: str, kind: str, name: str, helpers: Collection[str] = ()) -> Any:
    """Import `package.name` if it is one of the package's own family modules, or a plugin's.

    `helpers` are its modules that are no families. The listing keeps a config from naming any
    other importable module.
    Raises ValueError, naming the `kind` of family and near names, for anything else.
    """
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    own = {module.name for module in found if not module.name.startswith("_")} - set(helpers)
    if name in own:
        return importlib.import_module(f"{package}.{name}")
    if name in (others := plugins.names(kind)):
        return plugins.family(kind, name)
    raise ValueError(f"there is no {kind} family {name!r}; {near(name, sorted({*own, *others}))}")
