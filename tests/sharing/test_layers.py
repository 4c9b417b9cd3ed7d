"""Which tensors are shared: every kind of layer, ties, padding; what is refused."""

import copy
import re
from collections import deque
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from zoo import ZOO, Bare, CrossAttention, Recurrences, Tied, Words

import npas
from npas.sharing.layers import find_layers


def shared_names(model, **patterns):
    return [layer.spec.name for layer in find_layers(model, **patterns)]


def two(first, second=None):
    return nn.Sequential(first, second or nn.Linear(8, 8))


def test_every_layer_kind_is_found():
    assert shared_names(Recurrences()) == [
        "gru.weight_ih_l0", "gru.weight_hh_l0",
        "gru.weight_ih_l0_reverse", "gru.weight_hh_l0_reverse",
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0",
        "cell.weight_ih", "cell.weight_hh", "last.weight",
    ]  # fmt: skip
    assert shared_names(CrossAttention()) == [
        "values.weight", "attention.q_proj_weight", "attention.k_proj_weight",
        "attention.v_proj_weight", "attention.out_proj.weight", "keys.weight",
    ]  # fmt: skip
    assert shared_names(Bare()) == [
        "position", "relative", "layers.0", "layers.1", "ends.first", "mix.weight",
    ]  # fmt: skip
    assert shared_names(Words()) == ["embed.weight", "bag.weight", "middle.weight"]
    volumes = next(s for s in ZOO if s.name == "volumes").make()
    assert len(shared_names(volumes)) == 6


def test_types_are_those_of_the_layers_they_derive_from():
    class Special(nn.Conv2d):
        """A convolution with a habit."""

    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(3, 8, 3),
            "special": Special(8, 8, 3),
            "normed": parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(8, 8),
            "bare": Bare(),
        }
    )
    kinds = {layer.spec.name: layer.spec.kind for layer in find_layers(model)}
    assert {kinds[name] for name in kinds if name.split(".")[0] in ("plain", "special")} == {
        "conv2d"
    }
    assert kinds["normed.parametrizations.weight.original1"] == "conv2d"
    assert kinds["attention.out_proj.weight"] == "linear"
    assert kinds["attention.in_proj_weight"] == "multiheadattention"
    assert kinds["lstm.weight_ih_l0"] == "lstm"
    assert kinds["bare.position"] == "bare"
    assert kinds["bare.layers.0"] == "parameterlist"


def test_tied_weights_stay_tied_count_once_and_answer_to_every_name(tmp_path):
    model = Words()
    assert shared_names(model, exclude="decode.weight") == ["bag.weight", "middle.weight"]
    dense = npas.count_parameters(model)
    assert dense == 8 * 12 * 2 + 12 * 12 + 12 + 8
    npas.share(model, 0.5)
    assert npas.allocation(model).budget.dense == dense
    npas.save(model, tmp_path)
    for twin in (model, npas.load(tmp_path, Words()), copy.deepcopy(model)):
        words = torch.randn(2, 4, 3)
        outputs = twin.eval()(words)
        plain = npas.materialize(twin)
        assert plain.get_parameter("decode.weight") is plain.get_parameter("embed.weight")
        assert npas.count_parameters(plain) == dense
        assert torch.equal(plain(words), outputs)


def test_one_module_under_two_names_is_one_layer():
    inner = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": inner, "b": nn.Linear(8, 8), "c": inner})
    assert shared_names(model) == ["a.weight", "b.weight"]
    assert shared_names(model, exclude="c.*") == ["b.weight"]
    npas.share(model, 0.6)
    assert npas.materialize(model)["a"] is model["c"]


@pytest.mark.parametrize(
    ("build", "original"),
    [
        (
            lambda: parametrizations.orthogonal(nn.Linear(8, 8)),
            "0.parametrizations.weight.original",
        ),
        (lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5), "0.weight_orig"),
        (lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), "0.weight_orig"),
    ],
    ids=["orthogonal", "pruned", "spectral_norm of old"],
)
def test_a_weight_that_is_computed_shares_its_original(build, original):
    model = npas.share(two(build()), 0.6)
    assert npas.allocation(model).layers[0].name == original
    model(torch.randn(2, 8)).square().sum().backward()
    bank = model.get_parameter("npas_bank_0").grad
    assert bank is not None and bool(bank.any())
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        outputs = model.eval()(inputs)
        assert torch.equal(npas.materialize(model)(inputs), outputs)


class Holder(nn.Module):
    """Holds parameters beside a linear layer."""

    def __init__(self, **parameters):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value, value.is_floating_point()))


def tied_by_data():
    model = two(nn.Linear(8, 8))
    model[1].weight.data = model[0].weight.data
    return model


def listed(deep=False):
    model = Tied()
    model.decay = {"all": [model.get_parameter("last.weight")]}  # type: ignore[assignment]
    if deep:
        hidden = nn.Linear(20, 20)
        hidden.weight = model.middle.weight
        model.decay = (hidden,)  # type: ignore[assignment]
    return model


def reading(hold):
    """A network that reads a weight from what `hold` makes of it."""
    model = Tied()
    model.other = hold(model.get_parameter("last.weight"))
    return model


class Registered(nn.Linear):
    def __init_subclass__(cls, *, tag, **options):
        super().__init_subclass__(**options)


class Named(Registered, tag="named"):
    pass


def quantized():
    from torch.ao.nn.quantized.dynamic import Linear

    return two(Linear(8, 8))


REFUSED = {
    "meta": (lambda: two(nn.Linear(8, 8, device="meta")), "meta device"),
    "lazy": (lambda: two(nn.LazyLinear(8)), "'0.weight' has no shape yet: run one batch"),
    "quantized": (quantized, "'0' is a Linear, whose parameters are fixed"),
    "integers": (
        lambda: Holder(codes=torch.ones(8, 8, dtype=torch.int8)),
        "'codes' is quantized (torch.int8)",
    ),
    "packed": (
        lambda: Holder(codes=torch.ones(32, 1, dtype=torch.uint8)),
        "'codes' is quantized (torch.uint8)",
    ),
    "float8": (
        lambda: Holder(small=torch.randn(8, 8).to(torch.float8_e4m3fn)),
        "'small' is quantized (torch.float8_e4m3fn)",
    ),
    "sparse": (
        lambda: Holder(sparse=torch.eye(8).to_sparse()),
        "'sparse' is sparse or an expanded tensor",
    ),
    "expanded": (
        lambda: Holder(rows=torch.randn(1, 8).expand(8, 8)),
        "'rows' is sparse or an expanded tensor",
    ),
    "tied by data": (tied_by_data, "'0.weight' and '1.weight' are two parameters in one memory"),
    "not finite": (
        lambda: Holder(table=torch.tensor([[0.0, 1.0], [float("nan"), 2.0]])),
        "'table' holds values that are not finite",
    ),
    "listed": (listed, "'last.weight' is also held in 'decay', which sharing cannot replace"),
    "hidden": (lambda: listed(deep=True), "'middle.weight' is also held in 'decay'"),
    **{
        f"held by {kind}": (partial(reading, hold), "'last.weight' is also held in 'other'")
        for kind, hold in {
            "an object": lambda weight: SimpleNamespace(weight=weight),
            "a partial": lambda weight: partial(nn.functional.linear, weight=weight),
            "a closure": lambda weight: lambda x: nn.functional.linear(x, weight),
            "a view": lambda weight: deque([weight.T]),
        }.items()
    },
    "without subclasses": (
        lambda: nn.Sequential(nn.Linear(8, 8), Named(8, 8)),
        "1.weight: its class Named cannot be subclassed",
    ),
    "a name of ours": (
        lambda: nn.ModuleDict({"npas_bank_0": nn.Linear(8, 8), "other": nn.Linear(8, 8)}),
        "'npas_bank_0' has a name that sharing uses",
    ),
    "compiled": (
        lambda: torch.compile(two(nn.Linear(8, 8)), backend="eager"),
        "wrapped by torch.compile, which keeps the dense parameters: share the network first",
    ),
    "wrapped": (lambda: nn.DataParallel(two(nn.Linear(8, 8))), "wrapped by nn.DataParallel"),
    "shared": (lambda: two(npas.share(nn.Linear(8, 8), 0.5)), "shared already"),
    "nothing": (lambda: nn.LayerNorm((4, 4)), "no shareable tensor"),
    "writing": (lambda: two(nn.Embedding(9, 8, max_norm=1.0)), "embedding with max_norm"),
    "frozen": (lambda: nn.Linear(8, 8).requires_grad_(False), "no shareable tensor"),
}


def test_an_object_that_knows_the_network_around_holds_no_weight_of_it():
    model = two(nn.Linear(8, 8))
    around = nn.ModuleDict({"body": model, "head": nn.Linear(8, 2)})
    model.trainer = SimpleNamespace(  # type: ignore[assignment]
        network=around, optimizers=[torch.optim.SGD(around.parameters(), lr=0.1)]
    )
    assert shared_names(model) == ["0.weight", "1.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning:torch.ao", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", REFUSED)
def test_unshareable_networks_are_refused_and_left_unchanged(name):
    build, reason = REFUSED[name]
    model = build()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        npas.share(model, 0.5)
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == before


def test_parameters_without_a_shape_are_refused_however_a_network_is_shared():
    for how in ({"budget": 0.5}, {"templates": 1}):
        for init in ("fresh", "fit"):
            for function in (npas.plan, npas.share):
                with pytest.raises(ValueError, match="weight' has no shape yet: run one batch"):
                    function(two(nn.LazyLinear(8)), init=init, **how)


@pytest.mark.parametrize("name", ["integers", "packed", "float8", "sparse", "expanded"])
def test_a_tensor_that_cannot_be_shared_may_stay_outside(name):
    model = REFUSED[name][0]()
    other = next(n for n, _ in model.named_parameters() if not n.startswith("linear"))
    before = model.get_parameter(other)
    npas.share(model, "80%", exclude=other)
    assert model.get_parameter(other) is before


def test_what_lists_hold_may_stay_outside_and_listed_layers_may_be_shared():
    model = npas.share(listed(), "80%", exclude="last.*")
    assert isinstance(model.last.weight, nn.Parameter)
    model = Tied()
    model.order = [model.middle, model.last]  # type: ignore[assignment]
    npas.share(model, 0.8)


def test_neighbours_in_one_memory_are_no_overlap():
    """As the flat weights of a recurrent layer on a GPU are."""
    whole = torch.randn(128)
    model = Holder(first=whole[:64].view(8, 8), second=whole[64:].view(8, 8))
    assert shared_names(model) == ["first", "second", "linear.weight"]


def test_patterns_that_match_nothing_name_near_names():
    with pytest.raises(ValueError, match=r"exclude pattern 'agian\.weight'.*'again\.weight'"):
        npas.plan(Tied(), 0.5, exclude="agian.weight")
    with pytest.raises(ValueError, match=r"include pattern 'nothing\*' matches no parameter"):
        npas.plan(Tied(), 0.5, include=["last.bias", "nothing*"])


def test_nothing_left_to_share_is_refused():
    with pytest.raises(ValueError, match="no shareable tensor"):
        npas.plan(Tied(), 0.5, exclude="*")
