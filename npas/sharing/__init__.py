"""The method: share a network's parameters inside a budget. Needs torch alone."""

from npas.sharing.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme
from npas.sharing.budget import Budget, BudgetRequest, count_parameters, parse_budget
from npas.sharing.shapeshift import (
    is_shared,
    load,
    materialize,
    no_decay_names,
    plan,
    save,
    share,
    summary,
)

__all__ = [
    "Allocation",
    "Budget",
    "BudgetRequest",
    "GroupAllocation",
    "LayerAllocation",
    "Scheme",
    "count_parameters",
    "is_shared",
    "load",
    "materialize",
    "no_decay_names",
    "parse_budget",
    "plan",
    "save",
    "share",
    "summary",
]
