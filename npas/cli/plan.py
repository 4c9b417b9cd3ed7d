"""Print what a training would allocate: layers, counts and FLOPs. Trains nothing.

npas-plan +exp=wrn_cifar100 budget=0.05
npas-plan +exp=resnet50_imagenet budget=18M format=json
npas-plan +exp=wrn_cifar100 check_data=true    # and looks whether the data are there, and whole
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas import config as schema
from npas.cli import app, entry, runs
from npas.cli.app import Job
from npas.config import Config
from npas.config.typed import convert

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
    form = convert(raw.pop("format"), Format, "format")
    reads = convert(raw.pop("check_data"), bool, "check_data")
    return Plan(runs.check_arguments(raw)[0], form, reads)


def run(plan: Plan) -> Job:
    """Print the plan."""
    from npas import models, sharing
    from npas.training.experiment import check_groups, plan_keywords

    config, is_json = plan.config, plan.format == "json"
    if not is_json:
        runs.warn_of_ignored(NAME, config)
    task = _task(config)
    model = models.build(config.model, task.spec)
    allocation = errors = None
    if config.sharing.fits and config.budget != schema.DENSE:
        allocation, errors = _fitted(config, task.spec)
    elif config.budget != schema.DENSE:
        grouping = _grouping(config)
        check_groups(config, model, grouping)
        allocation = sharing.plan(model, config.budget, **plan_keywords(config, grouping))
    taken = sharing.price(model, allocation, config.artifact)
    flops = inference_flops(model, task.spec)
    data = _data(task, model, config) if plan.check_data else {}
    if is_json:
        found = _dense_figures(model)
        if allocation is not None:
            figures = allocation.to_dict()
            found = {key: figures[key] for key in found}
        found |= {"flops": flops, "input_shape": list(task.spec.input_shape)}
        if errors is not None:
            found["errors"] = {"all": errors.all, "layers": errors.layers}
        found["artifact"] = {"bytes_before_compression": taken, "cap": config.cap}
        print(json.dumps(found | ({"data": data} if plan.check_data else {})))
    else:
        print(runs.plan_text(model, allocation))
        if allocation is not None and (note := _identical(allocation)) is not None:
            print(note)
        if errors is not None:
            print(errors.table())
        print(runs.artifact_text(taken, config))
        print(f"inference: {flops:,} FLOPs an input (2 a multiply-add), whatever the budget")
        real = _task(
            dataclasses.replace(config, data=dataclasses.replace(config.data, source="real"))
        )
        own, whole = ("x".join(map(str, each.spec.input_shape)) for each in (task, real))
        if own != whole:
            print(f"inputs: {own} of a synthetic run; the set's are {whole}")
        for name, line in data.items():
            print(f"data {name}: {line}")
    compared = task.compared if plan.check_data and config.data.verify == "refuse" else None
    if compared is not None and compared.difference is not None:
        raise ValueError(compared.difference)
    return Job(config.exp)


def _identical(allocation: Allocation) -> str | None:
    """Say how many layers have the very weight of another, and what tells them apart."""
    from npas.sharing.reading import Reading

    layers, twins = allocation.layers, Reading(allocation).twins
    pairs = [(layers[first].name, layers[i].name) for i, first in enumerate(twins) if first != i]
    if not pairs:
        return None
    return (
        f"note: {len(pairs)} of {len(layers)} layers have the very weight of another"
        f" ({' = '.join(pairs[0])}); sharing.low_rank=1 gives each layer a correction of its own,"
        " within the budget"
    )


def _fitted(config: Config, spec: InputSpec) -> tuple[Allocation, Errors]:
    """Fit a network to the trained weights that the config names; return plan and errors."""
    from npas import models
    from npas.sharing import api, install
    from npas.training import initial, seeding

    path = config.sharing.weights
    seeding.seed_torch(config.seed, "init")  # a head that stays fresh is that of the run
    model = models.build(config.model, spec)
    try:
        initial.fit(model, config, None if path is None else Path(path))
    except ValueError as error:
        raise ValueError(f"sharing.init={config.sharing.init}: {error}") from None
    errors = install.shared_weights(model).errors
    assert errors is not None
    return api.allocation(model), errors


def _task(config: Config) -> Task:
    import torch

    from npas import tasks

    family = tasks.family(config.task.family)
    cpu = torch.device("cpu")
    task: Task = family.Task(config.task, config.data, seed=config.seed, device=cpu)
    return task


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

    Operations are counted: counters that look layers up by class find no shared ones. By torch's
    formulas, without its counter, which imports the compiler to take apart what has none.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from npas.tasks.base import outputs

    counts = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                formula = flop_registry[func._overloadpacket]
                counts.append(formula(*args, **(kwargs or {}), out_val=found))
            return found

    model.to("meta").eval()
    with torch.no_grad(), Counter():
        outputs(model, spec.example("meta"))
    return sum(counts)


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


def _dense_figures(model: nn.Module) -> dict[str, Any]:
    """Return of a network that shares nothing what is printed of an allocation."""
    from npas.sharing import BudgetReport, count_parameters

    count = count_parameters(model)
    split = {"bank": 0, "coefficients": 0, "upsamplers": 0, "unshared": count}
    budget = BudgetReport.of_dense(count).to_dict()
    return {"budget": budget, "split": split, "groups": [], "layers": []}
