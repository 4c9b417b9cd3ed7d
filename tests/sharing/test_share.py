"""What `npas.share` promises beside the matrix: starts, seeds, refusals, options."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, Residual, Specimen

import npas


def cell_name(value: object) -> str:
    return value.name if isinstance(value, Specimen) else str(value)


@pytest.mark.parametrize("specimen", ZOO, ids=cell_name)
def test_materialized_networks_bear_no_trace(specimen: Specimen) -> None:
    dense = specimen.make()
    plain = npas.materialize(npas.share(specimen.make(), 0.5))
    kinds = [[(type(m).__name__, type(m).__module__) for m in n.modules()] for n in (plain, dense)]
    assert kinds[0] == kinds[1]
    assert list(plain.state_dict()) == list(dense.state_dict())
    for module, original in zip(plain.modules(), dense.modules(), strict=True):
        assert vars(module).keys() == vars(original).keys()
        assert not module._forward_pre_hooks and not module._forward_hooks
    if specimen.name == "tied":
        assert plain.get_parameter("again.weight") is plain.get_parameter("encode.weight")


@pytest.mark.parametrize("budget", [0.05, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("generator", ["avg", "wavg", "emb"])
@pytest.mark.parametrize("upsampler", ["inter", "repeat", "mask", "wavg"])
def test_generated_weights_start_with_the_dense_spread(
    budget: float, generator: str, upsampler: str
) -> None:
    """Layers of different fan-in read one bank; each starts with its own variance."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 32, 1),
            nn.Linear(128, 100), nn.Linear(100, 128),
        )  # fmt: skip

    spread = {name: float(p.detach().std()) for name, p in build().named_parameters()}
    ratios: dict[str, list[float]] = {}
    for seed in range(6):
        model = npas.share(build(), budget, generator=generator, upsampler=upsampler, seed=seed)
        for layer in npas.allocation(model).layers:
            weight = model.get_submodule(layer.name[:-7]).weight
            assert isinstance(weight, torch.Tensor)
            ratios.setdefault(layer.name, []).append(
                float(weight.detach().std()) / spread[layer.name]
            )
    for name, values in ratios.items():
        mean_square = sum(value**2 for value in values) / len(values)
        assert mean_square == pytest.approx(1, abs=0.12), (name, values)


def test_coefficients_start_orthogonal_across_the_layers_of_a_size() -> None:
    model = npas.share(Residual(), 2.5)
    coefficients = model.get_parameter("npas_coefficients_0_8").detach()
    same = [
        row
        for row, layer in enumerate(
            la for la in npas.allocation(model).layers if len(la.templates) == 8
        )
        if layer.shape == (8, 8, 3, 3)
    ]
    products = coefficients[same] @ coefficients[same].T
    torch.testing.assert_close(products, torch.eye(len(same)), atol=1e-5, rtol=0)


def test_same_seed_same_network_other_seed_another() -> None:
    states = [npas.share(ZOO[0].make(), 0.5, seed=seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["npas_bank_0"], states[2]["npas_bank_0"])


def test_what_fails_while_sharing_leaves_the_network_dense(tmp_path: Path) -> None:
    mixed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8))
    mixed[3].half()
    with pytest.raises(ValueError, match="put them in different groups"):
        npas.share(mixed, 0.5, groups="type")
    with pytest.raises(ValueError, match="not shared"):
        npas.materialize(mixed)
    mixed[3].float()
    npas.save(npas.share(mixed, 0.5, exclude="3.*"), tmp_path)
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 9))
    with pytest.raises(ValueError, match="another architecture") as error:
        npas.load(tmp_path, other)
    assert "\n" not in str(error.value)
    assert npas.plan(other, 0.5).budget.used > 0


def test_a_mean_of_two_templates_starts_with_the_dense_spread_too() -> None:
    """The allocator lets one of the equal layers average where coefficients cost too much."""
    ratios = []
    for seed in range(20):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])
        npas.share(model, 1.05, generator="emb", max_templates=1, seed=seed)
        averaged = [i for i, la in enumerate(npas.allocation(model).layers) if la.mixing == "avg"]
        assert averaged
        ratios.append(float(model[averaged[0]].weight.detach().std()) / 0.1443)  # U(-1/4, 1/4)
    assert sum(r * r for r in ratios) / len(ratios) == pytest.approx(1, abs=0.15)


def test_embeddings_that_write_to_their_weight_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="add it to exclude"):
        npas.share(model, 0.5)
    npas.share(model, 0.9, exclude="0.weight")


def test_norms_and_biases_stay_and_patterns_choose() -> None:
    plan = npas.plan(Residual(), 0.5)
    assert {layer.name for layer in plan.layers} == {
        name for name, p in Residual().named_parameters() if p.ndim > 1
    }
    without = npas.plan(Residual(), 0.5, exclude=["head.*", "stem.weight"])
    assert {la.name for la in plan.layers} - {la.name for la in without.layers} == {
        "head.weight",
        "stem.weight",
    }
    with_bias = npas.plan(Residual(), 0.5, include="head.bias")
    assert "head.bias" in {layer.name for layer in with_bias.layers}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a budget"),
        ({"budget": 0.1, "templates": 2}, "exclude each other"),
        (
            {"budget": 0.1, "generator": "mean"},
            "generator='mean' is unknown: choose avg, wavg, emb",
        ),
        ({"budget": 0.1, "upsampler": "tile"}, "choose inter, repeat, mask, wavg"),
        ({"budget": 0.1, "allocator": "released"}, "choose npas, reference"),
        ({"budget": 0.1, "max_templates": 0}, "max_templates=0 is out of range"),
        ({"budget": 0.1, "include": "heda.weight"}, "did you mean 'head.weight'"),
        ({"budget": 0.1, "include": "stage1.0.norm.weight"}, "initial values are all equal"),
        ({"budget": 0.001}, "needs at least"),
        ({"budget": 0.1, "allocator": "reference", "generator": "avg"}, "wavg"),
        ({"templates": 2}, "groups of one shape"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    options: dict[str, object], says: str
) -> None:
    model = Residual()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=says):
        npas.share(model, **options)  # type: ignore[arg-type]
    assert list(model.state_dict()) == before


def test_sharing_twice_and_asking_a_dense_network_are_refused() -> None:
    model = npas.share(Residual(), 0.3)
    with pytest.raises(ValueError, match="shared already"):
        npas.share(model, 0.3)
    with pytest.raises(ValueError, match="shared already"):
        npas.plan(nn.Sequential(model), 0.3)
    for ask in (npas.allocation, npas.materialize, npas.summary):
        with pytest.raises(ValueError, match="not shared"):
            ask(Residual())  # type: ignore[operator]


def test_lazy_and_meta_networks_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="run one batch"):
        npas.share(nn.Sequential(nn.LazyLinear(4)), 0.5)
    with torch.device("meta"):
        model = Residual()
    assert npas.plan(model, 0.3).budget.used > 0
    with pytest.raises(ValueError, match="meta device"):
        npas.share(model, 0.3)


def test_dropping_weights_that_look_trained_warns() -> None:
    fresh = Residual()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npas.share(fresh, 0.3)
    stepped = Residual()
    stepped(torch.randn(4, 3, 6, 6))  # moves the running statistics
    with pytest.warns(UserWarning, match="look trained"):
        npas.share(stepped, 0.3)


def test_soft_sharing_mixes_k_templates_within_a_stage() -> None:
    model = npas.share(
        Residual(),
        templates=2,
        groups={"stage1.[12].conv*": "stage1", "stage2.[12].conv*": "stage2"},
    )
    plan = npas.allocation(model)
    assert [group.bank for group in plan.groups] == [2 * 8 * 8 * 9, 2 * 16 * 16 * 9]
    assert npas.count_parameters(model) == plan.budget.used
    assert plan.split["coefficients"] == 2 * 8
    model(torch.randn(2, 3, 6, 6)).sum().backward()


@pytest.mark.slow
def test_a_torchvision_network_trains_exports_and_materializes_to_the_bit(tmp_path: Path) -> None:
    import torchvision

    model = npas.share(torchvision.models.resnet50(), budget=0.1)
    assert npas.count_parameters(model) == 2_555_703
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = model.get_parameter("npas_bank_0").detach().clone()
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 7])).backward()
    optimizer.step()
    assert (model.get_parameter("npas_bank_0").detach() != before).float().mean() > 0.99

    model.eval()
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(inputs)
    dense = npas.materialize(copy.deepcopy(model))
    exported = torchvision.models.resnet50()
    exported.load_state_dict(dense.state_dict())
    with torch.no_grad():
        assert torch.equal(dense(inputs), outputs)
        assert torch.equal(exported.eval()(inputs), outputs)


@pytest.mark.parametrize("thing", [[1], nn.Linear, None])
def test_what_is_no_network_is_refused(thing: object) -> None:
    for verb in (npas.share, npas.plan):
        with pytest.raises(ValueError, match=r"is no network: pass an nn\.Module"):
            verb(thing, 0.5)  # type: ignore[operator]
