"""A callback for transformers' Trainer; no other module of npas imports transformers' Trainer."""

import warnings
from typing import Any

from transformers import TrainerCallback

from npas.sharing import count_parameters, is_shared, no_decay_names, summary
from npas.sharing.api import allocation


class BudgetCallback(TrainerCallback):
    """Print a shared network's allocation when training starts, and check its budget.

    Raises ValueError if the network is not shared, or if added modules exceed its budget. Warns if
    the optimizer lacks parameters or decays coefficients, as the Trainer's own optimizer does.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check the network; print and warn on the main process only."""
        model, optimizer = given["model"], given.get("optimizer")
        model = getattr(model, "module", model)
        if not is_shared(model):
            raise ValueError("the Trainer's network is not shared: npas.share it first")
        used, budget = count_parameters(model), allocation(model).budget
        if used > budget.allowed:
            raise ValueError(
                f"the network trains {used:,} parameters, but its budget {budget.asked} allows"
                f" {budget.allowed:,}: something was added after npas.share"
            )
        if not state.is_world_process_zero:
            return
        print(summary(model))
        if optimizer is None:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        decays = {
            parameter: bool(group.get("weight_decay"))
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        spared = no_decay_names(model)
        if lost := [name for name, parameter in named.items() if parameter not in decays]:
            warnings.warn(f"the optimizer lacks {lost[0]} ({len(lost)} in all)", stacklevel=2)
        if wrong := [n for n in spared if n in named and decays.get(named[n])]:
            warnings.warn(
                f"the optimizer decays {wrong[0]} ({len(wrong)} in all): give the Trainer"
                " optimizers=(torch.optim.AdamW(npas.param_groups(model, weight_decay)), None)",
                stacklevel=2,
            )
