"""A run that learns its groups has two stages, and goes on from any moment of either."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import npas
from npas.config import Config
from npas.tasks import digits
from npas.training import Experiment, Outcome, build, search, search_groups, stored_grouping, train
from npas.training import grouping as groupings
from npas.training.checkpoint import find_checkpoint
from npas.training.state import SEARCH, TRAIN, TrainState

SEARCHING: dict[str, Any] = {
    "budget": "0.3",
    "deterministic": True,
    "sharing": {"groups": "learned", "num_groups": 3, "search": {"epochs": 2}},
}


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture
def searching(small: Callable[..., Config]) -> Callable[..., Config]:
    """Return a maker of small configs whose groups are to be found; sharing is merged."""

    def make(**changes: Any) -> Config:
        sharing = SEARCHING["sharing"] | changes.pop("sharing", {})
        return small(**{**SEARCHING, **changes, "sharing": sharing})

    return make


def run(config: Config, folder: Path) -> tuple[Experiment, Outcome]:
    """Do what is left of both stages, as npas-train does."""
    experiment = build(config, stored_grouping(config, folder))
    if experiment.stage == SEARCH:
        outcome, grouping = search_groups(experiment, folder)
        if grouping is None:
            return experiment, outcome
        experiment = build(config, grouping, experiment.task)
    return experiment, train(experiment, folder)


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def untimed(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "groups.json").read_text()) | {"wall_s": 0}


def stop_at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at a stage's first checkpoint, or before or after groups.json is written."""
    save, write = TrainState.save, groupings.write

    def save_and_stop(self: TrainState) -> None:
        save(self)
        if moment == self.stage and self.progress.epoch == 1:
            raise Stopped

    def write_and_stop(folder: Path, grouping: groupings.Grouping) -> None:
        if moment == "groups written":
            write(folder, grouping)
        raise Stopped

    monkeypatch.setattr(TrainState, "save", save_and_stop)
    if moment not in (SEARCH, TRAIN):
        monkeypatch.setattr(groupings, "write", write_and_stop)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Hold uninterrupted runs, made when first asked for."""
    return {"root": tmp_path_factory.mktemp("straight")}


MOMENTS = [
    SEARCH,
    pytest.param("search done", marks=pytest.mark.slow),
    "groups written",
    TRAIN,
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_resumed_in_either_stage_equals_an_uninterrupted_one(
    searching, straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    if "run" not in straight:
        straight["run"] = run(searching(), straight["root"])
    expected, outcome = straight["run"]
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(moment, patched)
        run(searching(), tmp_path)
    torch.manual_seed(99)  # another process would not have this one's generator either
    resumed, again = run(searching(), tmp_path)
    ours, theirs = expected.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (again.metrics, again.steps) == (outcome.metrics, outcome.steps)
    assert untimed(tmp_path) == untimed(straight["root"])
    assert log(tmp_path) == log(straight["root"])


def test_the_search_is_logged_apart_and_reads_no_held_out_data(
    searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = searching()
    experiment = build(config)
    assert experiment.stage == SEARCH and experiment.allocation is not None
    with monkeypatch.context() as patched:
        patched.setattr(digits.Task, "evaluate", None)
        outcome, grouping = search_groups(experiment, tmp_path)
    assert grouping is not None and outcome.metrics["last"] == {}
    assert {line["stage"] for line in log(tmp_path)} == {SEARCH}
    assert (grouping.epochs, grouping.steps) == (2, 10)
    assert 0 < outcome.wall_s <= grouping.wall_s
    run(config, tmp_path)
    lines = log(tmp_path)
    marks = [line.get("stage", TRAIN) for line in lines]
    assert marks == sorted(marks)  # first the search
    last = [
        max(line["step"] for line in lines if line.get("stage", TRAIN) == s) for s in set(marks)
    ]
    assert last == [10, 10]


def test_the_groups_cover_every_shared_layer_in_depth_order(searching, tmp_path: Path) -> None:
    experiment, outcome = run(searching(), tmp_path)
    assert experiment.grouping is not None and outcome.status == "done"
    plan = npas.allocation(experiment.model)
    found = {layer.name: group.name for group in plan.groups for layer in group.layers}
    assert found == experiment.grouping.groups
    names = [name for name, _ in build(searching()).model.named_parameters()]
    layers = [*npas.allocation(build(searching()).model).groups[0].layers]
    assert [*found.keys()] != names  # the plan is by group, the file by depth
    assert [*experiment.grouping.groups] == [layer.name for layer in layers]
    assert {len(v) for v in experiment.grouping.vectors.values()} == {4}
    assert [*dict.fromkeys(experiment.grouping.groups.values())] == [
        f"learned{i}" for i in range(3)
    ]


def test_embeddings_are_what_is_grouped_of_emb(searching, tmp_path: Path) -> None:
    config = searching(sharing={"generator": "emb"}, epochs=1)
    _, grouping = search_groups(build(config), tmp_path)
    assert grouping is not None
    assert {len(vector) for vector in grouping.vectors.values()} == {24}


def test_gradients_are_grouped_by_their_agreement(
    searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "GRADIENT_BATCHES", 6)
    config = searching(sharing={"groups": "gradient"}, epochs=1)
    experiment, outcome = run(config, tmp_path)
    grouping = experiment.grouping
    assert grouping is not None and outcome.status == "done"
    cosines = torch.tensor([*grouping.vectors.values()])
    assert torch.allclose(cosines, cosines.T) and bool((cosines.diagonal() == 1).all())
    assert grouping.half_agreement is not None and -1 <= grouping.half_agreement <= 1
    assert set(grouping.groups.values()) == {"gradient0", "gradient1", "gradient2"}


def test_gradients_of_equal_data_agree(searching, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is the batches' common wish, not the noise of each."""
    monkeypatch.setattr(search, "GRADIENT_BATCHES", 20)
    experiment = build(searching(sharing={"groups": "gradient"}))
    experiment.task.setup()
    one, other = search.mean_gradients(experiment)
    for name in one:
        cosine = torch.nn.functional.cosine_similarity(one[name].ravel(), other[name].ravel(), 0)
        assert cosine > 0.3, name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_take_no_more_memory_than_the_search_did(
    searching, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Batches come in the search's parts, and in the run's precision."""
    monkeypatch.setattr(search, "GRADIENT_BATCHES", 2)
    model = {"dropout": 0.0}
    changes = {"sharing": {"groups": "gradient"}, "batch_size": 32, "model": model}
    seen = []

    def loss_of(task: Any, network: Any, batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        enabled = torch.is_autocast_enabled("cpu")
        seen.append((batch.size, torch.get_autocast_dtype("cpu") if enabled else None))
        # What a batch norm or dropout sees differs between parts: a plain mean does not.
        outputs = network.eval()(batch.inputs)
        return torch.nn.functional.cross_entropy(outputs.float(), batch.targets), {}

    found = []
    for count, dtype in ((1, "fp32"), (4, precision)):
        experiment = build(
            searching(**changes, precision=dtype, trainer={"grad_accum_steps": count})
        )
        experiment.task.setup()
        monkeypatch.setattr(type(experiment.task), "loss", loss_of)
        found.append(search.mean_gradients(experiment))
    kind = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen == [(32, None)] * 2 + [(8, kind)] * 8
    for half, whole in zip(found[1], found[0], strict=True):
        for name, gradient in half.items():
            assert gradient.dtype == torch.float32
            error = (gradient - whole[name]).norm() / whole[name].norm().clamp_min(1e-12)
            assert error < (1e-4 if precision == "fp32" else 0.25), (name, error)


def test_starting_anew_forgets_the_groups(searching, tmp_path: Path) -> None:
    run(searching(epochs=1), tmp_path)
    again = searching(epochs=1, force=True)
    assert stored_grouping(again, tmp_path) is None
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stopped):
        stop_at(SEARCH, patched)
        run(again, tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["log.jsonl", "search"]


@pytest.mark.parametrize(
    "moment", [SEARCH, "groups written", pytest.param(TRAIN, marks=pytest.mark.slow)]
)
def test_another_runs_folder_can_be_named(
    searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(moment, patched)
        run(searching(), tmp_path / "old")
    before = [(line.get("stage", TRAIN), line["step"]) for line in log(tmp_path / "old")]
    _, outcome = run(searching(resume=str(tmp_path / "old")), tmp_path / "new")
    assert outcome.status == "done" and outcome.steps == 10
    logged = [(line.get("stage", TRAIN), line["step"]) for line in log(tmp_path / "new")]
    assert logged[: len(before)] == before  # it goes on, and its log is whole
    assert len(set(logged)) >= len(before) + 2 and logged[-1] == (TRAIN, 10)


def test_a_lost_file_is_read_from_the_checkpoint_and_another_is_refused(
    searching, tmp_path: Path
) -> None:
    config = searching(epochs=1)
    experiment, _ = run(config, tmp_path)
    found = experiment.grouping
    assert found is not None
    file = tmp_path / "groups.json"
    file.unlink()
    assert stored_grouping(config, tmp_path) == found
    names = [*found.groups]
    swapped = found.groups | {names[0]: found.groups[names[-1]], names[-1]: found.groups[names[0]]}
    data = found.to_dict()
    data["layers"] = [layer | {"group": swapped[layer["name"]]} for layer in data["layers"]]
    if swapped == found.groups:
        data["layers"][0]["group"] = "mine"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"trained with other groups than the run's groups\.json"):
        run(config, tmp_path)


def test_groups_of_another_run_or_of_fewer_layers_are_refused(searching, tmp_path: Path) -> None:
    experiment = build(searching(epochs=1))
    names = [layer.name for layer in experiment.allocation.layers]
    found = groupings.Grouping(
        method="learned", seed=0, num_groups=3, epochs=2, steps=10, wall_s=1.0,
        half_agreement=None, groups=dict.fromkeys(names, "learned0"),
        vectors={name: [1.0] for name in names},
    )  # fmt: skip
    groupings.write(tmp_path, found)
    config = searching(epochs=1)
    assert stored_grouping(config, tmp_path) == found
    fewer = {name: "learned0" for name in names[1:]}
    with pytest.raises(ValueError, match=rf"groups\.json lacks {names[0]}: delete that file"):
        build(config, dataclasses.replace(found, groups=fewer))
    groupings.write(tmp_path, dataclasses.replace(found, num_groups=5, seed=1))
    with pytest.raises(ValueError, match=r"of another run \(num_groups: 5 .*; seed: 1 .*delete it"):
        stored_grouping(config, tmp_path)


def test_a_search_that_diverges_says_where(searching, tmp_path: Path) -> None:
    experiment, outcome = run(searching(optim={"lr": 1e9}), tmp_path)
    assert experiment.stage == SEARCH and outcome.status == "diverged"
    assert outcome.error is not None and outcome.error.startswith("in the search for groups: ")
    assert not (tmp_path / "groups.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sharing": {"num_groups": 40}}, "num_groups=40 is out of range"),
        ({"budget": "0.3K"}, "needs at least"),
        ({"sharing": {"include": ["nothing.*"]}}, "matches no parameter"),
    ],
)
def test_what_cannot_come_to_groups_is_said_before_the_search(
    searching, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        build(searching(**changes))


def test_a_checkpoint_tells_its_stage_and_its_groups(searching, tmp_path: Path) -> None:
    experiment, _ = run(searching(epochs=1), tmp_path)
    assert experiment.grouping is not None
    trained, searched = find_checkpoint(tmp_path), find_checkpoint(tmp_path / SEARCH)
    assert trained.state["stage"] == TRAIN and searched.state["stage"] == SEARCH
    assert trained.state["grouping"] == experiment.grouping.to_dict()
    assert searched.state["grouping"] is None
