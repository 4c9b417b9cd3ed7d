"""Print the allocation of a run: layers, counts and FLOPs. Trains nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas import config as schema
from npas.cli import app, entry, experiments
from npas.cli.app import Job
from npas.config import Config
from npas.utils.json_data import decode

if TYPE_CHECKING:
    from torch import nn

    from npas.sharing import Allocation, Errors
    from npas.tasks.base import Task
    from npas.training.grouping import Grouping

NAME = "npas-plan"
Format = Literal["table", "json"]
EMBEDDINGS = ("embedding", "embeddingbag")
FEW = 0.25  # of the budget: smaller embeddings are advised to stay out of a bank


@dataclass(frozen=True)
class Plan:
    """The keys of npas-plan: those of npas-train, the output format, and whether to read data."""

    config: Config
    format: Format
    check_data: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-plan and return its exit code."""
    return entry.main(app.Command(NAME, "plan", keys, check, run), argv)


def keys() -> set[str]:
    """Return the full names of the keys."""
    return {*schema.known_keys(), "format", "check_data", "run"}


def check(raw: dict[str, Any]) -> Plan:
    """Check the config and the command's own keys. Raises ValueError."""
    form = decode(Format, raw.pop("format"), "format")
    reads = decode(bool, raw.pop("check_data"), "check_data")
    return Plan(experiments.check_arguments(raw), form, reads)


def run(plan: Plan) -> Job:
    """Print the plan."""
    from npas import sharing
    from npas.tasks.base import inference_flops
    from npas.training import pruning
    from npas.training.experiment import build_dense, build_task, plan_keywords

    config, is_json = plan.config, plan.format == "json"
    if not is_json:
        experiments.warn_of_ignored(NAME, config)
    task = build_task(config)
    network = config.model
    if getattr(network, "pretrained", None):  # counts and shapes need no weights
        network = dataclasses.replace(network, pretrained=None)
    model = build_dense(dataclasses.replace(config, model=network), task.spec)
    allocation = errors = None
    if config.sharing.fits and config.budget != schema.DENSE:
        allocation, errors = _fitted(config, task)
    elif config.budget != schema.DENSE:
        grouping = _grouping(config)
        allocation = sharing.plan(model, config.budget, **plan_keywords(config, grouping))
    taken = sharing.price(model, allocation, config.artifact)
    flops = inference_flops(model, task.spec)
    used = allocation.budget.used if allocation else sharing.count_parameters(model)
    left = pruning.planned(config, task.spec, used) if config.pruning.method else None
    data = _data(task, model, config) if plan.check_data else {}
    if is_json:
        split = {"bank": 0, "coefficients": 0, "upsamplers": 0, "unshared": used}
        budget = sharing.BudgetReport.of_dense(used).to_dict()
        dense = {"budget": budget, "split": split, "groups": [], "layers": []}
        figures = dense if allocation is None else allocation.to_dict()
        found: dict[str, Any] = {key: figures[key] for key in dense}
        found |= {"flops": flops, "input_shape": list(task.spec.input_shape)}
        if errors is not None:
            found["errors"] = dataclasses.asdict(errors)
        if left is not None:
            found["pruning"] = dataclasses.asdict(left)
        found["artifact"] = {"bytes_before_compression": taken, "cap": config.cap}
        app.echo(json.dumps(found | ({"data": data} if plan.check_data else {})))
    else:
        app.echo(experiments.plan_text(model, allocation))
        for note in _notes(allocation) if allocation is not None else []:
            app.echo(f"note: {note}")
        named = {"sharing.init": config.sharing.weights, "distill.teacher": config.distill.teacher}
        for key, path in named.items():
            if path not in (None, schema.DENSE) and not Path(path).exists():
                app.echo(f"note: {key}={path} does not exist yet")
        if errors is not None:
            app.echo(errors.table())
        app.echo(experiments.artifact_text(taken, config))
        app.echo(f"inference: {flops:,} FLOPs per input (2 per multiply-add), for any budget")
        if left is not None:
            app.echo(str(left))
        for name, line in data.items():
            app.echo(f"data {name}: {line}")
    if plan.check_data:
        _refuse_difference(task)
    return Job(config.exp)


def _refuse_difference(task: Task) -> None:
    """Raise ValueError if the data that were read are not the published ones."""
    if task.data.verify == "refuse" and task.compared.difference:
        raise ValueError(task.compared.difference)


def _notes(allocation: Allocation) -> list[str]:
    """Return notes on known weaknesses of a plan, with what does better."""
    from npas.sharing.generators.bases import BASES
    from npas.sharing.generators.codebook import CODEBOOK
    from npas.sharing.generators.coefficients import OF_DEPTH
    from npas.sharing.generators.hashing import HASH
    from npas.sharing.runtime.reading import Reading

    notes, layers, others = [], allocation.layers, (CODEBOOK, HASH, *BASES)
    twins = Reading(allocation).twins
    pairs = [(layers[first].name, layers[i].name) for i, first in enumerate(twins) if first != i]
    if pairs:
        notes.append(
            f"{len(pairs)} of {len(layers)} layers have the same weight as another"
            f" ({' = '.join(pairs[0])}); sharing.generator=hash gives each layer its own"
            " (docs/choosing.md)"
        )
    start = allocation.scheme.coefficient_init
    if start in OF_DEPTH:
        many = [
            f"group {group.name} mixes {k} templates in {len(layers)} layers by {start}"
            " coefficients: on text that did far worse than no more templates than layers"
            " (docs/choosing.md)"
            for group in allocation.groups
            for (_, k), layers in group.rows.items()
            if k > len(layers)
        ]
        notes += many[:1]
    for group in allocation.groups:
        own = [layer for layer in group.layers if layer.kind in EMBEDDINGS and layer.templates]
        size = sum(layer.size for layer in own if layer.upsampler not in others)
        if 0 < size <= FEW * allocation.budget.allowed:
            notes.append(
                f"{own[0].name} reads templates: on text it did better to leave embeddings out"
                f" ({size:,} parameters), sharing=no_embeddings"
            )
    return notes


def _fitted(config: Config, task: Task) -> tuple[Allocation, Errors]:
    """Fit a network to the config's trained weights; return its allocation and errors."""
    from npas.sharing import api
    from npas.sharing.runtime import install
    from npas.training import initial
    from npas.training.experiment import build_network

    model = build_network(config, task.spec)
    try:
        initial.load_weights_of(model, config)
        initial.fit(model, config, task)
    except ValueError as error:
        raise ValueError(f"sharing.init={config.sharing.init}: {error}") from None
    errors = install.shared_weights(model).errors
    assert errors is not None
    return api.allocation(model), errors


def _data(task: Task, model: nn.Module, config: Config) -> dict[str, str]:
    """Read the data; return lines on their files and on one batch."""
    from npas.tasks import base

    task.compared.collects = True  # collect differences, to be refused after printing
    try:
        task.setup()
    except ValueError:
        _refuse_difference(task)  # which explains what else is wrong with them
        raise
    task.check_network(model)
    batch = next(base.batches(task, 0, config.batch_size, workers=config.data.workers))
    tensors = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
    shapes = [
        f"{name} {'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in tensors.items()
    ]
    return {"source": task.source, **task.inspect(), "batch": ", ".join(shapes)}


def _grouping(config: Config) -> Grouping | None:
    """Return the groups found by the run of this config. Raises ValueError if there are none."""
    from npas.training import stored_grouping

    folder = schema.run_dir(config)
    grouping = stored_grouping(config, folder)
    if grouping is None and schema.search_epochs(config):
        raise ValueError(
            f"sharing.groups={config.sharing.groups} finds its groups in training, but {folder} has"
            " none yet: run npas-train with the same arguments first, or plan with"
            " sharing.groups=single sharing.num_groups=null"
        )
    return grouping


if __name__ == "__main__":
    sys.exit(main())
