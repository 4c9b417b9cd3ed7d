"""A network whose modules changed after sharing is saved as it now is, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize, prune

import npas

INPUTS = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two convolutions with norms, a list of four equal blocks, a head that can be left out."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


class Adapter(nn.Module):
    """Add a low-rank path to a layer."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def dense(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


def shared(**options):
    model = npas.share(dense(), 0.6, **{"generator": "wavg", **options})  # type: ignore[arg-type]
    assert isinstance(model, Net)
    return model


@torch.no_grad()
def outputs(model):
    return model(INPUTS)


def swap(m):
    m.blocks[0], m.blocks[1] = m.blocks[1], m.blocks[0]


def shorten(m):
    m.blocks = m.blocks[::2]


FOLLOWED = {
    "nothing": lambda m: None,
    "an unshared head of another size": lambda m: setattr(m, "head", nn.Linear(8, 700)),
    "two layers swapped": swap,
    "all layers reversed": lambda m: setattr(m, "blocks", nn.ModuleList(reversed(m.blocks))),
    "a layer used twice": lambda m: m.blocks.append(m.blocks[0]),
    "a layer under a second, earlier name": lambda m: setattr(m.body[2], "x", m.blocks),
    "a plain layer inserted": lambda m: m.blocks.insert(1, nn.Linear(8, 8)),
    "a layer within an adapter": lambda m: m.blocks.__setitem__(2, Adapter(m.blocks[2])),
    "a part within a container": lambda m: setattr(m, "body", nn.Sequential(m.body)),
    "a norm taken away": lambda m: m.body.__setitem__(1, nn.Identity()),
    "norms converted": nn.SyncBatchNorm.convert_sync_batchnorm,
    "a parameter added": lambda m: setattr(m, "temperature", nn.Parameter(torch.ones(1))),
    "an unshared part frozen": lambda m: m.head.requires_grad_(False),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_loads_with_the_same_outputs_and_is_counted(name, tmp_path):
    model = shared(exclude="head.*")
    outputs(model)  # weights are kept
    FOLLOWED[name](model)
    expected = outputs(model)
    npas.save(model, tmp_path)
    again = dense(seed=5)
    FOLLOWED[name](again)
    assert torch.equal(outputs(npas.load(tmp_path, again.eval())), expected)
    assert npas.allocation(again) == npas.allocation(model)
    budget = npas.allocation(model).budget
    assert budget.used == sum(p.numel() for p in model.parameters())
    assert ("more than the budget allows" in npas.summary(model)) == (budget.used > budget.allowed)
    twin = npas.materialize(copy.deepcopy(model))
    assert torch.equal(outputs(twin), expected)
    assert not any("npas" in key for key in twin.state_dict())
    assert budget.dense == npas.count_parameters(twin.requires_grad_())


GONE = "is no longer in the network"
REFUSED = {
    "the head replaced": (lambda m: setattr(m, "head", nn.Linear(8, 5)), f"'head.weight' {GONE}"),
    "the head deleted": (lambda m: setattr(m, "head", nn.Identity()), f"'head.weight' {GONE}"),
    "half of the layers": (shorten, f"'blocks.1.weight' {GONE}"),
    "a layer popped": (lambda m: m.blocks.pop(3), f"'blocks.3.weight' {GONE}"),
    "a layer deleted": (lambda m: m.blocks.__delitem__(0), GONE),
    "a copy of a part": (
        lambda m: setattr(m, "more", copy.deepcopy(m.blocks)), "'more.0' reads the bank of another"
    ),
    "another shared network": (
        lambda m: setattr(m, "more", shared()), "'more.body.0' reads the bank of another"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:a part of a shared network was copied:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_could_describe_is_refused_but_for_materializing(name, tmp_path):
    surgery, message = REFUSED[name]
    model = shared()
    surgery(model)
    expected = outputs(model)
    for use in (
        lambda: npas.save(model, tmp_path),
        lambda: npas.summary(model),
        lambda: npas.allocation(model),
        lambda: npas.similarity(model),
        lambda: npas.fold(model, 0.9),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert torch.equal(outputs(npas.materialize(model)), expected)
    assert not any("npas" in key for key in model.state_dict())


def test_wrappers_inside_of_a_network_keep_its_names(tmp_path):
    model = shared()
    expected = outputs(model)
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    npas.save(model, tmp_path)
    assert torch.equal(outputs(npas.load(tmp_path, dense(5))), expected)
    plain, model.body = model.body, nn.DataParallel(model.body)
    with pytest.raises(ValueError, match=r"'body' is wrapped by nn\.DataParallel"):
        npas.save(model, tmp_path)
    model.body = plain
    npas.save(model, tmp_path)


@pytest.mark.parametrize("kind", ["bank", "coefficients"])
def test_a_bank_that_is_pruned_or_parametrized_is_refused_until_that_is_undone(kind, tmp_path):
    model = shared()
    name = next(key for key, _ in model.named_parameters() if kind in key)
    expected = outputs(model)
    for do, undo in (
        (lambda: prune.identity(model, name), lambda: prune.remove(model, name)),
        (
            lambda: parametrize.register_parametrization(model, name, nn.Identity()),
            lambda: parametrize.remove_parametrizations(model, name),
        ),
    ):
        do()
        for use in (
            lambda: model(INPUTS),
            lambda: npas.save(model, tmp_path),
            lambda: npas.fold(model, 0.9),
            lambda: npas.materialize(model),
        ):
            with pytest.raises(ValueError, match=f"{name} is pruned or parametrized"):
                use()
        undo()
        assert torch.equal(outputs(model), expected)
    npas.save(model, tmp_path)


def write_back(model):
    """Write as adapters are merged, and look at another layer."""
    model.blocks[1].weight.data = model.blocks[1].weight.data + 0.1
    assert model.blocks[2].weight.shape == (8, 8)


WRITES = {
    "through data": lambda m: m.blocks[1].weight.data.add_(0.1),
    "other data": write_back,
    "in place": lambda m: m.blocks[1].weight.add_(0.1),
}
USES = {
    "save": npas.save,
    "state_dict": lambda m, _: nn.Sequential(m).state_dict(),
    "deepcopy": lambda m, _: copy.deepcopy(m),
    "pickle": lambda m, path: torch.save(m, path / "whole.pt"),
    "materialize": lambda m, _: npas.materialize(m),
    "fold": lambda m, _: npas.fold(m, 0.9),
    "eval": lambda m, _: m.eval(),
    "train": lambda m, _: nn.Sequential(m).train(),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["without gradients", "frozen"])
@pytest.mark.parametrize("write", WRITES)
def test_a_written_weight_is_refused_before_it_is_lost(write, frozen, tmp_path):
    """As adapters are merged: into the weights that evaluation or a frozen network keeps."""
    model = shared().requires_grad_(not frozen)
    for use in USES:
        twin = copy.deepcopy(model).eval()
        expected = outputs(twin)
        with torch.set_grad_enabled(frozen):
            WRITES[write](twin)
        message = r"'blocks\.1\.weight' was modified.*npas\.materialize"
        with pytest.raises(RuntimeError, match=message):
            USES[use](twin, tmp_path)
        assert torch.equal(outputs(twin), expected), f"{use}: once told, the network goes on"
        USES[use](twin, tmp_path)


def test_weights_of_a_bank_that_changed_unseen_are_stale_and_not_written():
    """Also those that are no numbers, and those in a dtype of their own."""
    for change in (lambda bank: bank.mul_(2), lambda bank: bank.fill_(float("nan"))):
        model = shared()
        outputs(model)
        change(model.get_parameter("npas_bank_0").data)
        model.state_dict()
        answer = outputs(model)
        torch.testing.assert_close(answer, outputs(copy.deepcopy(model)), equal_nan=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs(model)
    model.state_dict()
