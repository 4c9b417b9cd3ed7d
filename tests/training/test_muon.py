"""Muon equals torch's for a matrix, treats a bank's templates as matrices, and skips bad steps."""

import pytest
import torch
from torch import nn
from trained import leaves_nothing_behind

import npas
from npas.config import OptimConfig
from npas.config.optim import MuonConfig
from npas.sharing.layout.templates import Templates
from npas.training.muon import Muon, gain, orthogonalize
from npas.training.optim import build_optimizer


class Block(nn.Module):
    """A convolution, two linear layers and a learned vector."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.mix = nn.Parameter(torch.stack([torch.ones(8), torch.zeros(8)]))

    def forward(self, x):
        """Map (N, L, 8) to the same."""
        x = x * self.mix[0] + self.conv(x.mT).mT
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """An embedding, three blocks and a head."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, x):
        """Map tokens (N, L) to logits (N, L, 20)."""
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


TOKENS = torch.arange(24).remainder(20).view(2, 12)


def muon(**changes):
    settings = {"lr": 0.02, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.0} | changes
    own = {key: settings.pop(key) for key in list(settings) if hasattr(MuonConfig, key)}
    return OptimConfig(name="muon", muon=MuonConfig(**own), **settings)


def network(budget=None, **options):
    torch.manual_seed(0)
    return Net() if budget is None else npas.share(Net(), budget, generator="wavg", **options)


def take(model, optimizer):
    logits = model(TOKENS)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torchs_muon(nesterov, decay):
    torch.manual_seed(1)
    ours, theirs = (nn.ModuleList([nn.Linear(12, 30, bias=False)]) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = theirs[0].weight.detach().clone()
    config = muon(nesterov=nesterov, weight_decay=decay, momentum_warmup_steps=0)
    optimizers = (
        build_optimizer(ours, config),
        torch.optim.Muon(
            theirs.parameters(), 0.02, weight_decay=decay, momentum=0.95, nesterov=nesterov
        ),
    )
    for _ in range(5):
        x = torch.randn(7, 12)
        for layers, optimizer in zip((ours, theirs), optimizers, strict=True):
            layers[0](x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    went = (theirs[0].weight - start).norm()
    assert (ours[0].weight - theirs[0].weight).norm() < 0.06 * went  # theirs are rounded to bf16


def test_each_kind_of_parameter_has_its_own_rate():
    model = network()
    config = muon(embedding_lr=0.1, head_lr=0.2, vector_lr=0.3)
    optimizer = build_optimizer(model, config)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        matrix = name.startswith("blocks") and name.endswith("weight")
        expected = {"tokens.weight": 0.1, "head.weight": 0.2}.get(name, 0.02 if matrix else 0.3)
        assert rates[id(parameter)] == expected, name
    assert all(g["lr"] == pytest.approx(g["factor"] * config.lr) for g in optimizer.param_groups)


@pytest.mark.parametrize("bank", ["adam", "templates"])
def test_a_bank_is_trained_in_either_way(bank):
    model = network(0.6, exclude="@embeddings", low_rank=1)
    optimizer = build_optimizer(model, muon(bank=bank, bank_lr=0.005, coefficient_lr=0.006))
    kinds = {id(p): (g["kind"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: kinds[id(p)] for name, p in model.named_parameters()}
    assert found["npas_bank_0"] == (("bank", 0.005) if bank == "adam" else ("muon", 0.02))
    assert {found[n] for n in found if "coeff" in n} == {("coefficient", 0.006)}
    assert {found[n] for n in found if "left" in n or "right" in n} == {("bank", 0.005)}
    losses = [take(model, optimizer) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def test_each_template_of_a_bank_moves_as_the_matrix_that_it_is():
    """Two templates side by side and one across both: the mean of what covers a value."""
    bank = nn.Parameter(torch.randn(48, generator=torch.Generator().manual_seed(0)))
    group = {"params": [bank], "kind": "muon", "lr": 0.1, "weight_decay": 0.0}
    read = [Templates(4, 6, (0, 24)), Templates(3, 8, (12,))]
    config = muon(momentum_warmup_steps=0, nesterov=False)
    optimizer = Muon([group], config, {bank: read})
    before, gradient = bank.detach().clone(), torch.randn(48)
    bank.grad = gradient.clone()
    optimizer.step()
    total, count = torch.zeros(48), torch.zeros(48)
    for own in read:
        for start in own.starts:
            part = gradient[start : start + 24].view(1, own.rows, own.columns)
            total[start : start + 24] += orthogonalize(part, 5).reshape(-1) * gain(*part.shape[1:])
            count[start : start + 24] += 1
    torch.testing.assert_close(before - bank.detach(), 0.1 * total / count)


@pytest.mark.parametrize("bank", ["adam", "templates"])
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_went_wrong_leaves_nothing_behind(bank, before):
    model, config = network(0.6), muon(bank=bank, weight_decay=0.1)
    leaves_nothing_behind(model, model.get_parameter("npas_bank_0"), config, TOKENS, before)
