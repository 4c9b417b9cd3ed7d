"""Initialize a network with trained weights, as `sharing.init=PATH` asks.

The path is an npas run, or dense weights: a `.safetensors` file, or a folder with one or several of
them, as npas-export and transformers write. A dense network copies them, a shared one the banks of
a run with the same groups and sizes. `sharing.init=fit:PATH` fits a sharing to any weights, and
`fit:dense` to those of the experiment's own run with budget=dense.
"""

import hashlib
import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from npas.config import DENSE, Config, run_dir
from npas.sharing import Allocation, GroupAllocation, api
from npas.sharing.layers import PREFIX
from npas.sharing.runtime import install
from npas.sharing.runtime.storage import WEIGHTS_FILE
from npas.sharing.trained import activations, pruning
from npas.sharing.trained.pruning import MASK
from npas.tasks import base
from npas.tasks.base import Task
from npas.tasks.common.checksums import bytes_of
from npas.training.checkpoint import MANIFEST
from npas.training.experiment import Experiment, build_network, build_task, check, plan_keywords
from npas.training.grouping import SEARCH
from npas.training.state import load_weights, to_resume, trained_checkpoint
from npas.utils.files import reason
from npas.utils.json_data import read_json

log = logging.getLogger(__name__)

# Names of norms' tensors in BERT's first checkpoints, which are still in use.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
NAMED = 3  # most fresh tensors that a message names
# transformers splits large networks: the index maps each tensor to one of several files.
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".bin.index.json")


def start(experiment: Experiment) -> None:
    """Load the weights that `sharing.init` names, unless the run resumes from a checkpoint.

    Logs what was copied. Raises ValueError if the weights are missing or do not fit.
    """
    config, model = experiment.config, experiment.model
    if config.sharing.init is None:
        return
    fits = config.sharing.fits and config.budget != DENSE
    if (before := to_resume(config, run_dir(config), experiment.stage)) is not None:
        experiment.init = before.state.get("start")
        if fits:
            plan = Allocation.from_dict(before.state["allocation"])
            install.install(model, plan, config.sharing.recompute)
            experiment.allocation = api.allocation(model)
        return
    try:
        done = load_weights_of(model, config)
        digest = digest_of(model)
        if fits:
            done.append(fit(model, config, experiment.task))
            experiment.allocation = api.allocation(model)
    except ValueError as error:
        raise ValueError(f"sharing.init={config.sharing.init}: {error}") from None
    if done:
        experiment.init = {"weights": digest, "became": "; ".join(done)}
        log.info("sharing.init: %s", experiment.init["became"])


def load_weights_of(model: nn.Module, config: Config) -> list[str]:
    """Load the weights of `sharing.init`, if it names any; return what was done."""
    if config.sharing.weights is None:
        return []
    path = Path(config.sharing.weights)
    if config.sharing.fits and config.sharing.weights == DENSE:
        path = run_dir(config.as_dense())
        if not path.exists():
            raise ValueError(f"there is no {path}: train it first, budget=dense and all else equal")
    return [load_into(model, path)]


def fit(model: nn.Module, config: Config, task: Task) -> str:
    """Share a dense network, fitted to its weights; describe the fit's errors.

    Reads the task's data if `sharing.fit_batches` asks for batches.
    """
    keywords = plan_keywords(config) | {"recompute": config.sharing.recompute}
    if config.sharing.fit_batches and config.sharing.templates is None:
        keywords["batches"] = _called_with(model, config, task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.share(model, config.budget, init="fit", **keywords)
    for warning in caught:
        log.warning("sharing.init: %s", warning.message)
    return f"fitted, {install.shared_weights(model).errors}"


@torch.no_grad()
def _called_with(model: nn.Module, config: Config, task: Task) -> list[Any]:
    """Return the arguments that the task calls the network with in the first training batches."""
    task.setup()
    found: list[Any] = []
    hook = model.register_forward_pre_hook(
        lambda module, given, named: found.append(named or given), with_kwargs=True
    )
    device = next(model.parameters()).device
    try:
        with activations.evaluating(model):
            own = base.batches(task, 0, config.batch_size, device=device)
            for batch in itertools.islice(own, config.sharing.fit_batches):
                task.loss(model, batch)
    finally:
        hook.remove()
    return found


def digest_of(model: nn.Module) -> str:
    """Return the sha256 of a network's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + bytes_of(tensor))
    return digest.hexdigest()


def weight_files(path: Path) -> list[Path]:
    """Return the sorted weight files of a file or folder. Raises ValueError if there are none."""
    found = [path]
    if path.is_dir():
        known = (WEIGHTS_FILE, INDEX_FILE)
        found = [path / name for name in known if (path / name).is_file()] or sorted(path.iterdir())
    if pickled := [file.name for file in found if file.name.endswith(PICKLED)]:
        raise ValueError(
            f"{pickled[0]} is a pickle, which can run code when it is read: save the weights as"
            f" {WEIGHTS_FILE}, as transformers' save_pretrained does"
        )
    first = found[0] if found else path
    if first.name.endswith(INDEX_FILE):
        try:
            return sorted({first.parent / name for name in read_json(first)["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{first.name} has no weight_map of files: get it again") from None
    if path.is_dir() and first.name != WEIGHTS_FILE:
        raise ValueError(f"the folder holds neither checkpoints nor {WEIGHTS_FILE}: name a run")
    return [first]


def _read_weights(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        if (file.parent / api.ALLOCATION_FILE).is_file():
            raise ValueError(
                "npas.save wrote a shared network there: name its run, or the output of npas-export"
            )
        try:
            tensors |= safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            why = reason(error)
            raise ValueError(f"{file.name} is not a valid .safetensors file ({why})") from None
    return tensors


def load_into(model: nn.Module, path: Path) -> str:
    """Copy a run's banks, or dense weights into a dense network; return what was done."""
    if not path.exists():
        raise ValueError("there is no such file or folder: name a run, or a .safetensors file")
    named = any((path / name).exists() for name in (MANIFEST, "checkpoints", SEARCH))
    if not named and not any(path.glob("step-*")):  # no run
        return _copy_dense(model, _read_weights(path), path)
    stored = restore(path)
    if pruning.has_masks(stored):
        pruning.silence(stored)
    if install.is_shared(stored):
        theirs, tensors = api.allocation(stored), dict(stored.state_dict())
        dense = install.materialize(stored).state_dict()
        if install.is_shared(model) and (done := take_over(model, theirs, tensors)):
            return _line(done, *copy_others(model, dense))
    return _copy_dense(model, stored.state_dict(), path)


def _copy_dense(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> str:
    if install.is_shared(model):
        raise ValueError(
            "it has no banks of this run's groups and sizes: set"
            f" sharing.init=fit:{path}, which fits the sharing to its weights"
        )
    copied, fresh = copy_others(model, align(state, set(model.state_dict())))
    if not copied:
        raise ValueError("no tensor there has a name and shape of the network's")
    return _line("", copied, fresh)


@torch.no_grad()
def copy_others(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy unshared tensors whose name and shape agree; return the copied and the fresh names."""
    tied: dict[object, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(PREFIX):
            tied.setdefault((tensor.data_ptr(), tensor.shape), {})[name] = tensor
    copied: list[str] = []
    fresh: list[str] = []
    for own in tied.values():
        first, tensor = next(iter(own.items()))
        fits = [state[name] for name in own if name in state and state[name].shape == tensor.shape]
        if fits:
            if not fits[0].isfinite().all():
                raise ValueError(f"{first} is not finite there: take weights that did not diverge")
            tensor.copy_(fits[0])
        if fits or not first.endswith(f".{MASK}"):  # an unpruned network has no masks
            (copied if fits else fresh).append(first)
    return copied, fresh


def _line(done: str, copied: Sequence[str], fresh: Sequence[str]) -> str:
    named = ", ".join(fresh[:NAMED]) + ", ..." * (len(fresh) > NAMED)
    left = f"{len(fresh)} left fresh: {named}" if fresh else ""
    return "; ".join(filter(None, (done, f"{len(copied)} tensors copied", left)))


def align(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Rename tensors by adding or removing a module prefix, so that most wanted names are found.

    A network saved without its head has `encoder.x` where the full one has `bert.encoder.x`.
    """
    plain = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        renamed = f"{stem}.{OLD_NAMES.get(leaf, leaf)}"
        plain[name if name in wanted or leaf == name or renamed in state else renamed] = tensor
    found = [plain]
    found += [{p + n: tensor for n, tensor in plain.items()} for p in sorted(_prefixes(wanted))]
    for prefix in sorted(_prefixes(plain)):
        cut = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
        found.append({n: t for n, t in plain.items() if not n.startswith(prefix)} | cut)
    return max(found, key=lambda names: len(wanted & names.keys()))


def _prefixes(names: Mapping[str, object] | set[str]) -> set[str]:
    """Return the first one and the first two modules of each name, as "a." and "a.b."."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:depth]) + "." for part in parts for depth in (1, 2) if len(part) > depth}


@torch.no_grad()
def take_over(model: nn.Module, theirs: Allocation, tensors: Mapping[str, Tensor]) -> str:
    """Copy banks, coefficients and upsamplers of a network with the same groups.

    Returns what was copied, or "" if a group differs in layers, shapes, positions or sizes.
    """
    own = api.allocation(model)
    if _anonymous(own) != _anonymous(theirs):
        return ""
    install.shared_weights(model).take_scales([layer.scale for layer in theirs.layers])
    for name, tensor in model.state_dict().items():
        if name.startswith(PREFIX):
            tensor.copy_(tensors[name])
    banks = sum(group.bank > 0 for group in own.groups)
    layers = sum(bool(layer.templates) for layer in own.layers)
    return f"{banks} bank{'s' * (banks != 1)} of {layers} layers taken over as trained"


def _anonymous(plan: Allocation) -> list[GroupAllocation]:
    """Return the groups without names and scales, to compare what their layers read."""
    bare = plan.map(lambda layer: replace(layer, kind="", scale=0))
    return [replace(group, name="") for group in bare.groups]


def restore(path: Path) -> nn.Module:
    """Build the network of a checkpoint, or of a run's newest one, with its weights, on the CPU."""
    checkpoint = trained_checkpoint(path)
    config = check(checkpoint.state["config"])
    if config.budget == DENSE and hasattr(config.model, "pretrained"):  # the checkpoint has more
        unread = type(config.model).pretrained
        config = replace(config, model=replace(config.model, pretrained=unread))
    if not (progress := checkpoint.progress).is_over(config):
        log.warning(
            "%s has trained %d of its %d epochs so far", path, progress.epoch, config.epochs
        )
    spec = build_task(config).spec
    model = build_network(config, spec, checkpoint.grouping, checkpoint.state)
    load_weights(model, checkpoint)
    return model
