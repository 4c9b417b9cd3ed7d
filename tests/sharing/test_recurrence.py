"""Layers are compared by what they mix: the similarity matrix, the reward, the ties."""

import math

import pytest
import torch
import torch.nn.functional as F
from soft import chain, repeated, set_rows
from tiny import shared
from torch import nn

import npas
from npas.sharing.trained.layer_similarity import recurrence_reward, similarity, tie

TWO = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]


def names(*places):
    return [f"blocks.{place}.weight" for place in places]


def test_the_matrix_is_the_absolute_cosine_of_what_layers_mix():
    model = chain()
    rows = [[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [1.0, 1.0, 0.0], *repeated([[0.0, 0.0, 3.0]], 9)]
    set_rows(model, rows)
    (found,) = similarity(model)
    assert found.group == "blocks"
    assert found.layers == tuple(names(*(f"{b}.conv{c}" for b in range(6) for c in (1, 2))))
    assert found.matrix_LL.shape == (12, 12)
    expected = [1.0, 1.0, math.sqrt(0.5), 0.0]
    assert found.matrix_LL[0, :4].tolist() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(found.matrix_LL, found.matrix_LL.T)
    plain = found.to_dict()
    assert plain["matrix"][0][:3] == [1.0, 1.0, 0.707107]  # type: ignore[index]


def test_layers_of_different_templates_are_not_compared():
    model = shared(2.0)  # layers of several sizes read different templates of one bank
    (found,) = similarity(model)
    layers = {layer.name: layer for layer in npas.allocation(model).layers}
    for i, one in enumerate(found.layers):
        for j, other in enumerate(found.layers):
            compared = bool(found.matrix_LL[i, j].isfinite())
            assert compared == (layers[one].templates == layers[other].templates), (one, other)
    assert any(None in row for row in found.to_dict()["matrix"])  # type: ignore[attr-defined]


def test_the_reward_is_the_mean_cosine_over_all_pairs():
    model = chain()
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    set_rows(model, rows.tolist())
    pairs = [F.cosine_similarity(rows[i], rows[j], dim=0) for i in range(12) for j in range(i)]
    assert recurrence_reward(model).item() == pytest.approx(sum(pairs).item() / 66, abs=1e-6)
    set_rows(model, repeated([[1.0, 2.0, 3.0]], 12))
    assert recurrence_reward(model).item() == pytest.approx(1)


@pytest.mark.parametrize("generator", ["wavg", "emb", "mlp"])
def test_the_reward_has_the_right_gradient(generator):
    model = chain(generator=generator).double()
    names = [name for name, _ in model.named_parameters() if "npas_" in name and "bank" not in name]
    starts = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def reward(*tensors):
        parameters = dict(zip(names, tensors, strict=True))
        with nn.utils.stateless._reparametrize_module(model, parameters):
            return recurrence_reward(model)

    assert torch.autograd.gradcheck(reward, starts)


def test_nothing_to_make_alike_is_refused():
    with pytest.raises(ValueError, match="no two layers mix the same templates"):
        recurrence_reward(chain(generator="avg"))
    with pytest.raises(ValueError, match="not shared"):
        similarity(nn.Linear(2, 2))
    for generator in ("hash", "basis", "tiles", "factorized", "channels"):
        with pytest.raises(ValueError, match="has no coefficients per layer to compare: share"):
            similarity(shared(0.2, generator=generator))


def test_ties_set_what_agrees_equal_and_leave_the_rest():
    model = chain()
    near = [1.0, 0.01, 0.0]
    set_rows(model, [[1.0, 0.0, 0.0], near, [-1.0, 0.0, 0.0], *repeated([[0.0, 1.0, 1.0]], 9)])
    before = model.get_parameter("npas_coefficients_0_3").detach().clone()
    assert tie(model, 0.999) == [
        names("0.conv1", "0.conv2"),
        names("1.conv2", *(f"{b}.conv{c}" for b in range(2, 6) for c in (1, 2))),
    ]
    after = model.get_parameter("npas_coefficients_0_3")
    assert after[0].tolist() == after[1].tolist() == pytest.approx([1.0, 0.005, 0.0])
    assert torch.equal(after[2:], before[2:])


def test_each_two_of_those_tied_agree():
    """A chain of neighbours does not tie its ends."""
    model = chain(2)
    angles = torch.linspace(0, 1.1, 12)
    set_rows(model, torch.stack([angles.cos(), angles.sin()], 1).tolist())
    (found,) = similarity(model)
    place = {name: i for i, name in enumerate(found.layers)}
    tied = tie(model, 0.95)
    assert len(tied) > 1
    for members in tied:
        for one in members:
            for other in members:
                assert found.matrix_LL[place[one], place[other]] >= 0.95 - 1e-9


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan"), "auto", None])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(ValueError, match="above 0, up to 1"):
        tie(chain(), threshold)


def test_sparse_coefficients_start_with_one_template_each():
    model = chain(3, coefficient_init="sparse")
    rows = model.get_parameter("npas_coefficients_0_3")
    assert torch.equal(rows, torch.eye(3).repeat(4, 1))
    assert npas.allocation(model).scheme.coefficient_init == "sparse"


@pytest.mark.parametrize("templates", [3, 12, 20])
def test_released_coefficients_start_as_one_orthogonal_matrix(templates):
    """Of more layers than templates the rows are shorter than one, and no scale makes up for it."""
    model = chain(templates, coefficient_init="released")
    rows = model.get_parameter(f"npas_coefficients_0_{templates}").detach()
    products = rows.T @ rows if templates < 12 else rows @ rows.T
    torch.testing.assert_close(products, torch.eye(len(products)), rtol=0, atol=1e-5)
    assert model.get_buffer("npas_scales").tolist() == pytest.approx([1.0])
