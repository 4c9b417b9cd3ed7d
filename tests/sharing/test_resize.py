"""The bilinear resize: one exact linear map, and its transpose, for maps of any form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npas
from npas.sharing.generators import upsample
from npas.sharing.generators.upsample import mean_variance, resize
from npas.sharing.layout.allocation import Allocation

SHAPES = {
    "as many": ((4, 6), (4, 6)),
    "ordinary": ((38, 90), (40, 117)),
    "many times": ((3, 5), (64, 81)),
    "smaller": ((9, 20), (5, 7)),
    "one value": ((1, 1), (3, 4)),
    "one column": ((7, 1), (30, 1)),
    "one row": ((1, 3001), (1, 4000)),
    "a huge row": ((1, 300_000), (1, 20_000 * 16)),
    "a huge column": ((300_000, 1), (20_000 * 16, 1)),
}


def draw(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=[None, 64], ids=["usual tiles", "small tiles"])
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(upsample, "TILE", request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_backward_is_the_transpose_of_forward(name, dtype):
    """<R x, y> = <x, R^T y> to rounding, and R is what float64 positions make of it."""
    before, after = SHAPES[name]
    x, y = draw(before, dtype).requires_grad_(), draw(after, dtype, seed=1)
    resized = resize(x, after)
    (back,) = torch.autograd.grad(resized, x, y)
    left, right = resized.double() * y.double(), x.double() * back.double()
    rounding = torch.finfo(dtype).eps * left.abs().sum()
    assert abs(left.sum() - right.sum()) <= rounding
    wide = x.detach().double()[None, None]
    expected = F.interpolate(wide, after, mode="bilinear", align_corners=False)[0, 0]
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(resized.detach().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in SHAPES if "huge" not in name])
def test_tiles_and_plain_operations_agree_to_the_bit(name, tiles):
    before, after = SHAPES[name]
    x, y = draw(before, torch.float32), draw(after, torch.float32, seed=1)
    plain, backward = torch.func.vjp(lambda source: resize(source, after), x)
    assert torch.equal(resize(x, after), plain)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(resize(leaf, after), leaf, y)
    torch.testing.assert_close(gradient, backward(y)[0], rtol=1e-5, atol=1e-5)


def test_half_precision_is_rounded_once():
    x = draw((6, 10), torch.bfloat16)
    assert torch.equal(resize(x, (8, 13)), resize(x.float(), (8, 13)).bfloat16())


def test_derivatives_of_any_order():
    x = draw((3, 4), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: resize(s, (5, 7)), x)
    assert torch.autograd.gradgradcheck(lambda s: resize(s, (5, 7)) ** 2, x)


def test_the_variance_is_that_of_independent_values():
    x = draw((5000, 8), torch.float32)
    made = torch.stack([resize(row.view(2, 4), (3, 7)) for row in x])
    assert float(made.square().mean()) == pytest.approx(mean_variance((2, 4), (3, 7)), rel=0.03)


class Positions(nn.Module):
    """A position table as vision transformers hold it, 1 x N x D, and a small layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 40, 64))
        self.small = nn.Linear(8, 8, bias=False)


def test_a_position_table_is_resized_as_rows_of_positions():
    model = Positions()
    (group,) = npas.allocation(npas.share(model, 0.4, generator="wavg")).groups
    (table,) = (layer for layer in group.layers if layer.upsampler)
    assert table.matrix == (40, 64) and 1 < table.source[0] < 40 and not group.unread
    model.table.sum().backward()
    gradient = model.get_parameter("npas_bank_0").grad
    assert gradient is not None and bool((gradient[: table.template_size] != 0).all())


def test_a_table_that_was_allocated_as_one_row_still_is():
    data = npas.allocation(npas.share(Positions(), 0.4, generator="wavg")).to_dict()
    (layer,) = (layer for layer in data["layers"] if layer["upsampler"])
    layer["source"] = [1, layer["template_size"]]
    (layer,) = (layer for layer in Allocation.from_dict(data).layers if layer.upsampler)
    assert layer.matrix == (1, 40 * 64)
