"""Share a network's parameters inside a budget; depends on torch only.

`layers` finds the shareable tensors, `allocator` plans the banks (`allocation` is the plan),
`install` puts them into the network, `weights` and `generation` make weights in a forward pass.
"""

from npas.sharing.api import load, save, share, summary
from npas.sharing.budget import Budget, BudgetReport, count_parameters, parse_budget
from npas.sharing.compression.artifact import read_artifact, write_artifact
from npas.sharing.compression.pricing import price
from npas.sharing.layout.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme
from npas.sharing.optimizer_groups import no_decay_names, param_groups
from npas.sharing.planning import plan
from npas.sharing.runtime.errors import Errors
from npas.sharing.runtime.install import is_shared, materialize
from npas.sharing.trained.distillation import distillation_loss
from npas.sharing.trained.fitting import weight_errors
from npas.sharing.trained.folding import Folding, fold, load_folded, save_folded
from npas.sharing.trained.layer_similarity import Similarity, recurrence_reward, similarity
from npas.sharing.trained.pruning import feature_ranks, mask_filters, prune_filters, resize, shrink
from npas.utils.packing import Artifact, Packing

__all__ = [
    "Allocation",
    "Artifact",
    "Budget",
    "BudgetReport",
    "Errors",
    "Folding",
    "GroupAllocation",
    "LayerAllocation",
    "Packing",
    "Scheme",
    "Similarity",
    "count_parameters",
    "distillation_loss",
    "feature_ranks",
    "fold",
    "is_shared",
    "load",
    "load_folded",
    "mask_filters",
    "materialize",
    "no_decay_names",
    "param_groups",
    "parse_budget",
    "plan",
    "price",
    "prune_filters",
    "read_artifact",
    "recurrence_reward",
    "resize",
    "save",
    "save_folded",
    "share",
    "shrink",
    "similarity",
    "summary",
    "weight_errors",
    "write_artifact",
]
