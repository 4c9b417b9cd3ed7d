"""Loops: which modules make one, and that they compute as the modules they replace."""

import copy

import pytest
import torch
from soft import GRIDS, chain, repeated, set_rows
from torch import nn
from torch.utils.checkpoint import checkpoint

import npas
from npas.sharing.runtime.loops import fold_repeats
from npas.sharing.trained.folding import fold
from npas.sharing.trained.layer_similarity import tie

A, B = [1.0, 0.2, 0.0], [0.0, -1.0, 0.5]


@torch.no_grad()
def outputs(model):
    return model.eval()(GRIDS)


def looped():
    """Return a chain whose six blocks became one loop."""
    model = chain()
    set_rows(model, repeated([A, B], 6))
    fold(model, 0.99)
    return model


def test_modules_that_differ_beyond_their_norms_do_not_loop():
    block = nn.Conv2d(4, 4, 3, padding=1)

    def with_weight(**options):
        conv = nn.Conv2d(4, 4, 3, **{"padding": 1, **options})
        conv.weight = block.weight
        return conv

    for odd in (with_weight(dilation=2, padding=2), with_weight().eval(), nn.Conv2d(4, 4, 3, 1, 1)):
        row = nn.Sequential(block, odd)
        assert fold_repeats(row) == []
    hooked = with_weight()
    hooked.register_forward_hook(lambda *_: None)
    assert fold_repeats(nn.Sequential(block, hooked)) == []
    assert fold_repeats(nn.Sequential(nn.ReLU(), nn.ReLU())) == []  # nothing is saved
    (repeat,) = fold_repeats(nn.Sequential(block, nn.ReLU(), with_weight(), nn.ReLU()))
    assert (repeat.period, repeat.times, repeat.own) == (2, 2, 2 * 4)


def test_loops_within_what_loops():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    norms = [nn.LayerNorm(3) for _ in range(4)]
    for i, norm in enumerate(norms):
        nn.init.constant_(norm.bias, float(i))

    def layer(linear, norm):
        return nn.Sequential(linear, norm)

    row = nn.Sequential(
        nn.Sequential(layer(first, norms[0]), layer(second, norms[1])),
        nn.Sequential(layer(first, norms[2]), layer(second, norms[3])),
    )
    x = torch.randn(2, 3)
    before = row(x)
    repeats = fold_repeats(row)
    assert [(r.container, r.times) for r in repeats] == [("0", 2), ("1", 2), ("", 2)]
    torch.testing.assert_close(row(x), before)


@pytest.mark.slow
def test_loops_compile_and_export():
    model = looped()
    before = outputs(model)
    exported = torch.export.export(model, (GRIDS,))
    torch.testing.assert_close(exported.module()(GRIDS), before)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(GRIDS), before)


class Aliased(nn.Module):
    """A block that knows its layers by two names each, as many temporal CNNs do."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.net = nn.Sequential(self.lin, self.norm, nn.Tanh())

    def forward(self, x):
        return x + self.net(x)


class Checkpointed(Aliased):
    """The same, computed again for backward."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def row_of(kind):
    """Return four blocks whose linear layers mix alike and whose small tensors differ."""
    torch.manual_seed(1)
    row = nn.Sequential(*(kind() for _ in range(4)))
    model = npas.share(row, templates=2, groups={"*.lin.weight": "a"})
    for parameter in row.parameters():
        if parameter.dim() == 1 and len(parameter) == 4:
            nn.init.normal_(parameter)
    set_rows(model, repeated([[1.0, 0.5]], 4))
    tie(model, 0.99)
    return model


@pytest.mark.parametrize("kind", [Aliased, Checkpointed])
def test_loops_of_odd_blocks_compute_train_and_stay_what_they_were(kind):
    model = row_of(kind)
    plain = npas.materialize(copy.deepcopy(model))
    found = fold(model, 0.99)
    assert len(found.repeats) == 1 and found.layers == 1
    x = torch.randn(3, 4)
    for _ in range(3):
        for network in (plain, model):
            network.zero_grad()
            network(x).square().sum().backward()
        torch.testing.assert_close(model(x), plain(x))
    ours = model.get_parameter("0.body.lin.weight").grad
    theirs = sum(plain.get_parameter(f"{i}.lin.weight").grad for i in range(4))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    norms = [model.get_parameter("0.body.norm.weight")]
    norms += [model.get_parameter(f"0.iterations.{i}.norm.weight") for i in range(3)]
    for i, norm in enumerate(norms):
        torch.testing.assert_close(norm.grad, plain.get_parameter(f"{i}.norm.weight").grad)


def test_folding_leaves_modes_and_frozen_parameters_alone():
    model = chain(2)
    set_rows(model, repeated([[1.0, 0.5]], 12))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.get_parameter("npas_bank_0").requires_grad_(False)
    before, trained = model(GRIDS).detach(), npas.count_parameters(model)
    found = fold(model, 0.99)
    torch.testing.assert_close(model(GRIDS), before)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert model.get_submodule("blocks.0").training
    assert not model.get_parameter("blocks.0.body.conv1.weight").requires_grad
    assert found.parameters == npas.count_parameters(model) == trained - 12 * 2


def test_what_is_folded_is_neither_folded_nor_saved_as_if_it_were_not(tmp_path):
    model = looped()
    with pytest.raises(ValueError, match="folded already"):
        fold(model, 0.9)
    with pytest.raises(ValueError, match="save_folded"):
        npas.save(model, tmp_path)
