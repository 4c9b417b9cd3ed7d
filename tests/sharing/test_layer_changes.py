"""What a user may do to a shared layer, what is refused in one line, and what parts do."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from tiny import INPUTS, bank, loss, outputs, shared
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from zoo import Residual

import npas


def stem(model: nn.Module) -> nn.Conv2d:
    layer = model.get_submodule("stem")
    assert isinstance(layer, nn.Conv2d)
    return layer


def test_layers_are_still_what_they_were() -> None:
    model, dense = shared(), Residual()
    assert repr(model) == repr(dense)
    for ours, theirs in zip(model.modules(), dense.modules(), strict=True):
        assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
    weight = stem(model).weight
    assert (weight.shape, weight.dtype, weight.device) == (
        dense.stem.weight.shape, dense.stem.weight.dtype, dense.stem.weight.device
    )  # fmt: skip


def delete(model: nn.Module) -> None:
    del stem(model).weight


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "parameter": lambda m: setattr(stem(m), "weight", nn.Parameter(torch.ones(8, 3, 3, 3))),
    "tensor": lambda m: setattr(stem(m), "weight", torch.ones(8, 3, 3, 3)),
    "none": lambda m: setattr(stem(m), "weight", None),
    "delete": delete,
    "register": lambda m: stem(m).register_parameter("weight", None),
    "prune": lambda m: prune.l1_unstructured(stem(m), "weight", 0.5),
    "fuse": lambda m: nn.utils.fuse_conv_bn_eval(stem(m), nn.BatchNorm2d(8).eval()),
    "functional_call": lambda m: torch.func.functional_call(
        m, {"stem.weight": torch.ones(8, 3, 3, 3)}, (INPUTS,)
    ),
}


@pytest.mark.filterwarnings("ignore:a part of a shared network was copied:UserWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_replacing_a_generated_weight_is_refused_and_changes_nothing(change: str) -> None:
    model = shared().eval()
    expected, names = outputs(model), list(model.state_dict())
    with pytest.raises(ValueError, match=r"'stem\.weight' is generated from a bank") as error:
        CHANGES[change](model)
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == names
    assert torch.equal(outputs(model), expected)
    stem(model).bias = nn.Parameter(torch.ones(8))  # what is not generated can be set
    assert not torch.equal(outputs(model), expected)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=lambda f: f.__name__
)
def test_parametrizing_a_generated_weight_is_refused_by_torch(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    model = shared()
    with pytest.raises(ValueError, match="does not have a parameter"):
        norm(stem(model))
    norm(stem(npas.materialize(model)))


class Doubled(nn.Module):
    """Double a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 2x."""
        return 2 * x


def test_gradients_of_a_pruned_bank_are_masked_and_a_parametrized_one_is_computed() -> None:
    model = shared().eval()
    expected = outputs(model)
    prune.l1_unstructured(model, "npas_bank_0", 0.5)
    assert not torch.equal(outputs(model), expected)
    loss(model).backward()
    gradient = model.get_parameter("npas_bank_0_orig").grad
    assert gradient is not None and 0.4 < (gradient == 0).float().mean() < 0.6
    other = shared().eval()
    with torch.no_grad():
        bank(other).mul_(0.5)
    parametrize.register_parametrization(other, "npas_bank_0", Doubled())
    torch.testing.assert_close(outputs(other), expected)


@torch.no_grad()
def kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


INITIALIZERS: dict[str, Callable[[nn.Module], object]] = {
    "apply": lambda m: m.apply(kaiming),
    "init": lambda m: nn.init.ones_(stem(m).weight),
    "reset_parameters": lambda m: stem(m).reset_parameters(),
    "the last layer": lambda m: m.get_submodule("head").reset_parameters(),  # type: ignore[operator]
}


@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_initializing_a_shared_network_is_refused_not_ignored(
    initializer: str, gradients: bool
) -> None:
    model = shared()
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(RuntimeError, match=r"initialize the network before npas\.share"),
    ):
        INITIALIZERS[initializer](model)
        model(INPUTS)
    outputs(model.eval())
    loss(model).backward()  # once said, the network goes on


def test_writing_through_data_to_a_generated_weight_changes_no_parameter() -> None:
    """`.data` moves no version counter: with gradients on it writes to a weight of the moment."""
    model = shared().eval()
    expected = model(INPUTS)
    stem(model).weight.data.zero_()
    assert torch.equal(model(INPUTS), expected)


def test_a_part_taken_out_computes_and_its_gradient_reaches_the_whole_networks_bank() -> None:
    """Yet its own parameters do not list that bank: share after taking parts out."""
    model = shared().eval()
    part = nn.Sequential(*list(model.children())[:-1])
    part(INPUTS).mean().backward()
    gradient = bank(model).grad
    assert gradient is not None and bool(gradient.any())
    assert not any("npas" in name for name, _ in part.named_parameters())
    part = npas.share(nn.Sequential(*list(Residual().children())[:-1]), 0.4)
    assert "npas_bank_0" in dict(part.named_parameters())


def test_features_are_extracted_first_and_shared_then() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    extractor = npas.share(create_feature_extractor(Residual(), ["stage1", "stage2"]), 0.4)
    features = extractor(INPUTS)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "stage1": (4, 8, 6, 6), "stage2": (4, 16, 6, 6)
    }  # fmt: skip
    features["stage2"].mean().backward()
    assert bank(extractor).grad is not None and "npas_bank_0" in extractor.state_dict()
    model = shared().eval()  # the other way round computes, but does not own the bank
    late = create_feature_extractor(model, ["stage2", "head"])
    assert torch.equal(late(INPUTS)["head"].detach(), outputs(model))
    assert not any("npas" in name for name, _ in late.named_parameters())


def test_symbolic_traces_answer_alike() -> None:
    model = shared().eval()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(INPUTS).detach(), outputs(model))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_jit_traces_answer_alike_and_hold_the_bank(gradients: bool) -> None:
    model = shared().eval()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, INPUTS)
    torch.testing.assert_close(outputs(traced), outputs(model))
    assert "npas_bank_0" in traced.state_dict()
    with torch.no_grad():
        traced.get_parameter("npas_bank_0").mul_(2)  # one memory with the network's own
    torch.testing.assert_close(outputs(traced), outputs(model))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripting_is_refused_in_one_line_and_works_once_materialized() -> None:
    model = shared().eval()
    with pytest.raises(ValueError, match=r"npas\.materialize the network first") as error:
        torch.jit.script(model)
    assert "\n" not in str(error.value)
    expected = outputs(model)
    scripted = torch.jit.script(npas.materialize(model))
    torch.testing.assert_close(outputs(scripted), expected)


def test_quantization_comes_after_materializing() -> None:
    model = npas.materialize(shared()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization moves out of torch
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        answer = outputs(quantized)
    assert type(quantized.head).__module__.startswith("torch.ao.nn.quantized")
    torch.testing.assert_close(answer, outputs(model), rtol=0.1, atol=0.1)


def test_torch_pruning_is_refused_in_one_line_and_works_once_materialized() -> None:
    """Stands in for the module that builds its dependency graph, known by name."""
    import sys
    from types import ModuleType

    pruning, graph = ModuleType("torch_pruning"), ModuleType("torch_pruning.dependency.graph")
    exec("def build_dependency(model, inputs):\n    return model(inputs)", graph.__dict__)
    model = shared().eval()
    expected = outputs(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_pruning", pruning)
        assert torch.equal(outputs(model), expected)
        with pytest.raises(ValueError, match=r"npas\.materialize the network first") as error:
            graph.build_dependency(nn.Sequential(model), INPUTS)
        assert "\n" not in str(error.value)
        graph.build_dependency(npas.materialize(model), INPUTS)


def test_a_layers_class_makes_plain_layers() -> None:
    """As libraries do that make a layer like another: of the base class, as from it."""
    torch.manual_seed(0)
    embedding, recurrent = nn.Embedding(12, 8), nn.LSTM(8, 8)
    model = npas.share(nn.ModuleList([nn.Linear(8, 8), embedding, recurrent]), 0.6)
    x = torch.randn(3, 2, 8)
    table = torch.randn(4, 8)
    for made, base in (
        (type(model[0])(8, 5), nn.Linear),
        (type(model[2])(8, 4), nn.LSTM),
        (embedding.from_pretrained(table), nn.Embedding),
    ):
        assert type(made) is base
        assert torch.equal(made.weight if base is nn.Embedding else table, table)
        twin = pickle.loads(pickle.dumps(made))
        y = torch.tensor([1]) if base is nn.Embedding else x
        torch.testing.assert_close(twin(y), copy.deepcopy(made)(y))
        assert list(twin.state_dict()) == list(base(8, 4).state_dict())
    assert inspect.signature(type(model[0])) == inspect.signature(nn.Linear)
    with pytest.raises(ValueError, match="is generated from a bank"):
        model[0].__init__(8, 8)  # type: ignore[misc]


def test_a_subclass_of_a_layers_class_behaves_as_one_of_the_base() -> None:
    model = shared()

    class Scaled(type(stem(model))):  # type: ignore[misc]
        """A convolution of twice the output."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return twice the convolution."""
            return 2 * super().forward(x)

    made = Scaled(3, 4, 3)
    assert [name for name, _ in made.named_parameters()] == ["weight", "bias"]
    made.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    made(INPUTS).sum().backward()
    assert made.weight.grad is not None
    del made.weight
    assert not hasattr(made, "weight")
    made.weight = torch.zeros(4, 3, 3, 3)
    assert made(INPUTS).std() > 0 or made.bias is not None
    npas.share(nn.Sequential(Scaled(3, 4, 3), Scaled(4, 4, 3)), 0.7)(INPUTS).sum().backward()


class Lists(nn.Module):
    """Weights in a list and a dictionary, and read them by slices and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ParameterList(torch.randn(6, 6) for _ in range(4))
        self.items.append(torch.zeros(6))
        self.table = nn.ParameterDict({"a": torch.randn(6, 6), "b": torch.zeros(6)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 6) to (N, 6)."""
        for weight in [*self.items[1:3], *self.items[::-2][1:], self.items[-2]]:
            x = x @ weight
        table = self.table.copy()
        return x @ table["a"] + table["b"] + self.items[3:][1]


def test_slices_and_copies_of_lists_of_parameters_stay_generated() -> None:
    torch.manual_seed(0)
    model, x = npas.share(Lists(), 0.7), torch.randn(3, 6)
    loss = model(x).square().sum()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    part = model.items[:3]
    assert isinstance(part, nn.ParameterList) and len(part) == 3 and not list(part.parameters())
    assert len(list(model.items[3:].parameters())) == 1
    part.append(nn.Parameter(torch.ones(2)))
    assert part[-1].requires_grad and len(model.items) == 5
    twin = npas.materialize(copy.deepcopy(model))
    torch.testing.assert_close(twin(x).square().sum(), loss)
    assert len(gradient) == 4 and all(bool(g.any()) for g in gradient)
    assert all(bool(g.any()) for g in torch.autograd.grad(twin(x).sum(), list(twin.parameters())))


def test_data_parallel_is_refused_in_one_line() -> None:
    model = shared()
    replica = model.get_submodule("stem")._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        replica(INPUTS)
