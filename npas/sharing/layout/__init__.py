"""Which values of which bank each layer reads: plans, exact in their budgets."""
