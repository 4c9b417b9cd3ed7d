"""Count the parameters that a run would train, without making its tensors."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from npas import models
from npas.config import DENSE, Config
from npas.reporting.compose import compose

if TYPE_CHECKING:
    from torch import nn


@functools.cache
def planned_count(*words: str) -> int:
    """Count what the run of these words trains, exactly; its groups must not need a search."""
    from npas.sharing import plan
    from npas.sharing.budget import count_parameters
    from npas.training.experiment import check_groups, plan_keywords

    config = compose(*words)
    model = _network(config)
    if config.budget == DENSE:
        return count_parameters(model)
    check_groups(config, model, None)
    return plan(model, config.budget, **plan_keywords(config, None)).budget.used


def dense_count(config: Config, width: float) -> int:
    """Count the dense network's parameters at this width."""
    from npas.sharing.budget import count_parameters

    model = dataclasses.replace(config.model, width=width)
    return count_parameters(_network(dataclasses.replace(config, model=model)))


def _network(config: Config) -> nn.Module:
    import torch

    from npas import tasks

    task = tasks.family(config.task.family).Task(
        config.task, config.data, seed=config.seed, device=torch.device("cpu")
    )
    with torch.device("meta"):
        return models.build(config.model, task.spec)
