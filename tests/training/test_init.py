"""A run starts from trained weights: banks as they are, or dense weights brought into them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import npas
from npas.config import Config, ignored, run_dir
from npas.models import InputSpec, wrn
from npas.sharing.projection import dense_names
from npas.training import Experiment, build, initial, prepare, train
from npas.training.state import TrainState

RunSmall = Callable[..., Any]
MakeConfig = Callable[..., Config]


@pytest.fixture
def begin(
    small: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Experiment, str]]:
    """Return a maker of experiments that are prepared to train, and of what was logged of it."""

    def make(init: Path, **changes: Any) -> tuple[Experiment, str]:
        caplog.clear()
        caplog.set_level(logging.INFO, "npas")
        sharing = changes.pop("sharing", {}) | {"init": str(init)}
        config = small(sharing=sharing, run_root=str(tmp_path / "runs"), **changes)
        experiment = build(config)
        prepare(experiment)
        return experiment, "\n".join(record.getMessage() for record in caplog.records)

    return make


def dense(experiment: Experiment) -> dict[str, Tensor]:
    """Return what a run's network computes with; it is dense afterwards."""
    model = experiment.model
    return (npas.materialize(model) if npas.is_shared(model) else model).state_dict()


def of_run(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_a_run_that_shares_alike_gives_its_banks_as_they_are(
    run_small: RunSmall, begin: Any, tmp_path: Path
) -> None:
    before, _ = run_small(budget="0.3", epochs=1, seed=1)
    trained = of_run(before.model.state_dict())
    ours, said = begin(tmp_path / "run", budget="0.3")
    assert "sharing.init: 1 bank of " in said and "taken over as trained" in said
    own = ours.model.state_dict()
    assert own.keys() == trained.keys()
    assert all(torch.equal(own[name], trained[name]) for name in own)


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_a_run_of_another_budget_is_projected(
    run_small: RunSmall, begin: Any, tmp_path: Path, part: str
) -> None:
    before, _ = run_small(budget="0.3", epochs=1)
    trained = of_run(dense(before))
    ours, said = begin(tmp_path / "run" / part, budget="0.5")
    assert "layers projected, relative error" in said and "left fresh" not in said
    found = dense(ours)
    wrong = sum(float((found[name] - trained[name]).square().sum()) for name in found)
    assert wrong < 0.5 * sum(float(tensor.square().sum()) for tensor in trained.values())
    assert torch.equal(found["norm.running_var"], trained["norm.running_var"])


def test_a_dense_run_is_projected_exactly_where_the_budget_allows(
    run_small: RunSmall, begin: Any, tmp_path: Path
) -> None:
    before, _ = run_small(epochs=1)
    trained = of_run(before.model.state_dict())
    ours, _ = begin(tmp_path / "run", budget="2")
    assert all(torch.allclose(tensor, trained[n], atol=1e-5) for n, tensor in dense(ours).items())


def test_a_dense_network_takes_what_fits(run_small: RunSmall, begin: Any, tmp_path: Path) -> None:
    before, _ = run_small(budget="0.3", epochs=1)
    trained = of_run(dense(before))
    ours, said = begin(tmp_path / "run", budget="dense")
    assert said.startswith("sharing.init: ") and "projected" not in said
    own = ours.model.state_dict()
    assert all(torch.equal(own[name], trained[name]) for name in own)
    assert not ignored(ours.config)


@pytest.mark.parametrize(
    ("added", "cut"), [("", "stages."), ("", "stages.0."), ("base.", ""), ("model.base.", "")]
)
def test_a_file_under_names_with_more_or_fewer_modules(
    small: MakeConfig, tmp_path: Path, begin: Any, added: str, cut: str
) -> None:
    state = of_run(build(small(seed=5)).model.state_dict())
    if cut:
        state = {name: t for name, t in state.items() if name.startswith(cut)}
    named = {added + name.removeprefix(cut): tensor for name, tensor in state.items()}
    ours, said = begin(write(tmp_path / "file.safetensors", named), budget="dense")
    own = ours.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert ("left fresh: " in said) == bool(cut)


def test_a_folder_of_weights_and_old_names_of_norms(
    small: MakeConfig, tmp_path: Path, begin: Any
) -> None:
    state = of_run(build(small(seed=5)).model.state_dict())
    old = {
        name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): t + 1
        for name, t in state.items()
    }
    assert "norm.gamma" in old
    write(tmp_path / "folder" / "model.safetensors", old)
    ours, said = begin(tmp_path / "folder", budget="dense")
    assert torch.equal(ours.model.state_dict()["norm.weight"], state["norm.weight"] + 1)
    assert "left fresh" not in said


def test_a_head_of_other_classes_stays_fresh_and_is_named(
    small: MakeConfig, tmp_path: Path, begin: Any
) -> None:
    state = of_run(build(small(seed=5)).model.state_dict())
    state["classifier.weight"] = state["classifier.weight"][:3]
    state["classifier.bias"] = state["classifier.bias"][:3]
    file = write(tmp_path / "file.safetensors", state)
    ours, said = begin(file, budget="0.5", sharing={"exclude": ["classifier.*"]})
    fresh = build(ours.config).model.state_dict()["classifier.weight"]
    assert torch.equal(ours.model.state_dict()["classifier.weight"], fresh)
    assert said.endswith("2 left fresh: classifier.weight, classifier.bias")


def test_groups_that_are_in_another_order_are_found_again() -> None:
    spec = InputSpec((1, 8, 8), 10)
    groups = [{"stages.0.*": "a", "stages.1.*": "b"}, {"stages.1.*": "x", "stages.0.*": "y"}]

    def network(number: int, seed: int, budget: float = 0.9) -> nn.Module:
        torch.manual_seed(seed)
        dense = wrn.build(wrn.Config(depth=16, width=0.5), spec)
        return npas.share(
            dense, budget, groups=groups[number], exclude=["stages.2.*", "stem*", "cl*"], seed=seed
        )

    theirs, ours = network(0, 3), network(1, 4)
    tensors = dict(theirs.state_dict())
    done = initial.take_over(ours, npas.allocation(theirs), tensors)
    assert done == "2 banks of 10 layers taken over as trained"
    shared = [layer.name for layer in npas.allocation(ours).layers]
    generated, wanted = (npas.materialize(n).state_dict() for n in (ours, theirs))
    assert all(torch.equal(generated[name], wanted[name]) for name in shared)
    other = network(1, 4, budget=0.95)
    before = of_run(other.state_dict())
    assert initial.take_over(other, npas.allocation(network(0, 3)), tensors) == ""
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_run_that_goes_on_does_not_start_again(
    begin: Any, run_small: RunSmall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(epochs=1)
    ours, _ = begin(tmp_path / "run", budget="0.5", epochs=1)
    train(ours, run_dir(ours.config))
    monkeypatch.setattr(initial, "_start", lambda *_: pytest.fail("it started again"))
    begin(tmp_path / "run", budget="0.5", epochs=1)
    folder = str(run_dir(ours.config))
    begin(tmp_path / "run", budget="0.5", epochs=1, resume=folder)
    monkeypatch.setattr(initial, "_start", lambda *_: "it started")
    for again in ({"resume": "never"}, {"force": True}, {"seed": 3}):
        assert "it started" in begin(tmp_path / "run", budget="0.5", epochs=1, **again)[1]


def test_before_a_search_nothing_is_taken_and_behind_it_all(
    begin: Any, run_small: RunSmall, tmp_path: Path
) -> None:
    run_small(epochs=1)
    sharing = {"groups": "learned", "num_groups": 2}
    searching, said = begin(tmp_path / "run", budget="0.5", sharing=sharing)
    assert searching.stage == "search" and not said
    with pytest.raises(ValueError, match="no such file or folder"):
        begin(tmp_path / "none", budget="0.5", sharing=sharing)


def test_names_are_those_before_sharing(small: MakeConfig) -> None:
    plain, shared = (build(small(budget=budget)).model for budget in ("dense", "0.5"))
    assert dense_names(shared) == set(plain.state_dict()) == dense_names(plain)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, r"sharing\.init=.*: there is no such file or folder"),
        (lambda path: path.mkdir(), "holds neither checkpoints nor model.safetensors"),
        (lambda path: path.write_text("no tensors"), r"path is no \.safetensors file"),
        (lambda path: write(path, {"a": torch.ones(2)}), "no tensor stem.weight"),
        (
            lambda path: write(path, {"stem.weight": torch.ones(2)}),
            r"stem\.weight has shape \[2\] there and \[16, 1, 3, 3\] in the network",
        ),
        (
            lambda path: (
                write(path / "model.safetensors", {"a": torch.ones(2)}),
                (path / "allocation.json").write_text("{}"),
            ),
            "npas.save wrote a shared network",
        ),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "holds no checkpoint"),
        (lambda path: (path / "search").mkdir(parents=True), "still searching for its groups"),
    ],
)
def test_what_cannot_be_is_one_line(make: Any, said: str, begin: Any, tmp_path: Path) -> None:
    make(tmp_path / "path")
    with pytest.raises(ValueError, match=said) as error:
        begin(tmp_path / "path", budget="0.5")
    assert "\n" not in str(error.value)


def test_a_dense_network_that_nothing_fits_is_refused(begin: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "file.safetensors", {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="no tensor there has a name and shape of the network"):
        begin(file, budget="dense")


def test_a_run_or_file_is_fitted(
    run_small: RunSmall, begin: Any, tmp_path: Path, small: MakeConfig
) -> None:
    before, _ = run_small(epochs=1)
    trained = of_run(before.model.state_dict())
    ours, said = begin(f"fit:{tmp_path / 'run'}/", budget="0.5")
    assert "fitted, relative error" in said and "tensors copied" in said
    assert ours.allocation is not None and ours.allocation.budget.used <= (
        ours.allocation.budget.allowed
    )
    errors = npas.weight_errors(ours.model, trained)
    assert errors == npas.sharing.install.shared_weights(ours.model).errors
    other, _ = begin(tmp_path / "run", budget="0.5")
    assert errors.all < npas.weight_errors(other.model, trained).all
    assert run_dir(ours.config) != run_dir(other.config)
    assert torch.equal(dense(ours)["norm.running_var"], trained["norm.running_var"])


def test_fitting_fresh_weights_is_warned_of(begin: Any) -> None:
    _, said = begin("fit", budget="0.5")
    assert "look fresh" in said


def test_a_fitted_run_resumes_to_the_bit(
    small: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(root: str) -> dict[str, Tensor]:
        config = small(budget="0.5", sharing={"init": "fit"}, run_root=str(tmp_path / root))
        experiment = build(config)
        prepare(experiment)
        train(experiment, run_dir(config))
        return of_run(experiment.model.state_dict())

    def save_and_stop(state: TrainState) -> None:
        save(state)
        raise KeyboardInterrupt

    whole, save = run("a"), TrainState.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainState, "save", save_and_stop)
        run("b")
    again = run("b")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_a_fit_decides_is_ignored_and_what_it_cannot_do_refused(small: MakeConfig) -> None:
    config = small(budget="0.5", sharing={"init": "fit", "upsampler": "mask"})
    assert "sharing.upsampler" in ignored(config)
    assert run_dir(config) == run_dir(small(budget="0.5", sharing={"init": "fit"}))
    with pytest.raises(ValueError, match="finds groups from the weights"):
        small(sharing={"init": "fit:a", "groups": "learned", "num_groups": 2}, budget="0.5")
    with pytest.raises(ValueError, match="grow alike"):
        small(sharing={"init": "fit", "recurrence_weight": 1.0}, budget="0.5")
    assert small(sharing={"init": "./fit"}).sharing.weights == "./fit"
