"""Codebooks: weights made of bank rows that a fit has chosen, an index for each."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fits import Blocks, drawn, fitted
from torch import nn
from torch.func import functional_call, grad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import npas
from npas.sharing import price
from npas.sharing.compression.quantize import decode, encode
from npas.sharing.trained.activations import Root
from npas.sharing.trained.codebooks import quantize, row_length, tree
from npas.sharing.trained.corrections import nearest

pytestmark = pytest.mark.filterwarnings("ignore:.*look fresh")  # random weights stand for trained
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def by_codebook(budget=0.45, make=Blocks, **options):
    return fitted(drawn(make=make), budget, generator="codebook", **options)[0]


def naive(model):
    """Return the weights by name, row by row from their definition."""
    plan, tensors, found = npas.allocation(model), dict(model.state_dict()), {}
    for i, layer in enumerate(plan.layers):
        bank, row = tensors["npas_bank_0"], layer.source[1]
        rows = []
        for index in tensors[f"npas_indices_{i}"].flatten().tolist():
            start = min((-1 - index if index < 0 else index) * row, len(bank) - row)
            rows.append(bank[start : start + row] * (-1 if index < 0 else 1))
        flat = torch.cat(rows)[: layer.size] * tensors["npas_scales"][layer.scale]
        found[layer.name] = flat.view(layer.shape)
    return found


@pytest.mark.parametrize("budget", [0.25, 0.37, 0.5, 0.8])
def test_weights_are_signed_rows_of_the_bank(budget):
    model = by_codebook(budget)
    dense = npas.materialize(copy.deepcopy(model)).state_dict()
    for name, weight in naive(model).items():
        assert torch.equal(dense[name], weight), name
    again = by_codebook(budget)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("rank", [1, 2])
def test_corrections_start_nearest_to_the_codebooks_error(rank, tmp_path):
    dense = drawn(make=Blocks)
    trained = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    model = npas.share(copy.deepcopy(dense), 0.7, init="fit", low_rank=np.int64(rank))
    plan, weights = npas.allocation(model), naive(model)
    assert plan.budget.used == plan.budget.allowed
    assert plan.split["low_rank"] == sum(layer.correction for layer in plan.layers) > 0
    found = npas.materialize(copy.deepcopy(model)).state_dict()
    for i, layer in enumerate(plan.layers):
        wrong = (trained[layer.name] - weights[layer.name]).flatten(1).double()
        left = (trained[layer.name] - found[layer.name]).flatten(1).double()
        best = torch.linalg.svdvals(wrong)[layer.rank :].square().sum()
        assert layer.rank and best <= left.square().sum() <= best + 0.1 * wrong.square().sum()
        rows = model.get_parameter(f"npas_right_{i}").detach()
        torch.testing.assert_close(rows @ rows.T, torch.eye(rank))
    npas.save(model, tmp_path)
    again = npas.load(tmp_path, Blocks()).eval()
    assert torch.equal(again(X), model.eval()(X))
    model(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_corrections_are_the_nearest_ones_for_the_outputs():
    wrong_RN, inputs_BN, outputs_BR = (
        torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        for shape in ((12, 20), (40, 20), (30, 12))
    )
    inputs_BN *= torch.arange(1, 21)
    root = Root(
        torch.linalg.cholesky(outputs_BR.T @ outputs_BR),
        torch.linalg.cholesky(inputs_BN.T @ inputs_BN),
        True,
    )
    left, right = nearest(wrong_RN, 3, root)
    torch.testing.assert_close(right @ right.T, torch.eye(3, dtype=torch.float64))
    found = root.weigh(wrong_RN - left @ right).square().sum()
    best = torch.linalg.svdvals(root.weigh(wrong_RN))[3:].square().sum()
    assert best <= found <= 1.05 * best
    plain, rows = nearest(wrong_RN, 3)
    assert found < 0.8 * root.weigh(wrong_RN - plain @ rows).square().sum()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"low_rank": -1}, "low_rank=-1 is out of range"),
        ({"low_rank": 100}, "low_rank=100 corrects no layer"),
        ({"low_rank": 2, "budget": 0.2}, "or more, or a smaller low_rank"),
        (
            {"low_rank": 1, "exclude": ["body.[123].*", "wide.*", "conv.*"]},
            "low_rank=1 corrects no layer",
        ),
    ],
)
def test_ranks_that_no_layer_can_have_are_refused(options, line):
    for fits in (npas.share, npas.plan):
        with pytest.raises(ValueError, match=line):
            fits(drawn(make=Blocks), **{"budget": 0.6, **options}, init="fit")


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_plain_operations(recompute):
    model = by_codebook(0.5, recompute=recompute, low_rank=int(recompute)).double()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(own):
        return functional_call(model, own | buffers, (X.double(),)).square().sum()

    expected = grad(loss)({name: p.detach() for name, p in parameters.items()})
    for _ in range(2):
        model.zero_grad()
        model(X.double()).square().sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)

    def of_bank(bank):
        return functional_call(model, {"npas_bank_0": bank}, (X[:1].double(),))

    bank = model.npas_bank_0.detach().requires_grad_()
    assert torch.autograd.gradcheck(of_bank, bank, fast_mode=True)
    if not recompute:
        assert torch.autograd.gradgradcheck(of_bank, bank, fast_mode=True)


def test_it_trains_and_its_indices_stay():
    model = by_codebook(0.4)
    before = {name: t.clone() for name, t in model.state_dict().items() if "indices" in name}
    assert before and not any("indices" in name for name, _ in model.named_parameters())
    target = drawn(seed=5)(X).detach()
    optimizer = torch.optim.Adam(npas.param_groups(model, 0.0), lr=0.01)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_loaded_indices_are_read_and_copies_hold_no_tables(tmp_path):
    model, other = by_codebook(), by_codebook()
    with torch.no_grad():
        other(X).sum()
    other(X).sum().backward()
    state = other.state_dict()
    name = "npas_indices_1"
    state[name] = state[name].flip(0).clone()
    other.load_state_dict(state)
    for net in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        net.zero_grad()
        dense = npas.materialize(copy.deepcopy(net))
        assert torch.equal(dense.body[1].weight, naive(net)["body.1.weight"])
        net(X).square().sum().backward()
        dense(X).square().sum().backward()
        torch.testing.assert_close(net.body[0].bias.grad, dense.body[0].bias.grad)
    assert not torch.equal(other(X), model(X))
    with torch.no_grad():  # a new version with the same values, as DDP makes one at each step
        before = other(X)
        for buffer in other.buffers():
            buffer.copy_(buffer.clone())
        assert torch.equal(other(X), before)


def test_no_index_is_read_from_tables_of_another(tmp_path):
    net = nn.Sequential(*[nn.Linear(60, 60, bias=False) for _ in range(2)])
    model = npas.share(net, 0.5, init="fit", generator="codebook")
    x, first = torch.randn(2, 60), model.npas_indices_0.clone()

    def expected(indices):
        other = copy.deepcopy(model)
        other.npas_indices_0 = indices
        return npas.materialize(other)(x)

    for turn in range(6):  # memory that was freed may be used again at once
        new = first.roll(turn, 0)
        assert torch.equal(functional_call(model, {"npas_indices_0": new}, (x,)), expected(new))
        del new
        model.npas_indices_0 = first.roll(-turn, 0)
        assert torch.equal(model(x), expected(first.roll(-turn, 0)))
    model.npas_indices_0.data.copy_(first.flip(0))  # noticed at the next train or eval
    model.train()
    with pytest.raises(ValueError, match="changed in place"):
        model(x)


@pytest.mark.parametrize("when", ["before it has run", "after it has run"])
def test_indices_that_an_average_of_buffers_truncates_are_refused(when, tmp_path):
    model = by_codebook()
    if when == "before it has run":
        npas.save(model, tmp_path)
        model = npas.load(tmp_path, drawn())
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    for _ in range(2):
        average.update_parameters(model)
    uses = average, lambda _: npas.save(average.module, tmp_path), lambda _: average.state_dict()
    for use in (*uses, lambda _: npas.materialize(average.module)):
        with pytest.raises(
            ValueError, match=r"^the indices of \S+ into .* average parameters alone"
        ):
            use(X)
    average.module.load_state_dict(model.state_dict())
    average.eval()
    assert torch.equal(average(X), model(X))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    for _ in range(3):
        average.update_parameters(model)
    torch.testing.assert_close(average(X), model(X))


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_with_rounded_indices_is_refused(strict):
    model = by_codebook()
    before = model.npas_indices_0.clone()
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    state["npas_indices_0"] += 1
    message = "npas_indices_0 must be integers, not torch.float16"
    if strict:
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(state)
    else:
        with pytest.warns(UserWarning, match=message):
            model.load_state_dict(state, strict=False)
    assert torch.equal(model.npas_indices_0, before) and state["npas_indices_0"].dtype == torch.half


@pytest.mark.parametrize("bad", [10_000, -10_000, None], ids=["above", "below", "a float"])
def test_invalid_indices_are_refused_in_one_line(bad, tmp_path):
    model = by_codebook()
    indices = model.npas_indices_1.clone()
    if bad is None:
        indices = indices.float()
    else:
        indices[0] = bad
    model.npas_indices_1 = indices
    message = "npas_indices_1 must be (integers|from -[0-9]+ to)"
    with pytest.raises(ValueError, match=r"indices into its codebook must be"):
        model(X)
    npas.save(model, tmp_path)
    before = drawn()
    with pytest.raises(ValueError, match=rf"^{tmp_path}: {message}[^\n]*$"):
        npas.load(tmp_path, before)
    assert not npas.is_shared(before)


def test_layers_of_one_dimension_the_meta_device_and_large_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    dense = copy.deepcopy(model)
    for options in ({"init": "fit", "generator": "codebook"}, {"generator": "hash"}):
        shared = npas.share(copy.deepcopy(dense), 0.7, include=["*"], **options)
        shared(torch.randn(2, 9)).sum().backward()
        assert all(p.grad is not None for p in shared.parameters())
        assert shared[0].bias.shape == (9,)
    model = by_codebook()
    assert copy.deepcopy(model).to("meta")(X.to("meta")).shape == model(X).shape
    for scale in (1e100, 1e-100):
        large = drawn().double()
        for parameter in large.parameters():
            parameter.data *= scale
        large, state = fitted(large, 0.6, generator="codebook")
        assert 0 < npas.weight_errors(large, state).all < 0.3


@pytest.mark.slow
def test_dtypes_compilers_and_files(tmp_path):
    model = by_codebook()
    expected = model(X)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.npas_indices_0.dtype == torch.int32
    torch.testing.assert_close(half(X.bfloat16()).float(), expected, atol=0.3, rtol=0.3)
    npas.save(model, tmp_path)
    assert torch.equal(npas.load(tmp_path, Blocks())(X), expected)
    plan = npas.plan(drawn(), 0.45, init="fit", generator="codebook")
    assert plan == npas.allocation(model)
    taken = npas.write_artifact(model, tmp_path / "a.npas").bytes
    assert taken <= price(Blocks(), plan, npas.Packing())
    signed = torch.tensor([-8_388_608, -1, 0, 5, 8_388_607], dtype=torch.int32)
    stored = encode(signed, "int24", 0)
    assert len(stored) == 15 and torch.equal(decode(stored, "int24", 5, 0), signed)
    with pytest.raises(ValueError, match="out of range for int24"):
        encode(signed - 1, "int24", 0)
    again = npas.read_artifact(tmp_path / "a.npas", Blocks())
    assert torch.equal(again.npas_indices_1, model.npas_indices_1)
    torch.testing.assert_close(again(X), expected, atol=0.1, rtol=0.1)


def test_layers_of_different_dtypes_have_codebooks_of_their_own():
    model = drawn()
    model.conv.double()
    model, state = fitted(model, 0.6, generator="codebook")
    plan = npas.allocation(model)
    assert [group.name for group in plan.groups] == ["codebook 0", "codebook 1"]
    assert plan.budget.used == plan.budget.allowed == npas.count_parameters(model)
    assert model.conv.weight.dtype == torch.float64 and npas.weight_errors(model, state).all < 0.5

    def two_kinds():
        return nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False).double())

    with pytest.raises(ValueError, match=r"at least 68 parameters: ask for budget=0\.068K or"):
        npas.share(two_kinds(), "0.048K", init="fit", generator="codebook")
    for generator in (None, "basis", "codebook"):
        made = npas.share(two_kinds(), "0.1K", init="fit", generator=generator)
        assert npas.allocation(made).budget.used <= 100
    tiny = nn.Sequential(nn.Linear(12, 12), nn.Linear(2, 1, bias=False).double())
    with pytest.raises(ValueError, match="needs layers of four values or more"):
        npas.share(tiny, 0.8, init="fit", generator="codebook", include=["*weight*"])


def test_each_value_of_the_bank_is_read():
    for seed in range(40):  # cut-off rows at the layers' ends read only a part of a bank row
        torch.manual_seed(seed)
        shapes = [[3 + int(n) for n in torch.randint(12, (2,))] for _ in range(3)]
        model = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)
        allowed = int((0.5 + 0.45 * torch.rand(())) * npas.count_parameters(model))
        npas.share(model, f"{allowed / 1000}K", init="fit", generator="codebook")
        report = npas.allocation(model).budget
        assert report.used == report.allowed == npas.count_parameters(model)
        sum((layer.weight * torch.randn_like(layer.weight)).sum() for layer in model).backward()
        assert model.npas_bank_0.grad.count_nonzero() == len(model.npas_bank_0), seed


def test_many_equal_rows_take_no_longer():
    rows = torch.randn(60_000, 2, generator=torch.Generator().manual_seed(0))
    rows[:54_000] = 0
    bank, indices = quantize(rows, 12_000)  # nearly all of the bank is idle at first
    places = torch.where(indices < 0, -1 - indices, indices)
    assert len(places.unique()) == 12_000
    assert (bank[places].abs() - rows.abs()).norm() < 1e-4 * rows.norm()


def test_rows_that_are_alike_are_found_up_to_their_sign():
    rng = torch.Generator().manual_seed(0)
    distinct = torch.randn(20, 4, generator=rng)
    picked = torch.randint(20, (600,), generator=rng)
    signs = torch.randint(2, (600, 1), generator=rng) * 2.0 - 1
    rows = distinct[picked] * signs
    bank, indices = quantize(rows, 40)
    made = bank[torch.where(indices < 0, -1 - indices, indices)]
    torch.testing.assert_close(made * torch.where(indices < 0, -1.0, 1.0)[:, None], rows)
    assert len(torch.where(indices < 0, -1 - indices, indices).unique()) == 40


def test_cells_have_equal_mass_and_values_of_more_weight_smaller_errors():
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 7, 64, 999, 1000):
        sizes = torch.bincount(tree(rows, count), minlength=count)
        assert len(sizes) == count and sizes.max() <= -(-1000 // count) + 1 and sizes.min() >= 1
    weight = torch.ones(1000, 3)
    weight[:300] = 100
    errors = []
    for own in (None, weight):
        bank, indices = quantize(rows, 100, own)
        made = bank[torch.where(indices < 0, -1 - indices, indices)]
        made = made * torch.where(indices < 0, -1.0, 1.0)[:, None]
        errors.append((made - rows).square().mean(1))
    assert errors[1][:300].mean() < 0.65 * errors[0][:300].mean()
    assert (errors[1] * weight[:, 0]).mean() < 0.7 * (errors[0] * weight[:, 0]).mean()


@pytest.mark.slow
def test_the_length_of_rows_is_near_the_best_one():
    values = torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    for budget in (0.15, 0.3, 0.55):
        errors = {}
        for row in range(2, 16):
            rows = F.pad(values, (0, -len(values) % row)).view(-1, row)
            count = (int(budget * len(values)) - len(rows)) // row
            if count >= 2:
                bank, indices = quantize(rows, count)
                made = bank[torch.where(indices < 0, -1 - indices, indices)]
                wrong = made * torch.where(indices < 0, -1.0, 1.0)[:, None] - rows
                errors[row] = float(wrong.square().mean())
        chosen = row_length([len(values)], int(budget * len(values)))
        assert errors[chosen] < 1.1 * min(errors.values()), (budget, chosen, errors)
