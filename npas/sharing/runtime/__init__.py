"""Banks in a network: how and when weights are generated, kept, checked and stored."""
