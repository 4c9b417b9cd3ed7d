"""Keep a moving average of a network's weights, to be measured and exported in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Average what is floating in a network's state: parameters and statistics of norms.

    The decay grows to its full value, min(decay, (1 + t) / (10 + t)) at update t, so that a short
    training is not left with its random beginning.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        state = model.state_dict()
        self.tensors = {k: v.clone() for k, v in state.items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that optimizer step `step`, counted from 1, has come to."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.model.state_dict()
        torch._foreach_lerp_(
            list(self.tensors.values()), [state[name] for name in self.tensors], 1 - decay
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from stored averages."""
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensors[name].to(tensor)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the network for the length of a `with`."""
        last = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(last)
