"""How far generated weights are from given ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Errors:
    """How far generated weights are from given ones: |W - generated| / |W|.

    `layers` has each layer of the plan, `all` is the same of all together, and `outputs` of the
    network's outputs for the first batch that the fit was given, if any.
    """

    layers: dict[str, float]
    all: float
    outputs: float | None = None

    def table(self) -> str:
        """Return the errors as text, a line for all together and one for each layer."""
        width = max(map(len, self.layers), default=0)
        lines = [f"  {name.ljust(width)}  {error:.4f}" for name, error in self.layers.items()]
        return "\n".join([f"fit      {self}", *lines])

    def __str__(self) -> str:
        worst = max(self.layers, key=self.layers.__getitem__, default="")
        at_most = f" (at most {self.layers[worst]:.3g}: {worst})" if worst else ""
        own = "" if self.outputs is None else f", {self.outputs:.3g} of the outputs of a batch"
        return f"relative error {self.all:.3g} of {len(self.layers)} layers{at_most}{own}"
