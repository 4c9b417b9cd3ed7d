"""Check `model.*` keys, and that a network can read a task's inputs.

The upper limits catch typing errors, before building such a network fills the memory.
"""

import copy
from typing import Any

import torch
from torch import nn

from npas.models import InputSpec
from npas.utils.checks import within
from npas.utils.files import reason


def depth(config: Any, kind: str, step: int, rest: int, most: int = 1000) -> None:
    """Raise ValueError unless the depth is `step` * n + `rest`, with n at least 1."""
    within("model.depth", config.depth, f"[{step + rest}, {most}]")
    if more := (config.depth - rest) % step:
        below = config.depth - more
        raise ValueError(
            f"model.depth={config.depth}: a {kind} has {step}n + {rest} layers; the nearest is"
            f" {below} or {below + step}"
        )


def divides(config: Any, key: str, by: str = "heads") -> None:
    """Raise ValueError unless the value of `key` is divisible by that of `by`."""
    within(f"model.{by}", getattr(config, by), f"[1, {getattr(config, key)}]")
    if (whole := getattr(config, key)) % (part := getattr(config, by)):
        raise ValueError(f"model.{key}={whole} is not divisible by model.{by}={part}")


def images(config: Any, spec: InputSpec, channels: int | None = None) -> None:
    """Raise ValueError unless inputs are images, with so many channels if these are given."""
    if len(spec.input_shape) != 3 or channels not in (None, spec.input_shape[0]):
        raise ValueError(
            f"model.family={config.family} reads {channels or 'any'}-channel images, and an input"
            f" of this task is {'x'.join(map(str, spec.input_shape))}: choose another task, or a"
            " WRN such as model=wrn_16_2"
        )


@torch.no_grad()
def takes(model: nn.Module, name: str, spec: InputSpec) -> None:
    """Raise ValueError if a library's network cannot run one image in eval mode."""
    # On the meta device, which costs little, or else on a real one, which a few networks need.
    own = next(model.parameters()).device
    for device in (torch.device("meta"), own):
        try:
            copy.deepcopy(model).to(device).eval()(spec.example(device))
            return
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = reason(error)
    if own.type != "meta":
        size = "x".join(map(str, spec.input_shape))
        raise ValueError(f"model.name={name} cannot take images of {size} ({why}): set task.size")
