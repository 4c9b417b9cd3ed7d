"""Write a network's tensors beside a description of it, and read both back."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from npas.sharing import audit
from npas.sharing.loops import refuse_loops
from npas.utils.json_data import read_json

WEIGHTS_FILE = "model.safetensors"
DIGEST, WEIGHTS = "digest", "weights_sha256"
"""The fields of a description with the sha256 of its other fields and of `model.safetensors`."""


@dataclass(frozen=True)
class Stored:
    """What a folder holds: a description, without its checksums, and tensors on the CPU."""

    directory: Path
    description: dict[str, Any]
    tensors: dict[str, Tensor]


def write(model: nn.Module, directory: Path, name: str, description: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, every tensor once, and the description under its name.

    The description gets the checksums of both. Both are written beside what is there before either
    takes its place, so that a full disk leaves the old pair. OSError, or safetensors' own error, if
    they cannot be written.
    """
    from safetensors.torch import save_model

    directory.mkdir(parents=True, exist_ok=True)
    new = {file: directory / f"{file}.{os.getpid()}.tmp" for file in (WEIGHTS_FILE, name)}
    try:
        save_model(model, str(new[WEIGHTS_FILE]))
        described = {**description, WEIGHTS: _file_sum(new[WEIGHTS_FILE])}
        text = json.dumps(described | {DIGEST: digest(described)}, indent=1) + "\n"
        new[name].write_text(text, encoding="utf-8")
        shutil.copymode(new[name], new[WEIGHTS_FILE])  # safetensors writes for the owner alone
        for file, temporary in new.items():
            os.replace(temporary, directory / file)
    finally:
        for temporary in new.values():
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def describe(directory: Path, name: str, description: Mapping[str, Any]) -> None:
    """Write a description beside weights that are there already, with the checksums of both."""
    weights = directory / WEIGHTS_FILE
    described = dict(description)
    if weights.is_file():
        described[WEIGHTS] = _file_sum(weights)
    write_json(directory / name, described | {DIGEST: digest(described)})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data beside what is there before it takes its place."""
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def digest(description: Mapping[str, Any]) -> str:
    """Return the sha256 of plain data, as JSON with sorted keys and no spaces."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(directory: Path, name: str, writer: str) -> Stored:
    """Read the description and the tensors.

    ValueError where a file is missing, is damaged or was changed since both were written. Files
    from before there were checksums, or without them, are taken as they are.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, weights = directory / name, directory / WEIGHTS_FILE
    for file in (weights, path):
        if not file.is_file():
            raise ValueError(f"{directory} holds no {file.name}: name a folder that {writer} wrote")
    try:
        description = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): write it again with {writer}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path} is no description that {writer} wrote")
    given = description.pop(DIGEST, None)
    if given is not None and given != digest(description):
        raise ValueError(
            f"{path} was changed after {writer} wrote it: write it again, or delete its"
            f' "{DIGEST}" to use it as it was edited'
        )
    given = description.pop(WEIGHTS, None)
    if given is not None and given != _file_sum(weights):
        raise ValueError(
            f"{weights} is not the file that {name} was written with, by its sha256: write both"
            f" again with {writer}"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights} is damaged ({reason}): write it again") from None
    return Stored(directory, description, tensors)


def load_weights(model: nn.Module, stored: Stored) -> None:
    """Fill a network with stored tensors; ValueError, before any is, if they are another's."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name in stored.tensors:
            check_tensor(stored, name, tuple(tensor.shape), tensor)
    unknown = [name for name in stored.tensors if name not in own]
    there = {_memory(own[name]) for name in stored.tensors if name in own}
    # Of tensors in one memory, one is written.
    missing = [
        name
        for name, tensor in own.items()
        if name not in stored.tensors and _memory(tensor) not in there
    ]
    for names, what in ((missing, "lacks"), (unknown, "has, beside those of the network,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"{stored.directory} was written by another architecture: it {what}"
                f" {names[0]!r:.100}{more}"
            )
    model.load_state_dict(stored.tensors, strict=False)


def check_tensor(
    stored: Stored, name: str, shape: tuple[int, ...], like: Tensor | None = None
) -> None:
    """Raise ValueError unless the tensor is there, in this shape and of the same kind of number."""
    found = stored.tensors.get(name)
    if found is None or tuple(found.shape) != shape:
        there = "no such tensor" if found is None else str(list(found.shape))
        raise ValueError(
            f"{stored.directory} was written by another architecture: {name} has shape"
            f" {list(shape)} here and {there} there"
        )
    is_float = like is None or like.is_floating_point()
    is_complex = like is not None and like.is_complex()
    if (found.is_floating_point(), found.is_complex()) != (is_float, is_complex):
        raise ValueError(
            f"{stored.directory} holds {name} as {found.dtype}, which the network cannot take:"
            " write it again"
        )


@contextlib.contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """Give a network its classes, modules, tensors and hooks back if the body raises."""
    before = [_Before(module) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module in before:
            module.restore()
        raise


class _Before:
    """The state of a module now.

    Of a parameter only its memory is kept, and itself as long as anybody else keeps it: one that
    nothing but this held would look as if an optimizer still did.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.cls = module, type(module)
        self.attributes = {k: v for k, v in vars(module).items() if k != "_flat_weights"}
        self.parameters = {
            name: parameter if parameter is None else _Kept(parameter)
            for name, parameter in module._parameters.items()
        }
        self.held = {
            key: (value, value.copy())
            for key, value in vars(module).items()
            if key in _HELD and isinstance(value, (dict, set))
        }

    def restore(self) -> None:
        """Put everything back."""
        module = self.module
        module.__class__ = self.cls
        module.__dict__.clear()
        module.__dict__.update(self.attributes)
        for value, copy in self.held.values():
            value.clear()
            value.update(copy)
        module._parameters.clear()
        for name, kept in self.parameters.items():
            module._parameters[name] = None if kept is None else kept.parameter()
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


_HELD = frozenset(k for k, v in vars(nn.Module()).items() if isinstance(v, (dict, set))) - {
    "_parameters"
}


class _Kept:
    """Keep a parameter's memory."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.ref, self.values = weakref.ref(parameter), parameter.data
        self.requires_grad, self.grad = parameter.requires_grad, parameter.grad

    def parameter(self) -> nn.Parameter:
        """Return the parameter, or one like it if it is gone."""
        if (found := self.ref()) is None:
            found = nn.Parameter(self.values, self.requires_grad)
            found.grad = self.grad
            self.ref = weakref.ref(found)
        return found


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _file_sum(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


# transformers' name for the file of weights. It refuses one of no known suffix, and shows it.
FILE_KEY = "transformers_weights"
MARK = "none: this is a shared network, read it with npas.load(directory, Model(config))"


def guard_saving(root: nn.Module) -> None:
    """Put the guards before every `save_pretrained` that would lack what `npas.load` needs."""
    for module in root.modules():
        if callable(getattr(type(module), "save_pretrained", None)):
            reads = any("_npas" in part.__dict__ for part in module.modules())
            if module is root and _is_transformers(module):
                module.__dict__["save_pretrained"] = partial(_save, module)
            elif module is root or reads:
                module.__dict__["save_pretrained"] = _refuse


def free_saving(modules: Iterable[nn.Module]) -> None:
    """Remove the guards."""
    for module in modules:
        guard = module.__dict__.get("save_pretrained")
        if guard is _refuse or getattr(guard, "func", None) is _save:
            del module.__dict__["save_pretrained"]


def _is_transformers(module: nn.Module) -> bool:
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
    return ("transformers", "PreTrainedModel") in names


def _save(
    root: Any,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    *arguments: Any,
    **options: Any,
) -> None:
    signature = inspect.signature(type(root).save_pretrained)
    call = signature.bind(root, save_directory, is_main_process, *arguments, **options)
    given = {**call.arguments, **call.arguments.get("kwargs", {})}
    if given.get("push_to_hub"):
        raise ValueError(
            "push_to_hub=True would upload before the files are whole: save without it, then call"
            " push_to_hub"
        )
    for name in ("variant", "distributed_checkpoint"):
        if given.get(name):
            raise ValueError(f"npas.load reads {WEIGHTS_FILE} alone: save without {name}")
    if "max_shard_size" in given:
        warnings.warn(
            f"max_shard_size is ignored: npas.load reads one file, {WEIGHTS_FILE}",
            stacklevel=2,
        )
    if "max_shard_size" in signature.parameters:
        call.arguments["max_shard_size"] = sys.maxsize
    refuse_loops(root)
    shared = root.__dict__["_npas_shared"]
    if given.get("state_dict") is None:  # else a wrapper gathered it, which names parts otherwise
        audit.refuse_unloadable(audit.follow(shared), "save_pretrained")
    type(root).save_pretrained(*call.args, **call.kwargs)
    if is_main_process:
        directory = Path(save_directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        write_json(directory / "config.json", config | {FILE_KEY: MARK})
        describe(directory, "allocation.json", shared.allocation.to_dict())


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ValueError(
        "save_pretrained knows nothing of banks: npas.save the whole shared network, or"
        " npas.materialize it first"
    )
