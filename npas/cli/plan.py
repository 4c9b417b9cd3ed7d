"""Print what a training would allocate: layers, counts and FLOPs. Trains nothing.

npas-plan +exp=wrn_cifar100 budget=0.05
npas-plan +exp=resnet50_imagenet budget=18M format=json
npas-plan +exp=wrn_cifar100 check_data=true    # and looks whether the data are there, and whole
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas import config as schema
from npas.cli import app, entry, runs
from npas.cli.app import Job
from npas.config import Config
from npas.config.typed import convert, unknown_key

if TYPE_CHECKING:
    from torch import nn

    from npas.models import InputSpec
    from npas.sharing import Allocation, Errors
    from npas.tasks.base import Task
    from npas.training.grouping import Grouping

NAME = "npas-plan"
Format = Literal["table", "json"]


@dataclass(frozen=True)
class Plan:
    """The keys of npas-plan: those of npas-train, how to print, and whether to read the data."""

    config: Config
    format: Format
    check_data: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Plan what the arguments describe; see the top of this file."""
    return entry.main(app.Command(NAME, "plan", keys, check, run), argv)


def keys() -> set[str]:
    """Return the full names of the keys."""
    return {*schema.known_keys(), "format", "check_data", "run"}


def check(raw: dict[str, Any]) -> Plan:
    """Check the config and the command's own keys; ValueError."""
    form = convert(raw.pop("format", "table"), Format, "format")
    reads = convert(raw.pop("check_data", False), bool, "check_data")
    for name in raw.keys() - {key.partition(".")[0] for key in keys()}:
        raise ValueError(unknown_key(name, keys()))
    return Plan(runs.check_arguments(raw)[0], form, reads)


def run(plan: Plan) -> Job:
    """Print the plan."""
    import torch

    from npas import models, sharing, tasks
    from npas.training.experiment import check_groups, plan_keywords

    config = plan.config
    if plan.format == "table":
        runs.warn_of_ignored(NAME, config)
    task = tasks.family(config.task.family).Task(
        config.task, config.data, seed=config.seed, device=torch.device("cpu")
    )
    model = models.build(config.model, task.spec)
    allocation = errors = None
    if config.sharing.fits and config.budget != schema.DENSE:
        allocation, errors = _fitted(model, config)
        model = models.build(config.model, task.spec)
    elif config.budget != schema.DENSE:
        grouping = _grouping(config)
        check_groups(config, model, grouping)
        keywords = plan_keywords(config, grouping)
        allocation = sharing.plan(model, config.budget, **keywords)
    flops = inference_flops(model, task.spec)
    data = _data(task, model, config) if plan.check_data else {}
    if plan.format == "json":
        found = {"data": data} if plan.check_data else {}
        shape = list(task.spec.input_shape)
        figures = {**_figures(model, allocation), "flops": flops, "input_shape": shape}
        if errors is not None:
            figures["errors"] = {"all": errors.all, "layers": errors.layers}
        print(json.dumps(figures | found))
    else:
        print(runs.plan_text(model, allocation))
        if errors is not None:
            print(errors.table())
        print(f"inference: {flops:,} FLOPs an input (2 a multiply-add), whatever the budget")
        if note := _of_synthetic_inputs(task, config):
            print(note)
        for name, line in data.items():
            print(f"data {name}: {line}")
    compared = task.compared if plan.check_data and config.data.verify == "refuse" else None
    if compared is not None and compared.difference is not None:
        raise ValueError(compared.difference)
    return Job(config.exp)


def _fitted(model: nn.Module, config: Config) -> tuple[Allocation, Errors]:
    """Fit a network to the trained weights that the config names; return plan and errors."""
    from npas.sharing import api, install
    from npas.training import initial

    path = config.sharing.weights
    try:
        initial.fit(model, config, None if path is None else Path(path))
    except ValueError as error:
        raise ValueError(f"sharing.init={config.sharing.init}: {error}") from None
    errors = install.shared_weights(model).errors
    assert errors is not None
    return api.allocation(model), errors


def _of_synthetic_inputs(task: Task, config: Config) -> str:
    """Return a note if synthetic inputs are smaller than the real set's, else nothing."""
    import torch

    from npas import tasks

    real = tasks.family(config.task.family).Task(
        config.task,
        dataclasses.replace(config.data, source="real"),
        seed=config.seed,
        device=torch.device("cpu"),
    )
    own, whole = ("x".join(map(str, t.spec.input_shape)) for t in (task, real))
    return "" if own == whole else f"inputs: {own} of a synthetic run; the set's are {whole}"


def _data(task: Task, model: nn.Module, config: Config) -> dict[str, str]:
    """Read the data and say what they are, and what one batch is.

    ValueError if they are not there, or not what this network can read.
    """
    from npas.tasks import base

    if task.compared is not None:
        task.compared.collects = True  # what differs is printed, too, and refused then
    task.setup()
    task.check_network(model)
    batch = next(base.batches(task, 0, config.batch_size, workers=config.data.workers))
    tensors = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
    shapes = [
        f"{name} {'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in tensors.items()
    ]
    return {"source": task.source, **task.inspect(), "batch": ", ".join(shapes)}


def inference_flops(model: nn.Module, spec: InputSpec) -> int:
    """Count the FLOPs of one input's forward pass; moves the model to the meta device.

    Operations are counted: counters that look layers up by class find no shared ones.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from npas.tasks.base import outputs

    model.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs(model, spec.example("meta"))
    return counter.get_total_flops()


def _grouping(config: Config) -> Grouping | None:
    """Return the groups that the run of this config has found; ValueError if it has not yet."""
    from npas.training import stored_grouping

    folder = schema.run_dir(config)
    grouping = stored_grouping(config, folder)
    if grouping is None and schema.search_epochs(config):
        raise ValueError(
            f"sharing.groups={config.sharing.groups} finds its groups in training, and {folder} has"
            " none yet: run npas-train with the same arguments first, or plan with"
            " sharing.groups=single sharing.num_groups=null"
        )
    return grouping


def _figures(model: nn.Module, allocation: Allocation | None) -> dict[str, Any]:
    from npas.sharing import count_parameters
    from npas.sharing.budget import BudgetReport

    if allocation is not None:
        plan = allocation.to_dict()
        return {key: plan[key] for key in ("budget", "split", "groups", "layers")}
    count = count_parameters(model)
    split = {"bank": 0, "coefficients": 0, "upsamplers": 0, "unshared": count}
    budget = BudgetReport(schema.DENSE, dense=count, allowed=count, used=count)
    return {"budget": budget.to_dict(), "split": split, "groups": [], "layers": []}


if __name__ == "__main__":
    sys.exit(main())
