"""A run with learned groups searches first, and resumes from any moment of either stage."""

import json

import pytest
import torch
from trained import Stopped, log, same, stop_after

import npas
from npas.tasks import digits
from npas.training import build, search, search_groups, stored_grouping, train
from npas.training import grouping as groupings
from npas.training.checkpoint import find_checkpoint
from npas.training.grouping import SEARCH, TRAIN

SEARCHING = {
    "budget": "0.3",
    "deterministic": True,
    "sharing": {"groups": "learned", "num_groups": 3, "search": {"epochs": 2}},
}


@pytest.fixture
def searching(small):
    """Return a maker of small configs whose groups are to be found; sharing is merged."""

    def make(**changes):
        sharing = SEARCHING["sharing"] | changes.pop("sharing", {})
        return small(**{**SEARCHING, **changes, "sharing": sharing})

    return make


def run(config, folder):
    """Do what is left of both trainings, as npas-train does."""
    experiment = build(config, stored_grouping(config, folder))
    if experiment.stage == SEARCH:
        outcome, grouping = search_groups(experiment, folder)
        if grouping is None:
            return experiment, outcome
        experiment = build(config, grouping, experiment.task)
    return experiment, train(experiment, folder)


def stop_at(moment, patch):
    """Stop at a training's first checkpoint, or before or after groups.json is written."""
    write = groupings.write

    def write_and_stop(folder, grouping):
        if moment == "groups written":
            write(folder, grouping)
        raise Stopped

    if moment in (SEARCH, TRAIN):
        stop_after(patch, 1, moment)
    else:
        patch.setattr(groupings, "write", write_and_stop)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Hold an uninterrupted run, made when first asked for."""
    return {"root": tmp_path_factory.mktemp("straight")}


SLOW = [pytest.param(moment, marks=pytest.mark.slow) for moment in (SEARCH, "search done", TRAIN)]


@pytest.mark.parametrize("moment", ["groups written", *SLOW])
def test_a_run_resumed_at_any_moment_equals_an_uninterrupted_one(
    searching, straight, tmp_path, monkeypatch, moment
):
    def untimed(folder):
        return json.loads((folder / "groups.json").read_text()) | {"wall_s": 0}

    if "run" not in straight:
        straight["run"] = run(searching(), straight["root"])
    expected, outcome = straight["run"]
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(moment, patched)
        run(searching(), tmp_path)
    torch.manual_seed(99)  # another process would not have this one's generator either
    resumed, again = run(searching(), tmp_path)
    assert same(expected.model, resumed.model)
    assert (again.metrics, again.steps) == (outcome.metrics, outcome.steps)
    assert untimed(tmp_path) == untimed(straight["root"])
    for part in ("", SEARCH):
        assert log(tmp_path / part) == log(straight["root"] / part)


def test_the_search_is_a_run_of_its_own_that_reads_no_held_out_data(
    searching, tmp_path, monkeypatch
):
    experiment = build(searching())
    assert experiment.stage == SEARCH and experiment.allocation is not None
    with monkeypatch.context() as patched:
        patched.setattr(digits.Task, "evaluate", None)
        outcome, grouping = search_groups(experiment, tmp_path)
    assert grouping is not None and outcome.metrics["last"] == {}
    assert (grouping.epochs, grouping.steps) == (2, 10) and log(tmp_path / SEARCH)[-1]["step"] == 10
    assert 0 < outcome.wall_s <= grouping.wall_s
    assert sorted(path.name for path in tmp_path.iterdir()) == ["groups.json", SEARCH]


def test_the_groups_cover_every_shared_layer_in_depth_order(searching, tmp_path):
    config = searching(epochs=1)
    layers = npas.allocation(build(config).model).groups[0].layers
    experiment, outcome = run(config, tmp_path)
    found = experiment.grouping
    assert found is not None and outcome.status == "done"
    plan = npas.allocation(experiment.model)
    assert {x.name: group.name for group in plan.groups for x in group.layers} == found.groups
    assert [*found.groups] == [layer.name for layer in layers]
    assert {len(v) for v in found.vectors.values()} == {4}
    assert [*dict.fromkeys(found.groups.values())] == [f"learned{i}" for i in range(3)]
    trained, searched = find_checkpoint(tmp_path), find_checkpoint(tmp_path / SEARCH)
    assert trained.state["stage"] == TRAIN and searched.state["stage"] == SEARCH
    assert trained.state["grouping"] == found.to_dict() and searched.state["grouping"] is None

    # A lost file is read from the checkpoint.
    file = tmp_path / "groups.json"
    file.unlink()
    assert stored_grouping(config, tmp_path) == found

    # Starting anew forgets the groups.
    again = searching(epochs=1, force=True)
    assert stored_grouping(again, tmp_path) is None
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stopped):
        stop_at(SEARCH, patched)
        run(again, tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["log.jsonl", SEARCH]


def test_gradients_are_grouped_by_their_agreement(searching, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "GRADIENT_BATCHES", 6)
    experiment, outcome = run(searching(sharing={"groups": "gradient"}, epochs=1), tmp_path)
    grouping = experiment.grouping
    assert grouping is not None and outcome.status == "done"
    cosines = torch.tensor([*grouping.vectors.values()])
    assert torch.allclose(cosines, cosines.T) and bool((cosines.diagonal() == 1).all())
    assert grouping.half_agreement is not None and -1 <= grouping.half_agreement <= 1
    assert set(grouping.groups.values()) == {"gradient0", "gradient1", "gradient2"}


@pytest.mark.parametrize(
    "moment", [SEARCH, "groups written", pytest.param(TRAIN, marks=pytest.mark.slow)]
)
def test_another_runs_folder_can_be_named(searching, tmp_path, monkeypatch, moment):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(moment, patched)
        run(searching(), tmp_path / "old")
    part = SEARCH if moment == SEARCH else ""
    before = log(tmp_path / "old" / part) if moment != "groups written" else []
    _, outcome = run(searching(resume=str(tmp_path / "old")), tmp_path / "new")
    assert outcome.status == "done" and outcome.steps == 10
    logged = log(tmp_path / "new" / part)
    assert logged[: len(before)] == before and logged[-1]["step"] == 10  # its log is whole


@pytest.mark.parametrize("allocator", ["npas", "reference"])
def test_more_groups_than_layers_are_refused_before_the_search(searching, allocator):
    with pytest.raises(ValueError, match=r"num_groups=99 .*\b11\b.* shareable layers"):
        build(searching(sharing={"num_groups": 99, "allocator": allocator}))


def test_a_search_that_diverges_says_where(searching, tmp_path):
    experiment, outcome = run(searching(optim={"lr": 1e9}), tmp_path)
    assert experiment.stage == SEARCH and outcome.status == "diverged"
    assert outcome.error is not None and outcome.error.startswith("in the search for groups: ")
    assert not (tmp_path / "groups.json").exists()
