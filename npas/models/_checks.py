"""Check `model.*` keys, and the inputs of a task, before a network is trained.

Limits are there for typing errors: building such a network would fill the memory first.
"""

import copy
from typing import Any

import torch
from torch import nn

from npas.models import InputSpec
from npas.utils.checks import within


def in_range(config: Any, **limits: tuple[float, float]) -> None:
    """Raise ValueError unless each of these keys lies from its least to its most."""
    within("model", config, limits)


def rate(config: Any) -> None:
    """Raise ValueError unless `dropout` is a rate below 1."""
    if not 0 <= config.dropout < 1:
        raise ValueError(f"model.dropout={config.dropout}: give a rate from 0 up to, not with, 1")


def depth(config: Any, kind: str, step: int, rest: int, most: int = 1000) -> None:
    """Raise ValueError, with the nearest, unless the depth is `step` * n + `rest`, n at least 1."""
    in_range(config, depth=(-most, most))
    below = max(step + rest, config.depth - (config.depth - rest) % step)
    if below != config.depth:
        nearest = f"{below} or {below + step}" if config.depth > below else below
        said = f"a {kind} has {step}n + {rest} layers; the nearest is {nearest}"
        raise ValueError(f"model.depth={config.depth}: {said}")


def divides(config: Any, key: str, by: str = "heads") -> None:
    """Raise ValueError unless one key divides by the other."""
    in_range(config, **{by: (1, getattr(config, key))})
    if (whole := getattr(config, key)) % (part := getattr(config, by)):
        raise ValueError(f"model.{key}={whole} does not divide by model.{by}={part}")


def images(config: Any, spec: InputSpec, channels: int | None = None) -> None:
    """Raise ValueError unless inputs are images (channels, height, width) of so many channels."""
    if len(spec.input_shape) != 3 or channels not in (None, spec.input_shape[0]):
        asked = f"{channels}-channel images" if channels else "images"
        other = "a WRN as model=wrn_16_2" if channels else "another model"
        raise ValueError(
            f"model.family={config.family} reads {asked}, and an input of this task is"
            f" {'x'.join(map(str, spec.input_shape))}: choose another task, or {other}"
        )


@torch.no_grad()
def takes(model: nn.Module, name: str, spec: InputSpec) -> None:
    """Show a library's network one image, in eval mode; ValueError if it cannot take it.

    On the meta device, where that costs next to nothing; a few networks need a real one.
    """
    own = next(model.parameters()).device
    for device in (torch.device("meta"), own):
        try:
            copy.deepcopy(model).to(device).eval()(spec.example(device))
            return
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if own.type != "meta":
        size = "x".join(map(str, spec.input_shape))
        raise ValueError(
            f"model.name={name} cannot take images of {size} ({said[:200]}): set task.size, or"
            " choose another model"
        )
