"""Relative errors of generated weights against trained ones."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Errors:
    """Relative errors |W - generated| / |W| (Frobenius norms).

    `layers` maps each layer's name to its error, `all` is the error over all layers. `outputs` is
    the error of the network's outputs on the first batch given to the fit, None without batches or
    if it is unknown; `reached` the part of the weights in layers that the batches reached.
    """

    layers: dict[str, float]
    all: float
    outputs: float | None = None
    reached: float | None = None

    def table(self) -> str:
        """Return the errors as text: one line for all layers, then one line per layer."""
        width = max(map(len, self.layers), default=0)
        lines = [f"  {name.ljust(width)}  {error:.4f}" for name, error in self.layers.items()]
        return "\n".join([f"fit      {self}", *lines])

    def __str__(self) -> str:
        worst = max(self.layers, key=self.layers.__getitem__, default="")
        largest = f" (at most {self.layers[worst]:.3g}: {worst})" if worst else ""
        outputs = "" if self.outputs is None else f", {self.outputs:.3g} of the outputs of a batch"
        if self.reached is not None and self.reached < 1:
            outputs += f"; the batches reached {self.reached:.0%} of the weights"
        return f"relative error {self.all:.3g} of {len(self.layers)} layers{largest}{outputs}"
