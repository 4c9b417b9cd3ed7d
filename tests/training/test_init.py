"""A run starts from trained weights: banks are taken over, dense ones copied or fitted."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from trained import equal

import npas
from npas.config import ignored, run_dir
from npas.models import InputSpec, wrn
from npas.training import build, initial, prepare, train
from npas.training.state import TrainState


@pytest.fixture
def begin(small, tmp_path, caplog):
    """Return a maker of experiments that are prepared to train, and of what was logged of it."""

    def make(init, **changes):
        caplog.clear()
        caplog.set_level(logging.INFO, "npas")
        sharing = changes.pop("sharing", {}) | {"init": str(init)}
        config = small(sharing=sharing, run_root=str(tmp_path / "runs"), **changes)
        experiment = build(config)
        prepare(experiment)
        return experiment, "\n".join(record.getMessage() for record in caplog.records)

    return make


@pytest.fixture
def fresh(small):
    """Return the state of a dense network."""
    return copied(build(small(seed=5)).model.state_dict())


def dense(experiment):
    """Return what a run's network computes with; it is dense afterwards."""
    model = experiment.model
    return (npas.materialize(model) if npas.is_shared(model) else model).state_dict()


def copied(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def write(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_a_run_gives_its_banks_where_they_are_alike(run_small, begin, tmp_path):
    before, _ = run_small(budget="0.3", epochs=1, seed=1)
    trained = copied(before.model.state_dict())
    ours, message = begin(tmp_path / "run", budget="0.3")
    assert "sharing.init: 1 bank of " in message and "taken over as trained" in message
    assert ours.model.state_dict().keys() == trained.keys()
    assert equal(trained, ours.model.state_dict())

    trained = copied(dense(before))
    for part in ("", "checkpoints"):
        path = tmp_path / "run" / part
        with pytest.raises(ValueError, match=rf"no banks .* set sharing\.init=fit:{path}, which"):
            begin(path, budget="0.5")
    ours, message = begin(tmp_path / "run", budget="dense")
    assert message.startswith("sharing.init: ") and "tensors copied" in message
    assert equal(ours.model.state_dict(), trained) and not ignored(ours.config)


@pytest.mark.parametrize(
    ("added", "cut"), [("", "stages."), ("", "stages.0."), ("base.", ""), ("model.base.", "")]
)
def test_a_file_under_names_with_more_or_fewer_modules(fresh, tmp_path, begin, added, cut):
    state = {name: tensor for name, tensor in fresh.items() if name.startswith(cut)}
    named = {added + name.removeprefix(cut): tensor for name, tensor in state.items()}
    ours, message = begin(write(tmp_path / "file.safetensors", named), budget="dense")
    assert equal(state, ours.model.state_dict())
    assert ("left fresh: " in message) == bool(cut)


def shards(folder, state):
    """Write a state as transformers does what is too large for one file."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        write(folder / name, {key: state[key] for key in state if where[key] == name})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("split", [False, True])
def test_a_folder_of_weights_and_old_names_of_norms(fresh, tmp_path, begin, split):
    old = {
        name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): t + 1
        for name, t in fresh.items()
    }
    folder = tmp_path / "folder"
    if split:
        shards(folder, old)
    else:
        write(folder / "model.safetensors", old)
    ours, message = begin(folder, budget="dense")
    assert equal({name: tensor + 1 for name, tensor in fresh.items()}, ours.model.state_dict())
    assert "left fresh" not in message and ours.init is not None
    assert ours.init["weights"] == initial.digest_of(ours.model)


def test_groups_of_other_names_are_found_again():
    spec = InputSpec((1, 8, 8), 10)
    groups = [{"stages.0.*": "a", "stages.1.*": "b"}, {"stages.0.*": "x", "stages.1.*": "y"}]

    def network(number, seed, budget=0.9):
        torch.manual_seed(seed)
        dense = wrn.build(wrn.Config(depth=16, width=0.5), spec)
        return npas.share(
            dense, budget, groups=groups[number], exclude=["stages.2.*", "stem*", "cl*"], seed=seed
        )

    theirs, ours = network(0, 3), network(1, 4)
    plan, tensors = npas.allocation(theirs), dict(theirs.state_dict())
    done = initial.take_over(ours, plan, tensors)
    assert done == "2 banks of 10 layers taken over as trained"
    shared = [layer.name for layer in npas.allocation(ours).layers]
    generated, wanted = (npas.materialize(n).state_dict() for n in (ours, theirs))
    assert equal({name: generated[name] for name in shared}, wanted)
    other = network(1, 4, budget=0.95)
    before = copied(other.state_dict())
    assert initial.take_over(other, plan, tensors) == "" and equal(before, other.state_dict())


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_start_again(begin, run_small, tmp_path, monkeypatch):
    run_small(epochs=1)
    case = {"budget": "0.5", "epochs": 1}
    path = f"fit:{tmp_path / 'run'}"
    ours, _ = begin(path, **case)
    train(ours, run_dir(ours.config))
    for again in ({}, {"resume": str(run_dir(ours.config))}):
        assert "sharing.init" not in begin(path, **case, **again)[1]
    for again in ({"resume": "never"}, {"force": True}, {"seed": 3}):
        assert "fitted, " in begin(path, **case, **again)[1]


def spoilt_shards(path):
    shards(path, {"a": torch.ones(2), "b": torch.ones(2)})
    next(path.glob("*1-of*")).unlink()


def pickle(path):
    path.mkdir()
    (path / "pytorch_model.bin.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"sharing\.init=.*: there is no such file or folder"),
        (lambda path: path.mkdir(), "holds neither checkpoints nor model.safetensors"),
        (lambda path: path.write_text("no tensors"), r"path is not a valid .safetensors"),
        (lambda path: write(path, {"a": torch.ones(2)}), "no tensor there has a name and shape"),
        (
            lambda path: (
                write(path / "model.safetensors", {"a": torch.ones(2)}),
                (path / "allocation.json").write_text("{}"),
            ),
            "npas.save wrote a shared network",
        ),
        (spoilt_shards, r"model-00001-of-00002.safetensors is not a valid .safetensors"),
        (
            lambda path: (path.mkdir(), (path / "model.safetensors.index.json").write_text("{}")),
            "has no weight_map of files",
        ),
        (pickle, "pytorch_model.bin.index.json is a pickle"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "holds no checkpoint"),
        (lambda path: (path / "search").mkdir(parents=True), "still searching for its groups"),
    ],
)
def test_invalid_input_is_one_line(make, message, begin, tmp_path):
    make(tmp_path / "path")
    for init, budget in (("", "dense"), ("fit:", "0.5")):
        with pytest.raises(ValueError, match=message) as error:
            begin(f"{init}{tmp_path / 'path'}", budget=budget)
        assert "\n" not in str(error.value)


def test_a_run_or_file_is_fitted(run_small, begin, tmp_path, small):
    before, _ = run_small(epochs=1)
    trained = copied(before.model.state_dict())
    ours, message = begin(f"fit:{tmp_path / 'run'}/", budget="0.5")
    assert "fitted, relative error" in message and "tensors copied" in message
    assert ours.allocation is not None and ours.allocation.budget.used <= (
        ours.allocation.budget.allowed
    )
    errors = npas.weight_errors(ours.model, trained)
    assert errors == npas.sharing.runtime.install.shared_weights(ours.model).errors
    assert torch.equal(dense(ours)["norm.running_var"], trained["norm.running_var"])


@pytest.mark.slow
def test_a_fitted_run_resumes_to_the_bit(small, tmp_path, monkeypatch):
    def run(root):
        config = small(budget="0.5", sharing={"init": "fit"}, run_root=str(tmp_path / root))
        experiment = build(config)
        prepare(experiment)
        train(experiment, run_dir(config))
        return copied(experiment.model.state_dict())

    def save_and_stop(state):
        save(state)
        raise KeyboardInterrupt

    whole, save = run("a"), TrainState.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainState, "save", save_and_stop)
        run("b")
    again = run("b")
    assert equal(whole, again)
