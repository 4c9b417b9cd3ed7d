"""A teacher's outputs as targets: the formula, the loss of a run, what is refused."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from trained import equal

import npas
from npas.config import DistillConfig, SharingConfig, run_dir
from npas.training import build, distillation, prepare, train


def test_the_loss_is_hintons():
    """T^2 KL, by its definition, and its gradient T (softmax(s / T) - softmax(t / T)) / B."""
    torch.manual_seed(0)
    student = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, dtype=torch.float64)
    for temperature in (1.0, 4.0):
        p, q = (x.div(temperature).softmax(1) for x in (teacher, student))
        expected = temperature**2 * (p * (p.log() - q.log())).sum() / 5
        found = npas.distillation_loss(student, teacher, temperature)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
        (gradient,) = torch.autograd.grad(found, student)
        torch.testing.assert_close(gradient, temperature * (q - p) / 5, rtol=1e-5, atol=1e-7)
    assert npas.distillation_loss(teacher, teacher).item() == 0


def test_several_outputs_count_alike_and_masked_places_not_at_all():
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    masked = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]] * 2)
    alone = npas.distillation_loss(a, b)
    assert npas.distillation_loss((a, masked), (b, masked)) == alone / 2
    named = {"loss": torch.tensor(1.0), "start": a, "end": b}
    expected = (npas.distillation_loss(a, b) + npas.distillation_loss(b, a)) / 2
    assert npas.distillation_loss(named, {"start": b, "end": a}) == expected


def test_of_named_outputs_with_logits_these_alone_are_matched():
    a, b, states = torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 5, 8)
    student = {"logits": a, "encoder_last_hidden_state": states}
    teacher = {"logits": b, "encoder_last_hidden_state": states[..., :6]}  # a narrower encoder
    assert npas.distillation_loss(student, teacher) == npas.distillation_loss(a, b)
    ends = {"start_logits": a, "end_logits": b, "pooled": states}
    found = npas.distillation_loss(ends, {"start_logits": b, "end_logits": a})
    assert found == npas.distillation_loss((a, b), (b, a))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), "shape 2 x 4, the student's 2 x 3"),
        ({"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, "no output 'a'"),
        (torch.zeros(2), torch.zeros(2), "no logits"),
    ],
)
def test_outputs_that_do_not_match_are_refused(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        npas.distillation_loss(student, teacher)
    for temperature in (0, float("nan"), float("inf"), "4", None):
        with pytest.raises(ValueError, match=r"temperature(=.*)? must be"):
            npas.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


def test_a_run_learns_from_a_run(run_small, small, tmp_path):
    teacher, _ = run_small("teacher", epochs=4)
    keys = {"teacher": str(tmp_path / "teacher"), "weight": 0.75, "temperature": 2.0}
    config = small(budget="0.3", distill=keys | {"hidden": ["stages.0"], "hidden_weight": 0.5})
    experiment = build(config)
    prepare(experiment)
    learner, student = experiment.learner, experiment.model.eval()
    batch = next(experiment.task.train_batches(0, 64))
    found, sums = learner.loss(student, batch)
    plain, _ = experiment.task.loss(student, batch)
    network = teacher.model.eval()
    inputs = experiment.task.preprocess(batch.inputs)
    with torch.no_grad():
        soft = npas.distillation_loss(student(inputs), network(inputs), 2.0)
        kept = []
        for model in (student, network):
            hook = model.stages[0].register_forward_hook(lambda m, a, out: kept.append(out))
            model(inputs)
            hook.remove()
        hidden = F.mse_loss(*kept)
    expected = 0.25 * plain + 0.75 * soft + 0.5 * hidden
    torch.testing.assert_close(found, expected)
    assert sums["distill_loss"] == pytest.approx(soft.item() * 64)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert train(experiment, tmp_path / "student").status == "done"
    assert equal(before, learner.teacher.state_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teacher": "nowhere"}, "distill.teacher=nowhere: "),
        ({"teacher": "dense"}, "has no trained weights"),
        ({"teacher": "TEACHER", "hidden": ["layers.7"]}, "no module 'layers.7'"),
        ({"teacher": "OTHER", "hidden": ["stages.0"]}, "name others in distill.hidden"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line_before_training(
    distill, message, run_small, small, tmp_path
):
    if "TEACHER" in distill["teacher"]:
        run_small("t", epochs=1)
    if "OTHER" in distill["teacher"]:
        run_small("t", epochs=1, model={"width": 1})
    path = str(tmp_path / "t") if distill["teacher"].isupper() else distill["teacher"]
    experiment = build(small(distill=distill | {"teacher": path}))
    with pytest.raises(ValueError, match=message) as error:
        prepare(experiment)
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_task_is_one_line(small, monkeypatch):
    for teacher in (nn.Conv2d(3, 10, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))):
        monkeypatch.setattr(distillation.initial, "restore", lambda path, found=teacher: found)
        with pytest.raises(ValueError, match=r"network does not fit digits \(.+\): name a run"):
            prepare(build(small(distill={"teacher": "other"})))


@pytest.mark.slow
def test_dense_is_the_network_before_sharing_or_its_own_run_where_that_has_a_fresh_head(
    run_small, small, tmp_path
):
    trained, _ = run_small("trained", epochs=1)
    keys = {"run_root": str(tmp_path / "runs"), "budget": "0.3"}
    whole = keys | {"sharing": {"init": f"fit:{tmp_path / 'trained'}"}}
    experiment = build(small(distill={"teacher": "dense"}, **whole))
    prepare(experiment)
    teacher = experiment.distilled.teacher.state_dict()  # type: ignore[union-attr]
    expected = trained.model.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in expected.items())

    body = {name: t for name, t in expected.items() if not name.startswith("classifier.")}
    save_file(body, tmp_path / "body.safetensors")
    keys["sharing"] = {"init": f"fit:{tmp_path / 'body.safetensors'}"}
    config = small(distill={"teacher": "dense"}, **keys)
    with pytest.raises(
        ValueError, match=r"classifier\.\w+ of the dense network is fresh.*train it first"
    ):
        prepare(build(config))
    dense, sharing = dataclasses.replace(config, budget="dense"), SharingConfig()
    dense = dataclasses.replace(dense, sharing=sharing, distill=DistillConfig())
    own = build(dense)
    assert train(own, run_dir(dense)).status == "done"
    experiment = build(config)
    prepare(experiment)
    teacher = experiment.distilled.teacher.state_dict()  # type: ignore[union-attr]
    found = own.model.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in found.items())
