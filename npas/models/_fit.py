"""Try whether a library's network can take the images of a task, before anything is read."""

import copy

import torch
from torch import nn

from npas.models import InputSpec

# Whatever networks say of images that they were not made for.
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def check(model: nn.Module, name: str, spec: InputSpec) -> None:
    """Show a network one image of the task's size, in eval mode; ValueError if it cannot take it.

    On the meta device, where that costs next to nothing; a few networks need a real one.
    """
    try:
        _show(copy.deepcopy(model).to("meta"), spec)
    except REFUSALS:
        if next(model.parameters()).is_meta:
            return
        try:
            _show(copy.deepcopy(model), spec)
        except REFUSALS as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            size = "x".join(map(str, spec.input_shape))
            raise ValueError(
                f"model.name={name} cannot take images of {size} ({said[:200]}): set task.size, or"
                " choose another model"
            ) from None


@torch.no_grad()
def _show(model: nn.Module, spec: InputSpec) -> None:
    model.eval()(spec.example(next(model.parameters()).device))
