"""A shared network compiles to one graph, trains compiled, and does not recompile."""

import pytest
import torch
import torch.nn.functional as F
from tiny import bank, loss, mlp, shared
from torch._dynamo.utils import counters

import npas

ROWS = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
CLASSES = torch.arange(8) % 5
# torch warns of itself where a compiled part, also a dense one, is given activations.
NON_LEAF = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(model, batch, steps=4):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        batch(model).backward()
        optimizer.step()


def rows_loss(model):
    return F.cross_entropy(model(ROWS), CLASSES)


def assert_same(model, other, rtol=1e-4):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-5, msg=name)
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=rtol, atol=1e-5, msg=name)


@pytest.mark.slow
def test_one_graph_without_breaks_serves_every_step():
    """The backend compiles nothing here: what Dynamo captures is the promise."""
    eager, compiled = mlp(), mlp()
    compiled.compile(fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, rows_loss)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["recompiles"]
    train(eager, rows_loss)
    assert_same(compiled, eager)
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_compiled_weights_follow_their_bank_beside_eager_ones():
    model = mlp().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(ROWS), model(ROWS))
            bank(model).mul_(2)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@NON_LEAF
def test_a_part_can_be_compiled_alone():
    eager, mixed = mlp(), mlp()
    mixed.get_submodule("head").compile(fullgraph=True, backend="aot_eager")
    for model in (eager, mixed):
        train(model, rows_loss, steps=2)
    assert counters["stats"]["unique_graphs"] == 1
    assert_same(mixed, eager)
    mixed.body = torch.compile(mixed.body, backend="eager")  # names stay what they were
    assert npas.allocation(mixed) == npas.allocation(eager)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.3},  # resized where the bank is small
        {"budget": 0.3, "upsampler": "wavg"},
        {"budget": 2.5, "generator": "emb"},
        *({"budget": 0.5, "generator": name} for name in ("hash", "basis", "channels")),
    ],
    ids=str,
)
def test_every_way_to_make_a_weight_compiles(options):
    eager, compiled = mlp(**options), mlp(**options)
    compiled.compile(fullgraph=True, backend="aot_eager")
    for model in (eager, compiled):
        train(model, rows_loss, steps=2)
    assert_same(compiled, eager)


@pytest.mark.slow
def test_training_by_the_default_compiler_equals_eager_training():
    eager, compiled = shared(), shared()
    compiled.compile(fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, loss)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    train(eager, loss)
    assert_same(compiled, eager, rtol=1e-3)


def test_make_fx_captures_the_generation():
    from torch.fx.experimental.proxy_tensor import make_fx

    model = mlp().eval()
    graph = make_fx(model)(ROWS)
    with torch.no_grad():
        torch.testing.assert_close(graph(ROWS), model(ROWS))
    assert graph(ROWS).requires_grad
