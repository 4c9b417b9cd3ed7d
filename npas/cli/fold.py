"""Fold a run's network: layers with similar coefficients become one, repeated blocks become loops.

It writes to `fold-0.99/` in the run's folder, named after the threshold: the layer similarity
matrix (`lsm`), its history if logged (`lsm_epochs`) and the folded architecture (`folded`), each as
.png and .svg; the network (`model.safetensors`, `folding.json`); and all figures (`fold.json`).
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from npas.cli import app, entry, experiments
from npas.cli.app import Job
from npas.config import LOG_FILE
from npas.reporting.folds import FILE_NAME
from npas.utils.checks import Ranged, join, within
from npas.utils.json_data import finite, read_log
from npas.utils.printing import figure

if TYPE_CHECKING:
    from torch import nn

    from npas.sharing.trained.folding import Folding
    from npas.training import Experiment

NAME = "npas-fold"
AUTO = "auto"
RECORDED = (  # fields of folding.json that fold.json repeats
    "tied", "blocks", "plain", "layers_before", "layers", "weights", "parameters_before",
    "parameters",
)  # fmt: skip
CANDIDATES = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class Fold(Ranged):
    """The keys of npas-fold.

    Layers whose coefficients' cosine is at least `threshold` are tied; auto takes the one of
    `CANDIDATES` that leaves the fewest layers while the metric on held-out data falls by at most
    `tolerance`. Tying changes the scale of activations, so batch norm statistics are recomputed on
    `recalibrate` training batches, without labels or gradients.
    """

    run: str
    threshold: float | Literal["auto"] = 0.99
    tolerance: Annotated[float, "[0, inf)"] = 0.5
    recalibrate: Annotated[int, "[0, inf)"] = 20
    split: Literal["test", "val"] = "test"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: str | None = None
    data: experiments.Data = field(default_factory=experiments.Data)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, float):
            within("threshold", self.threshold, "(0, 1]")
        app.check_out(self.out)


def run(options: Fold) -> Job:
    """Fold the network of the run's newest checkpoint, evaluate it, draw it and write it."""
    experiment = _restore(options)
    from npas.config import config_hash
    from npas.reporting.environment import environment
    from npas.sharing.trained import folding
    from npas.sharing.trained.layer_similarity import similarity
    from npas.utils.files import write_whole

    config, task, folder = experiment.config, experiment.task, experiments.folder_of(options.run)
    out = Path(options.out or folder / f"fold-{options.threshold}")
    matrices = [group.to_dict() for group in similarity(experiment.model)]
    if not matrices:
        raise ValueError(
            f"no layers of {options.run} mix the same templates: train one with"
            " sharing.templates=k, as +exp=digits_swrn"
        )
    # Without labels, of the last epoch: a curriculum's first epochs are easier.
    first = itertools.islice(experiment.batches(config.epochs - 1), max(1, options.recalibrate))
    inputs = [task.preprocess(batch.inputs) for batch in first]
    chosen: dict[str, Any] = {"threshold": options.threshold}
    if options.threshold == AUTO:
        chosen = _choose(experiment, options, inputs)
    networks, found = _fold(experiment, chosen["threshold"], options.recalibrate, inputs)
    recalibrated = networks.get("recalibrated", networks["tied"])
    folding_record = found.to_dict()
    record = {
        "exp": config.exp,
        "seed": config.seed,
        **({"unfinished": experiment.unfinished} if experiment.unfinished else {}),
        "config_hash": config_hash(config),
        "dataset": {"name": task.name, "source": task.source},
        **environment(),
        **{key: folding_record[key] for key in RECORDED},
        **chosen,
        "recalibrated_on": len(inputs) if "recalibrated" in networks else 0,
        "split": options.split,
        "metric": task.selection_metric,
        "metrics": {k: _measure(experiment, v, options.split) for k, v in networks.items()},
        "outputs_differ_by": _difference(networks["folded"], recalibrated, inputs[0]),
        "similarity": matrices,
        "history": _logged(options.run),
    }
    with app.writing(out):
        folding.save_folded(networks["folded"], found, out)
        text = json.dumps(record, indent=1, allow_nan=False, default=vars) + "\n"
        write_whole(out / FILE_NAME, text)
        drawn = _draw(record, out)
    app.echo(_report(record))
    written = [FILE_NAME, "folding.json", "model.safetensors", *["plots"] * bool(drawn)]
    app.echo(f"{out}: {join(written, 'and')}")
    return Job(options.run)


def _restore(options: Fold) -> Experiment:
    """Restore the run, with its data. Raises ValueError for a network that cannot be folded."""
    split, remedy = options.split, "set split=test"
    if options.threshold == AUTO:
        split, remedy = "val", "give a threshold, as threshold=0.99"
    experiment = experiments.restore_to_measure(
        options.run, options.device, options.data, split, remedy=remedy
    )
    if experiment.allocation is None:
        raise ValueError(f"{options.run} is of a dense network, which shares no layers to fold")
    if experiment.config.pruning.method is not None:
        raise ValueError(f"{options.run} prunes filters: layers with different masks do not fold")
    return experiment


def _fold(
    experiment: Experiment, threshold: float, recalibrate: int, inputs: Sequence[Any]
) -> tuple[dict[str, nn.Module], Folding]:
    """Return the network before, tied, recalibrated (if it has batch norms) and folded."""
    from npas.sharing.trained import folding, layer_similarity
    from npas.tasks.base import outputs
    from npas.training.averaging import measure_statistics

    networks, model = {"before": experiment.model}, copy.deepcopy(experiment.model)
    ties = layer_similarity.tie(model, threshold)
    networks["tied"] = copy.deepcopy(model)
    with experiment.precision.autocast():
        if recalibrate and measure_statistics(
            model, lambda: [outputs(model, given) for given in inputs]
        ):
            networks["recalibrated"] = copy.deepcopy(model)
    example = inputs[0] if isinstance(inputs[0], dict) else (inputs[0],)
    found = folding.fold_tied(model, ties, example)
    return networks | {"folded": model}, found


def _choose(experiment: Experiment, options: Fold, inputs: Sequence[Any]) -> dict[str, Any]:
    """Choose the threshold on held-out data; return it with all figures tried."""
    metric = experiment.task.selection_metric
    before = _measure(experiment, experiment.model, "val")[metric]
    tried: list[dict[str, Any]] = []
    for threshold in CANDIDATES:
        networks, found = _fold(experiment, threshold, options.recalibrate, inputs)
        value = _measure(experiment, networks["folded"], "val")[metric]
        counts = {"layers": found.layers, "weights": found.weights}
        tried.append({"threshold": threshold, metric: value, **counts})
    sign = -1 if experiment.task.lower_is_better else 1
    least = math.inf if before is None else sign * before - options.tolerance
    good = [e for e in tried if e[metric] is not None and sign * e[metric] >= least]
    if not good:
        raise ValueError(
            f"no threshold of {CANDIDATES[-1]} or more keeps val {metric} within tolerance="
            f"{options.tolerance} of {before}: allow more, or give a threshold"
        )
    best = min(good, key=lambda entry: (entry["layers"], entry["weights"]))
    chosen = {"chosen_on": f"val {metric}", "tolerance": options.tolerance, "tried": tried}
    return {"threshold": best["threshold"], **chosen}


def _measure(experiment: Experiment, model: nn.Module, split: str) -> dict[str, float | None]:
    """Evaluate; metrics that are not finite become None, for JSON."""
    with experiment.precision.autocast():
        return finite(experiment.task.evaluate(model, split))


def _difference(folded: nn.Module, tied: nn.Module, inputs: Any) -> float:
    """Return the largest difference of the networks' outputs, relative to the largest output."""
    import torch

    from npas.tasks.base import outputs

    with torch.no_grad():
        pairs = zip(outputs(folded.eval(), inputs), outputs(tied.eval(), inputs), strict=True)
        return max(
            float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
            for ours, theirs in pairs
        )


def _logged(run: str) -> list[dict[str, Any]]:
    """Return the similarity matrices, with epochs, that the run logged up to its checkpoint."""
    from npas.training.checkpoint import find_checkpoint

    last = find_checkpoint(Path(run)).progress.step
    return [
        {"epoch": record["epoch"], "similarity": record["similarity"]}
        for record in read_log(experiments.folder_of(run) / LOG_FILE)
        if "similarity" in record and record["step"] <= last
    ]


def _draw(record: dict[str, Any], out: Path) -> list[Path]:
    """Draw the similarities and the folded network; return the files, none without matplotlib."""
    from npas.reporting import fold_plots

    title = f"{record['exp']}, seed {record['seed']}"
    if "unfinished" in record:
        title += f" ({record['unfinished'].partition(';')[0]})"
    epochs = [(entry["epoch"], entry["similarity"]) for entry in record["history"]]
    drawn = fold_plots.similarity(record["similarity"], out / "lsm", title)
    drawn += fold_plots.similarity_over_epochs(epochs, out / "lsm_epochs", title)
    title += f", folded at {record['threshold']}"
    return drawn + fold_plots.folded(record["blocks"], out / "folded", title)


def _report(record: dict[str, Any]) -> str:
    metric, how = record["metric"], ""
    values = ", ".join(
        f"{name} {figure(metric, found[metric])}" for name, found in record["metrics"].items()
    )
    if "chosen_on" in record:
        how = f" (chosen on {record['chosen_on']})"
    lines = [record["unfinished"]] if "unfinished" in record else []
    lines += [
        f"threshold   {record['threshold']}{how}",
        f"layers      {record['layers_before']} before, {record['layers']} after, of"
        f" {record['weights']} different weights",
        f"parameters  {record['parameters_before']:,} before, {record['parameters']:,} after",
        f"{record['split']} {metric:7} {values}; outputs differ by"
        f" {record['outputs_differ_by']:.1e} of the largest",
    ]
    for loop in (block for block in record["blocks"] if block["times"] > 1):
        body = ", ".join(loop["blocks"][: loop["period"]])
        lines.append(f"loop        {loop['container']}: {body} runs {loop['times']} times")
    return "\n".join(lines)


main = entry.command(NAME, "fold", Fold, run)

if __name__ == "__main__":
    sys.exit(main())
