"""A teacher's logits on disk: computed once, read again to the bit, or refused."""

import collections
import contextlib
import dataclasses
import math
import shutil
import types

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from trained import Stopped, same, stop_after

from npas.tasks import digits
from npas.training import build, distillation, prepare, train


@pytest.fixture
def unmoved(monkeypatch):
    """Let the digits stay where they are."""
    monkeypatch.setattr(digits.Task, "recipe", dataclasses.replace(digits.RECIPE, padding=0))


@pytest.fixture
def taught(small, run_small, tmp_path):
    """Return what trains a student of one teacher, and counts what the teacher was asked."""
    run_small("teacher", epochs=1)

    def run(folder, **changes):
        keys = {"teacher": str(tmp_path / "teacher"), "cache": str(tmp_path / "kept")}
        changes = {"budget": "0.3", **changes, "distill": keys | changes.get("distill", {})}
        config = small(**changes)
        experiment = build(config)
        prepare(experiment)
        asked = collections.Counter()
        experiment.distilled.teacher.register_forward_hook(  # type: ignore[union-attr]
            lambda module, inputs, output: asked.update(samples=len(output))
        )
        return experiment, train(experiment, tmp_path / folder), asked["samples"]

    return run


@pytest.mark.slow
def test_each_sample_is_asked_for_once_and_the_next_run_asks_for_none(unmoved, taught, tmp_path):
    plain, _, asked = taught("plain", distill={"cache": None})
    first, _, once = taught("first")
    assert asked == 2 * 5 * 256 and once == first.task.train_size == 1295
    torch.testing.assert_close(first.model.state_dict(), plain.model.state_dict())
    # Seeds and budgets share it.
    for folder, changes in (("seed", {"seed": 5, "batch_size": 128}), ("low", {"budget": "0.2"})):
        assert taught(folder, **changes)[2] == 0
    (path,) = (tmp_path / "kept").iterdir()  # no lock, nothing half written
    with safe_open(path, "pt") as file:
        assert file.get_tensor("output").shape == (1295, 10)
    # Another precision has a file of its own.
    assert taught("half", precision="bf16")[2] == 1295
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.slow
def test_a_resumed_run_is_bit_exact_and_needs_the_teacher_that_it_had(
    unmoved, taught, run_small, tmp_path, monkeypatch
):
    straight, expected, _ = taught("straight", trainer={"grad_accum_steps": 2})
    shutil.rmtree(tmp_path / "kept")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        taught("killed", trainer={"grad_accum_steps": 2})
    (tmp_path / "teacher").rename(tmp_path / "first")
    run_small("teacher", epochs=1, seed=8)
    with pytest.raises(ValueError, match=r"has other weights than the teacher of .*resume=never"):
        taught("killed", trainer={"grad_accum_steps": 2})
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "first").rename(tmp_path / "teacher")
    resumed, outcome, asked = taught("killed", trainer={"grad_accum_steps": 2})
    assert asked == 0 and outcome.metrics == expected.metrics
    assert same(straight.model, resumed.model)


@pytest.mark.slow
def test_ranks_meet_whether_or_not_one_saw_the_file_at_its_start(unmoved, taught):
    taught("first")
    cache = taught("second")[0].distilled.cache
    assert cache.kept
    met = []

    @contextlib.contextmanager
    def together():
        met.append(len(cache.kept))
        yield

    cache.process = types.SimpleNamespace(
        together=together, is_main=False, device=torch.device("cpu")
    )
    batch = next(cache.task.train_batches(0, 8))
    for kept in (cache.kept, {}):  # another run may have written it between the starts of two ranks
        cache.kept, cache.was_read = kept, False
        assert len(cache.read(batch, pytest.fail)["output"]) == 8
        cache.read(batch, pytest.fail)
    assert met == [1, 0]


@pytest.mark.slow
def test_a_damaged_file_is_one_line_before_training(unmoved, taught, tmp_path):
    taught("first")
    (path,) = (tmp_path / "kept").iterdir()
    whole, rows = path.read_bytes(), load_file(path)
    few = {name: own[:5].clone() for name, own in rows.items()}
    unknown = {name: own * math.nan for name, own in rows.items()}
    for wrong in (whole[:-100], b"nothing", b"", *map(save, (few, unknown, {}))):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"kept/.*\.safetensors is damaged \(.*: delete it$"):
            taught("second")
    path.unlink()
    assert taught("second")[2] == 1295


def test_what_cannot_be_kept_is_refused_in_one_line(taught, tmp_path, monkeypatch, small):
    with pytest.raises(
        ValueError, match=r"the inputs of digits change .*: set distill\.cache=null"
    ):
        taught("moved")
    for keys, line in (
        ({"hidden": ["stages.0"]}, "keeps only logits"),
        ({"cache": " "}, "distill.cache must not be empty"),
    ):
        with pytest.raises(ValueError, match=line):
            taught("never", distill=keys)
    monkeypatch.setattr(digits.Task, "recipe", dataclasses.replace(digits.RECIPE, padding=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a writable folder"):
        taught("never", distill={"cache": str(tmp_path / "file")})
    assert not (tmp_path / "kept").exists() and not (tmp_path / "never").exists()
    config = dataclasses.replace(
        small(distill={"teacher": str(tmp_path / "teacher"), "cache": str(tmp_path / "kept")}),
        dry_run=True,
    )
    experiment = build(config)
    prepare(experiment)
    assert experiment.distilled.cache is None  # type: ignore[union-attr]


def test_a_sample_that_changes_later_is_refused(unmoved, taught, tmp_path, monkeypatch):
    collate = digits.Task.collate

    def change(self, index_B, epoch, step):
        batch = collate(self, index_B, epoch, step)
        return batch._replace(inputs=batch.inputs + (step > 6))

    monkeypatch.setattr(digits.Task, "collate", change)
    with pytest.raises(ValueError, match="a sample of digits is not the same as in the first"):
        taught("changing")


def test_outputs_without_a_row_per_sample_are_refused(unmoved, taught, monkeypatch, tmp_path):
    logits = distillation.logits
    monkeypatch.setattr(
        distillation, "logits", lambda out: {name: own[:7] for name, own in logits(out).items()}
    )
    with pytest.raises(ValueError, match="needs one row of logits per sample, and 'output' has 7"):
        taught("short")
    assert not [*(tmp_path / "kept").glob("*.safetensors")]
