"""Trained networks: fitted to a budget, compared, folded into loops, pruned, distilled."""
