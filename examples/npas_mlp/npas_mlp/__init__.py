"""A network of one's own for npas."""
