"""How a layer's weight is computed from values of its bank."""
