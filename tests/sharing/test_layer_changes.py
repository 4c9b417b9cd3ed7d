"""What a user may do to a shared layer, what is refused in one line, and what parts do."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from tiny import INPUTS, bank, loss, outputs, shared
from torch import nn
from torch.nn.utils import parametrizations, prune
from zoo import Residual

import npas


def stem(model):
    layer = model.get_submodule("stem")
    assert isinstance(layer, nn.Conv2d)
    return layer


def test_layers_are_still_what_they_were():
    model, dense = shared(), Residual()
    assert repr(model) == repr(dense)
    for ours, theirs in zip(model.modules(), dense.modules(), strict=True):
        assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
    weight = stem(model).weight
    assert (weight.shape, weight.dtype, weight.device) == (
        dense.stem.weight.shape, dense.stem.weight.dtype, dense.stem.weight.device
    )  # fmt: skip


def delete(model):
    del stem(model).weight


CHANGES = {
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
def test_replacing_a_generated_weight_is_refused_and_changes_nothing(change):
    model = shared().eval()
    expected, names = outputs(model), list(model.state_dict())
    with pytest.raises(ValueError, match=r"'stem\.weight' is generated from a bank") as error:
        CHANGES[change](model)
    assert "\n" not in str(error.value) and "npas.sharing.prune_filters" in str(error.value)
    assert list(model.state_dict()) == names
    assert torch.equal(outputs(model), expected)
    stem(model).bias = nn.Parameter(torch.ones(8))  # what is not generated can be set
    assert not torch.equal(outputs(model), expected)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=lambda f: f.__name__
)
def test_parametrizing_a_generated_weight_is_refused_by_torch(norm):
    model = shared()
    with pytest.raises(ValueError, match="does not have a parameter"):
        norm(stem(model))
    norm(stem(npas.materialize(model)))


@torch.no_grad()
def kaiming(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def other_data(model):  # as PEFT's initializations PiSSA and OLoRA do
    stem(model).weight.data = torch.ones_like(stem(model).weight)


INITIALIZERS = {
    "apply": lambda m: m.apply(kaiming),
    "init": lambda m: nn.init.ones_(stem(m).weight),
    "reset_parameters": lambda m: stem(m).reset_parameters(),
    "through .data": lambda m: stem(m).weight.data.normal_(),
    "other data": other_data,
    "the last layer": lambda m: m.get_submodule("head").reset_parameters(),  # type: ignore[operator]
}


@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_initializing_a_shared_network_is_refused_not_ignored(initializer, gradients):
    model = shared()
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(RuntimeError, match=r"initialize the network before npas\.share"),
    ):
        INITIALIZERS[initializer](model)
        model(INPUTS)
        model.eval()  # the first use to notice a write through .data to a kept weight
    outputs(model.eval())
    loss(model).backward()  # once said, the network goes on


def test_a_part_taken_out_computes_and_its_gradient_reaches_the_whole_networks_bank():
    """Yet its own parameters do not list that bank: share after taking parts out."""
    model = shared().eval()
    part = nn.Sequential(*list(model.children())[:-1])
    part(INPUTS).mean().backward()
    gradient = bank(model).grad
    assert gradient is not None and bool(gradient.any())
    assert not any("npas" in name for name, _ in part.named_parameters())
    part = npas.share(nn.Sequential(*list(Residual().children())[:-1]), 0.4)
    assert "npas_bank_0" in dict(part.named_parameters())


def test_features_are_extracted_first_and_shared_then():
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


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("generator", "gradients"), [("wavg", True), ("wavg", False), ("hash", True)]
)
def test_jit_traces_answer_alike_and_hold_the_bank(generator, gradients):
    model = shared(generator=generator).eval()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, INPUTS)
    torch.testing.assert_close(outputs(traced), outputs(model))
    assert "npas_bank_0" in traced.state_dict()
    with torch.no_grad():
        traced.get_parameter("npas_bank_0").mul_(2)  # one memory with the network's own
    torch.testing.assert_close(outputs(traced), outputs(model))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripting_is_refused_in_one_line_and_works_once_materialized():
    model = shared().eval()
    with pytest.raises(ValueError, match=r"npas\.materialize the network first") as error:
        torch.jit.script(model)
    assert "\n" not in str(error.value)
    expected = outputs(model)
    scripted = torch.jit.script(npas.materialize(model))
    torch.testing.assert_close(outputs(scripted), expected)


def test_quantization_comes_after_materializing():
    model = npas.materialize(shared()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization moves out of torch
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        answer = outputs(quantized)
    assert type(quantized.head).__module__.startswith("torch.ao.nn.quantized")
    torch.testing.assert_close(answer, outputs(model), rtol=0.1, atol=0.1)


def test_a_layers_class_makes_plain_layers():
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


def test_data_parallel_is_refused_in_one_line():
    model = shared()
    replica = model.get_submodule("stem")._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        replica(INPUTS)
