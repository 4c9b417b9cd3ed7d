"""Folders of shared networks for the Hugging Face hub, with a model card.

    npas.save_pretrained(model, "folder")           # allocation.json, model.safetensors, README.md
    npas.push_to_hub(model, "me/shared-resnet18")
    model = npas.from_pretrained("me/shared-resnet18", torchvision.models.resnet18())

`npas-export format=hub` writes such a folder for a run. For an architecture of transformers it
contains the dense network, for transformers' `from_pretrained`, and the shared one in `shared/`.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from npas import sharing
from npas.config import Config
from npas.models import _hub
from npas.reporting.markdown import grid
from npas.reporting.results import Result
from npas.sharing import Allocation
from npas.sharing.api import ALLOCATION_FILE, SHARED_FOLDER
from npas.sharing.runtime.guards import FILE_KEY
from npas.sharing.runtime.storage import WEIGHTS_FILE, make_folder
from npas.utils.checks import path_of, require
from npas.utils.files import reason
from npas.utils.printing import figure

CARD, CONFIG = "README.md", "config.json"
# By which a folder is read as a shared network or as one of transformers.
FILES = {
    Path(below, name)
    for below in ("", SHARED_FOLDER)
    for name in (ALLOCATION_FILE, WEIGHTS_FILE, CONFIG)
}
TASKS = {  # the hub's names by task family
    "text_classification": "text-classification",
    "squad": "question-answering",
    "mlm": "fill-mask",
    "lm": "text-generation",
    **dict.fromkeys(("digits", "cifar", "images", "imagenet"), "image-classification"),
}


def save_pretrained(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a shared network as `npas.save` does, with a model card if there is none.

    For a network of transformers its config is written too. Raises ValueError as `npas.save` does.
    """
    plan = sharing.api.allocation(model)
    folder = make_folder(directory)
    if _is_transformers(model):
        _save_transformers(model, folder)
    else:
        sharing.save(model, folder)
    if not (folder / CARD).exists():
        builds = f"{type(model).__name__}(...)"
        text = card(folder.resolve().name, plan, None, loading(model, "", builds), ())
        (folder / CARD).write_text(text, encoding="utf-8")


def from_pretrained(
    name: str | os.PathLike[str], dense_model: nn.Module | None = None, *, recompute: bool = False
) -> nn.Module:
    """Read a shared network from a folder, or from the hub as "user/name" or "user/name@revision".

    `dense_model`, the architecture as built, becomes the shared network, as in `npas.load`. It is
    optional for a network of transformers, which then has the dtype that was saved. Raises
    ValueError if the network cannot be read.
    """
    files = sorted(path.as_posix() for path in FILES)
    needed = [file for file in files if file.endswith(ALLOCATION_FILE)]
    path_of(name)
    folder = _hub.find_folder("npas.from_pretrained: name", str(name), files, needed)
    if dense_model is None:
        dense_model = _build(folder)
    return sharing.load(folder, dense_model, recompute=recompute)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a shared network",
) -> str:
    """Upload a shared network to the Hugging Face hub; return the commit's URL.

    The repository is created if it does not exist; its model card is not replaced. The default
    token is that of `hf auth login`. Raises ValueError if the upload fails.
    """
    import huggingface_hub

    require("repo_id", repo_id, str, "a name as 'user/name'")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, repo_id.rpartition("/")[2] or "model")
        save_pretrained(model, folder)
        try:
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            kept = [CARD] if api.file_exists(repo_id, CARD) else []
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                ignore_patterns=kept,
            )
        except Exception as error:  # the network and its clients may raise anything
            raise ValueError(f"{repo_id} cannot be pushed to the hub: {reason(error)}") from error
    return str(done.commit_url)


def write_run(
    model: nn.Module, folder: Path, name: str, config: Config, result: Result | None,
    notes: Iterable[str],
) -> None:  # fmt: skip
    """Write a run's network, shared or dense, for the hub. Raises OSError or SafetensorError.

    An unfinished run has no result. `notes` are sentences for the card. A network of transformers
    is also written materialized.
    """
    from safetensors.torch import save_file

    from npas.sharing.runtime.storage import untied

    is_shared, is_transformers = sharing.is_shared(model), _is_transformers(model)
    plan = sharing.api.allocation(model) if is_shared else None
    pruned = config.pruning.method is not None
    how = loading(model, name, f"the {config.model.family} network of config.yaml", pruned)
    if not is_shared:
        text = f"A plain network of {sharing.count_parameters(model):,} parameters."
        if pruned and result is not None and result.budget is not None:
            asked, used = result.budget.asked, result.budget.used
            text += f" Its filters were pruned; before, it had {used:,} (budget {asked})."
        notes = [text, *notes]
    else:
        sharing.save(model, folder / SHARED_FOLDER if is_transformers else folder)
    if is_transformers:
        dense = sharing.materialize(model) if is_shared else model
        names = [] if result is None else result.config["task"].get("class_names") or []
        if len(names) == getattr(dense.config, "num_labels", 0):
            dense.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
            dense.config.label2id = {label: n for n, label in enumerate(names)}  # type: ignore[union-attr]
        _save_transformers(dense, folder)
    elif not is_shared:
        save_file(untied(model.state_dict()), folder / WEIGHTS_FILE)
    (folder / CARD).write_text(card(name, plan, result, how, notes), encoding="utf-8")


def stale_files(folder: Path, new: Path) -> list[Path]:
    """Return an earlier export's files that a new one, in the folder `new`, does not replace."""
    old = folder / CARD
    if not old.is_file() or "library_name: npas" not in old.read_text("utf-8", "replace"):
        return []
    return [folder / file for file in FILES if not (new / file).exists()]


def card(
    name: str, plan: Allocation | None, result: Result | None, how: str, notes: Iterable[str]
) -> str:
    """Return the text of a model card: the hub's YAML head, counts, results and usage."""
    from huggingface_hub import EvalResult, ModelCardData

    head: dict[str, Any] = {"library_name": "npas", "tags": ["npas", "parameter-sharing"]}
    parts = [f"# {name}", *notes]
    if plan is not None:
        budget = plan.budget
        split = ", ".join(f"{kind} {count:,}" for kind, count in plan.split.items())
        parts.append(
            f"A network that shares its parameters: {budget.used:,} where the dense one has"
            f" {budget.dense:,} (budget {budget.asked}, {budget.allowed:,} allowed; {split})."
        )
    if result is not None:
        task = TASKS.get(str(result.config["task"]["family"]), "other")
        head["pipeline_tag"] = task if task != "other" else None
        metrics = None if result.metrics is None else result.metrics.last
        is_real = result.dataset.source == "real"
        if metrics is not None and result.status == "done" and is_real:
            dataset: Any = dict.fromkeys(("dataset_type", "dataset_name"), result.dataset.name)
            head["model_name"] = name
            head["eval_results"] = [
                EvalResult(task_type=task, metric_type=kind, metric_value=value, **dataset)
                for kind, value in metrics.items()
                if value is not None
            ]
        parts += _result_parts(result)
    parts.append(f"## Use\n\n{how}")
    data = ModelCardData(**{key: value for key, value in head.items() if value is not None})
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _result_parts(result: Result) -> list[str]:
    dataset, budget = result.dataset, result.budget
    kinds = {True: "the published files", False: "a copy that differs from the published files"}
    kind = kinds.get(dataset.published, "no published checksums are known")  # type: ignore[arg-type]
    if dataset.source != "real":
        kind = "synthetic: metrics mean nothing"
    parts = [f"Data: {dataset.name} ({kind}). Seed {result.seed}, epochs {result.epochs}."]
    if result.metrics is not None:
        shown = {"last epoch": result.metrics.last}
        if result.metrics.selected is not None:
            shown[f"chosen on {result.metrics.selected_on}"] = result.metrics.selected
        rows = [
            [name, *(figure(name, own.get(name)) for own in shown.values())]
            for name in result.metrics.last
        ]
        parts.append("\n".join(grid(["metric", *shown], rows, left=range(len(shown) + 1))))
    asked = "" if budget is None else f" budget={budget.asked}"
    origin = [f"npas {result.versions.get('npas')}", f"torch {result.versions.get('torch')}"]
    origin += [] if result.git.commit is None else [f"commit {result.git.commit[:12]}"]
    origin += [result.hardware.gpu or result.hardware.cpu]
    command = f"npas-train run=config.yaml data.root=data  # +exp={result.exp}{asked}, and all else"
    parts.append(f"## Training\n\n```\n{command}\n```\n\nMade with {', '.join(origin)}.")
    return parts


def loading(model: nn.Module, name: str, builds: str, pruned: bool = False) -> str:
    """Return the code that loads a network, as Markdown."""
    folder, lines = name or "FOLDER", ["import npas", ""]
    if _is_transformers(model):
        kind = type(model).__mro__[1 if type(model).__module__.startswith("npas") else 0].__name__
        lines = ["import npas", f"from transformers import {kind}", ""]
        if name:  # a run's folder, which has the dense network
            lines.append(f'dense = {kind}.from_pretrained("{folder}")')
        if sharing.is_shared(model):
            lines.append(f'model = npas.from_pretrained("{folder}")  # shared, to train on')
        else:
            del lines[0]
    elif sharing.is_shared(model):
        lines.append(f"dense = ...  # {builds}")
        lines.append(f'model = npas.from_pretrained("{folder}", dense)')
    else:
        lines = ["import npas"] if pruned else []
        lines += ["from safetensors.torch import load_file", "", f"model = ...  # {builds}"]
        lines.append(f'state = load_file("{folder}/{WEIGHTS_FILE}")')
        # A pruned network is narrower than its architecture.
        lines.append(
            f"{'npas.sharing.resize(model, ' if pruned else 'model.load_state_dict('}state)"
        )
    return "\n".join(["```python", *lines, "```"])


def _save_transformers(model: nn.Module, folder: Path) -> None:
    with _hub.quietly():
        model.save_pretrained(folder)  # type: ignore[operator]


def _is_transformers(model: nn.Module) -> bool:
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(model).__mro__}
    return ("transformers", "PreTrainedModel") in names


def _build(folder: Path) -> nn.Module:
    import transformers

    where = folder if (folder / CONFIG).is_file() else folder / SHARED_FOLDER
    try:
        with _hub.quietly():
            config: Any = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        if hasattr(config, FILE_KEY):  # it marks a shared network's folder
            delattr(config, FILE_KEY)
        (name,) = config.architectures
        kind = getattr(transformers, name)
        if not issubclass(kind, transformers.PreTrainedModel):
            raise ValueError(f"{name} is not a network of transformers")
        network: nn.Module = kind._from_config(config)  # in the config's dtype
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{folder} does not name its network of transformers ({reason(error)}): give"
            " npas.from_pretrained the dense network as its second argument"
        ) from None
    return network
