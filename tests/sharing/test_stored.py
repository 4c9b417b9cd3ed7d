"""Damaged or edited folders load the same network or are refused, with nothing half loaded."""

import functools
import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import npas
from npas.sharing.runtime import storage
from npas.sharing.trained.folding import fold, load_folded, save_folded

BUDGETS = {"wavg": 0.6, "emb": 2.0, "avg": 0.3}


class Net(nn.Module):
    """Two convolutions of one shape, one larger linear layer, a norm and a buffer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 2))
        self.gru = nn.GRU(4, 5)
        self.head = nn.Linear(5, 80)

    def forward(self, x):
        return self.head(self.gru(self.body(x).permute(2, 0, 1))[0])


INPUTS = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))


def network(seed=1):
    torch.manual_seed(seed)
    return Net().eval()


@torch.no_grad()
def outputs(model):
    return model(INPUTS)


def edit(folder, change, name="allocation.json"):
    """Change the description, which then says no more by what it was written with."""
    data = json.loads((folder / name).read_text())
    del data[storage.DIGEST]
    (folder / name).write_text(json.dumps(change(data)))


@pytest.fixture
def folder(tmp_path):
    npas.save(npas.share(network(0), 0.6, upsampler="mask"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("trains", [True, False])
def test_a_tensor_that_is_part_of_another_is_saved(tmp_path, trains):
    def build():
        model, positions = network(), torch.arange(80.0).view(8, 10)
        part = positions[:4]
        if trains:
            model.positions = nn.Parameter(part)
        else:
            model.register_buffer("positions", part)
        return model

    npas.save(npas.share(build(), 0.6, exclude=["positions"] if trains else None), tmp_path)
    again = npas.load(tmp_path, build())
    assert torch.equal(again.positions, torch.arange(40.0).view(4, 10))


def attempt(folder, dense, load=npas.load):
    """Load; return the one line of a refusal, with the network checked to be as it was."""
    values = {k: (v, v.clone()) for k, v in dense.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in dense.modules()]
    before = outputs(dense)
    try:
        with warnings.catch_warnings():  # of `values`, which has the dense parameters
            warnings.filterwarnings("ignore", "a dict was made before npas.share")
            load(folder, dense)
    except ValueError as error:
        says = str(error)
    else:
        assert outputs(dense).isfinite().all()
        return None
    assert "\n" not in says and len(says) < 600
    assert [type(module) for module in dense.modules()] == classes
    after = dense.state_dict(keep_vars=True)
    assert list(after) == list(values)
    assert all(after[k] is v and torch.equal(v, w) for k, (v, w) in values.items())
    assert not npas.is_shared(dense) and torch.equal(outputs(dense), before)
    return says


def check_refused(folder, dense, load=npas.load):
    """Load; return the one line of the refusal, which there must be."""
    says = attempt(folder, dense, load)
    assert says is not None
    return says


def put(*path):
    """Return a change that sets the value at a path: its last item."""

    def change(data):
        node = data
        for key in path[:-2]:
            node = node[key]
        node[path[-2]] = path[-1]
        return data

    return change


def drop(*path):
    """Return a change that deletes the value at a path."""

    def change(data):
        node = data
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        return data

    return change


EDITS = {
    "position of a fraction": (put("layers", 0, "templates", 0, 0.5), "must be an integer"),
    "scale too high": (put("layers", 0, "scale", 10**12), "npas_scales has shape"),
    "another shape": (put("layers", 0, "shape", [4, 2, 4]), "has no body.0.weight of shape"),
    "another layer": (put("layers", 0, "name", "body.9.weight"), "has no body.9.weight"),
    "another group": (put("layers", 0, "group", "mine"), "in no group"),
    "a huge bank": (put("groups", 0, "bank", 10**13), "layers add up to"),
    "used": (put("budget", "used", 10**9), "budget must be"),
    "split": (put("split", "bank", 1), "split must be"),
    "unshared": (put("unshared", 10**9), "layers add up to"),
    "unknown generator": (put("scheme", "generator", "max"), "the generator 'max' is not"),
    "a field too few": (drop("layers", 0, "source"), "source is missing"),
    "no groups": (drop("groups"), "groups is missing"),
    "format": (put("format", 2), "has format 2"),
    "a list": (lambda data: [data], "not written by"),
}


@pytest.mark.parametrize("change, says", EDITS.values(), ids=EDITS)
def test_an_edited_plan_that_does_not_hold_together_is_refused(folder, change, says):
    edit(folder, change)
    assert says in check_refused(folder, network())


def test_what_was_changed_since_it_was_written_is_told_by_its_checksum(folder):
    path, weights = folder / "allocation.json", folder / "model.safetensors"
    data = json.loads(path.read_text())
    positions = data["layers"][0]["templates"]
    data["layers"][0]["templates"] = [0, *positions[1:-1], positions[-1] - 1]
    path.write_text(json.dumps(data))
    assert 'delete its "digest"' in check_refused(folder, network())
    edit(folder, lambda edited: edited)
    assert npas.is_shared(npas.load(folder, network()))  # knowingly
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert "does not have the sha256" in check_refused(folder, network())


def test_a_write_that_is_killed_between_two_renames_leaves_the_old_or_the_new_network(
    tmp_path, monkeypatch
):
    old, new = (npas.share(network(seed), 0.6, seed=seed) for seed in (1, 2))
    replace = os.replace
    for survived in range(3):
        for first in (True, False):  # into an empty folder, and over another network
            folder = tmp_path / f"{survived}-{first}"
            if not first:
                npas.save(old, folder)
            done = []

            def rename(source, target, done=done, survived=survived):
                if len(done) == survived:
                    raise KeyboardInterrupt
                done.append(replace(source, target))

            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", rename)
                with pytest.raises(KeyboardInterrupt):
                    npas.save(new, folder)
            if first and survived < 2:
                with pytest.raises(ValueError, match="holds no model"):
                    npas.load(folder, network())
                continue
            expected = new if survived == 2 else old
            assert torch.equal(outputs(npas.load(folder, network())), outputs(expected))
            for again in range(3):  # and killed once more
                done.clear()
                with monkeypatch.context() as patched:
                    patched.setattr(os, "replace", functools.partial(rename, survived=again))
                    with pytest.raises(KeyboardInterrupt):
                        npas.save(new, folder)
                npas.load(folder, network())
            npas.save(new, folder)
            assert {file.name for file in folder.iterdir()} == {
                "allocation.json", "model.safetensors",
            }  # fmt: skip
            assert torch.equal(outputs(npas.load(folder, network())), outputs(new))


TENSORS = {
    "one lacks": (lambda t: t.pop("body.1.bias"), "lacks 'body.1.bias'"),
    "one more": (lambda t: t.update(more=torch.ones(1)), "'more'"),
    "no bank": (lambda t: t.pop("npas_bank_0"), "lacks 'npas_bank_0'"),
    "a longer bank": (lambda t: t.update(npas_bank_0=torch.ones(10**4)), "npas_bank_0 has shape"),
    "another shape": (lambda t: t.update({"head.bias": torch.ones(81)}), "head.bias has shape"),
}


@pytest.mark.parametrize("change, says", TENSORS.values(), ids=TENSORS)
def test_tensors_of_another_network_are_refused(folder, change, says):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit(folder, lambda data: {k: v for k, v in data.items() if k != storage.WEIGHTS})
    assert says in check_refused(folder, network())


def test_a_network_without_values_is_refused(folder):
    with pytest.raises(ValueError, match="meta device"):
        npas.load(folder, network().to("meta"))


class Chain(nn.Module):
    """Four blocks of one shape, each with a norm."""

    def __init__(self):
        super().__init__()
        blocks = (nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(4)) for _ in range(4))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x)


FOLDS = {
    "unknown name": (
        put("tied", 0, 0, "blocks.7.0.weight"),
        "another architecture: the network has no 'blocks.7",
    ),
    "another block": (put("repeats", 0, "blocks", ["0", "9"]), "another architecture"),
    "a field too few": (drop("repeats", 0, "own"), "own is missing"),
    "an allocation": (put("allocation", {"format": 1}), "scheme is missing"),
}


@pytest.mark.parametrize("change, says", FOLDS.values(), ids=FOLDS)
def test_an_edited_folding_is_refused(tmp_path, change, says):
    torch.manual_seed(0)
    model = npas.share(Chain(), templates=2)
    with torch.no_grad():
        model.get_parameter("npas_coefficients_0_2").copy_(torch.tensor([[1.0, 0.5]] * 4))
    save_folded(model, fold(model, 0.99), tmp_path)
    assert torch.equal(outputs(load_folded(tmp_path, Chain()).eval()), outputs(model.eval()))
    edit(tmp_path, change, "folding.json")
    assert says in check_refused(tmp_path, Chain().eval(), load_folded)
