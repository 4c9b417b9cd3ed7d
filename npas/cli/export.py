"""Export a run's network as a plain dense network, or quantized and compressed."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas.cli import app, entry, experiments
from npas.cli.app import Job
from npas.config import CONFIG_FILE, RESULT_FILE
from npas.utils.checks import one_line
from npas.utils.packing import KEYS

if TYPE_CHECKING:
    from torch import nn

    from npas.models import InputSpec
    from npas.training import Experiment

NAME = "npas-export"


@dataclass(frozen=True)
class Export:
    """The keys of npas-export; by default `out` is in the run's folder.

    The last three are for artifacts, and by default the run's own.
    """

    run: str
    format: Literal["safetensors", "onnx", "artifact", "hub"] = "safetensors"
    out: str | None = None
    bits: Literal[8, 6] | None = None
    scheme: Literal["rows", "golf"] | None = None
    compression: Literal["zlib", "lzma", "none"] | None = None

    def __post_init__(self) -> None:
        if self.format != "artifact" and (given := self.packing):
            raise ValueError(f"{next(iter(given))} needs format=artifact: set both, or none")
        suffix = {"hub": "", "artifact": ".npas"}.get(self.format, f".{self.format}")
        app.check_out(self.out, suffix)  # before a network is loaded

    @property
    def packing(self) -> dict[str, Any]:
        """Return the artifact's settings that were given."""
        return {name: value for name in KEYS if (value := getattr(self, name)) is not None}

    def path(self, name: str) -> Path:
        """Return where to write; `name` is the default, within the run's folder."""
        return Path(self.out or experiments.folder_of(self.run) / "export" / name)


def run(options: Export) -> Job:
    """Write the newest checkpoint's network, materialized or packed."""
    experiment = experiments.restore(options.run, {"trainer.device": "cpu"})
    write = {"artifact": _write_artifact, "hub": _write_hub}.get(options.format, _write_dense)
    for line in (*write(options, experiment), experiment.unfinished):
        if line:
            app.echo(line)
    return Job(options.run)


def _write_dense(options: Export, experiment: Experiment) -> list[str]:
    """Write a dense network atomically."""
    from safetensors.torch import save_file

    from npas import sharing
    from npas.sharing.runtime.storage import untied
    from npas.sharing.trained import pruning
    from npas.tasks.base import inference_flops
    from npas.utils.files import replacing

    model, pruned = experiment.model, pruning.has_masks(experiment.model)
    if pruned:
        pruning.shrink(model)
    elif sharing.is_shared(model):
        model = sharing.materialize(model)
    out = options.path(f"model.{options.format}")
    described = {"format": "pt", "model": json.dumps(asdict(experiment.config.model))}
    if experiment.unfinished:
        described["unfinished"] = experiment.unfinished
    with app.writing(out), replacing(out) as temporary:
        if options.format == "onnx":
            _write_onnx(model, experiment.task.spec, temporary)
        else:
            save_file(untied(model.state_dict()), temporary, described)
    text = f"a dense network of {sharing.count_parameters(model):,} parameters"
    if pruned:
        text += f" and {inference_flops(model, experiment.task.spec):,} FLOPs per input, pruned"
    return [f"{out}: {text}"]


def _write_onnx(model: nn.Module, spec: InputSpec, path: Path) -> None:
    """Write a dense network as ONNX, in eval mode and for any batch size."""
    import torch

    try:
        for needed in ("onnx", "onnxscript"):
            import_module(needed)
    except ImportError:
        raise ValueError("format=onnx needs more packages: pip install 'npas[onnx]'") from None

    # It would warn of each constant that it cannot compute in advance.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)

    def two(value: torch.Tensor) -> torch.Tensor:  # a batch of 1 would be exported as a constant
        return torch.cat([value, value])

    inputs: Any = spec.example("cpu")
    is_named = isinstance(inputs, dict)
    inputs = {name: two(value) for name, value in inputs.items()} if is_named else two(inputs)
    batch = {0: torch.export.Dim.AUTO}
    shapes = dict.fromkeys(inputs, batch) if is_named else (batch,)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            torch.onnx.export(
                model.eval(),
                () if is_named else (inputs,),
                path,
                kwargs=inputs if is_named else None,
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"torch cannot export this network to ONNX: {one_line(error)}") from None


def _write_hub(options: Export, experiment: Experiment) -> list[str]:
    """Write a folder for the hub in place of an earlier export, beside files of other names."""
    from npas.reporting import hub, results
    from npas.sharing.trained import pruning
    from npas.utils.files import filling

    run = experiments.folder_of(options.run)
    model, result = experiment.model, None
    with contextlib.suppress(ValueError):  # an unfinished run has no result
        result = results.read(run)
    if pruning.has_masks(model):
        pruning.shrink(model)
    out = options.path("hub")
    name = out.absolute().name if options.out else f"{experiment.config.exp}-{run.absolute().name}"
    notes = [] if experiment.unfinished is None else [f"{experiment.unfinished}."]
    with app.writing(out):
        with filling(out) as new:
            hub.write_run(model, new, name, experiment.config, result, notes)
            _copy_tokenizer(experiment, new)
            for kept in (CONFIG_FILE, RESULT_FILE):
                if (run / kept).exists():
                    shutil.copyfile(run / kept, new / kept)
            stale = hub.stale_files(out, new)
        for path in stale:
            path.unlink(missing_ok=True)
    return [f"{out}: the network with its card", f"to share it: hf upload USER/{name} {out}"]


def _copy_tokenizer(experiment: Experiment, folder: Path) -> None:
    """Write the tokenizer of a text task, if it has been downloaded."""
    config = experiment.config
    if (name := getattr(config.task, "tokenizer", None)) and config.data.source == "real":
        from npas.tasks.common.tokenization import load_tokenizer

        with contextlib.suppress(ValueError):
            load_tokenizer(name, download=False).inner.save_pretrained(folder)


def _write_artifact(options: Export, experiment: Experiment) -> list[str]:
    """Write the network as an artifact. Raises ValueError if it exceeds the budget in bytes."""
    from npas.sharing.compression.artifact import write_artifact

    config = experiment.config
    packing = replace(config.artifact, **options.packing)
    out = options.path("artifact.npas")
    with app.writing(out):
        found = write_artifact(experiment.model, out, **packing.keywords, cap=config.cap)
    before = f"{found.bytes_before_compression:,} before compression"
    return [f"{out}: {found.bytes:,} bytes ({packing.description}; {before})"]


main = entry.command(NAME, "export", Export, run)

if __name__ == "__main__":
    sys.exit(main())
