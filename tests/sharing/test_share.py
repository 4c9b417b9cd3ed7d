"""What `npas.share` promises beside the matrix: starts, seeds, refusals, summaries, FLOPs."""

import copy
import gc
import re
import warnings
import weakref

import numpy as np
import pytest
import torch
from tiny import INPUTS, shared
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Residual

import npas
from npas.utils.printing import Grid, Shown


@pytest.mark.parametrize(
    ("budget", "generator", "upsampler"),
    [(0.05, "avg", u) for u in ("inter", "repeat", "mask", "wavg")]
    + [(budget, g, "inter") for budget in (0.3, 2.5) for g in ("avg", "wavg", "emb", "mlp")],
)
def test_generated_weights_start_with_the_dense_spread(budget, generator, upsampler):
    """Layers of different fan-in read one bank; each starts with its own variance."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 32, 1),
            nn.Linear(128, 100), nn.Linear(100, 128),
        )  # fmt: skip

    spread = {name: float(p.detach().std()) for name, p in build().named_parameters()}
    ratios = {}
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


def test_coefficients_start_orthogonal_across_the_layers_of_a_size():
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


def test_same_seed_same_network_other_seed_another():
    states = [npas.share(ZOO[0].make(), 0.5, seed=seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["npas_bank_0"], states[2]["npas_bank_0"])


@pytest.mark.slow
def test_dense_weights_are_freed_while_sharing_and_held_ones_reported(tmp_path, monkeypatch):
    """No reference cycle and no name may hold them: a large network's memory counts once."""
    images = torch.randn(2, *ZOO[0].batch()[0].shape[1:])
    npas.save(npas.share(ZOO[0].make(), 0.5), tmp_path)
    ways = {
        "share": lambda model: npas.share(model, 0.5),
        "load": lambda model: npas.load(tmp_path, model),
        "fit": lambda model: npas.share(model, 0.5, init="fit"),
        "fit_batches": lambda model: npas.share(model, 0.5, init="fit", batches=[images]),
        "fit_templates": lambda model: npas.share(model, templates=1, groups="shape", init="fit"),
    }
    gc.collect()
    gc.disable()
    try:
        for name, share in ways.items():
            model = ZOO[0].make()
            weights = [weakref.ref(p) for p in model.parameters() if p.ndim > 1]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* look fresh")
                with monkeypatch.context() as patched:  # a slow search for who holds them
                    patched.setattr(gc, "collect", lambda: pytest.fail("they are still held"))
                    share(model)
            ordinary = {id(parameter) for parameter in model.parameters()}
            alive = [ref() for ref in weights if ref() is not None]
            assert len(alive) < len(weights) and {id(p) for p in alive} <= ordinary, name
            del alive
            model = ZOO[0].make()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            with pytest.warns(UserWarning) as caught:
                share(model)
            lines = [str(warning.message) for warning in caught]
            assert any("SGD was made before npas.share and holds" in line for line in lines), name
            assert optimizer.param_groups
    finally:
        gc.enable()


def test_what_fails_while_sharing_leaves_the_network_dense(tmp_path):
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


def test_norms_and_biases_stay_and_patterns_choose():
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
        ({"budget": 0.1, "include": "stage1.0.norm.weight"}, "starts with equal values"),
        ({"budget": 0.001}, "needs at least"),
        ({"budget": 0.1, "allocator": "reference", "generator": "avg"}, "wavg"),
        ({"templates": 2}, "groups of one shape"),
        ({"templates": 1.5}, "templates=1.5 must be an integer, 'layers' or None"),
        ({"budget": 0.1, "seed": "a"}, "seed='a' must be an integer"),
        ({"budget": 0.1, "seed": 2**63}, "must fit in 64 bits"),
        ({"budget": 0.1, "max_templates": 2.5}, "max_templates=2.5 must be an integer"),
        ({"budget": 0.1, "low_rank": True}, "low_rank=True must be an integer"),
        ({"budget": 0.5, "generator": []}, r"generator=\[\] is unknown"),
        ({"templates": 10**9, "groups": "place"}, "from 1 to 10,000"),
        ({"budget": 0.1, "groups": "shape", "num_groups": 2}, "no use with groups='shape'"),
        ({"budget": 0.5, "init": "fit", "num_groups": 2}, "leave num_groups out"),
        ({"budget": 0.1, "groups": 3}, "groups=3 must be a name or a mapping"),
        ({"budget": 0.1, "groups": "random", "num_groups": 1.5}, "num_groups=1.5 must be an int"),
        ({"budget": 0.1, "include": 3}, "include=3 must be a pattern of names, or several"),
        ({"budget": 0.1, "exclude": [3]}, r"exclude=\[3\] must be a pattern"),
        ({"budget": 0.1, "train_coefficients": "no"}, "train_coefficients='no' must be True or F"),
        ({"budget": 0.1, "recompute": None}, "recompute=None must be True or False"),
        ({"budget": 0.5, "init": "fit", "recompute": "x"}, "recompute='x' must be True or False"),
        ({"budget": 0.1, "packing": "x"}, "packing='x' must be an npas.Packing or None"),
        ({"budget": 0.1, "packing": npas.Packing()}, "packing is of budgets in bytes: give one"),
        ({"templates": 2, "packing": npas.Packing()}, "packing is of budgets in bytes: give one"),
        ({"budget": "10KB", "packing": {}}, "packing={} must be an npas.Packing or None"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*look fresh")
def test_invalid_options_are_refused_before_anything_changes(options, says):
    model = Residual()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=says):
        npas.share(model, **options)  # type: ignore[arg-type]
    assert list(model.state_dict()) == before


@pytest.mark.parametrize(
    "options",
    [
        {"budget": np.float32(0.9), "max_templates": np.int64(3), "seed": np.int64(4)},
        {"budget": 0.9, "low_rank": np.int64(1), "upsample_templates": np.int8(2)},
        {"templates": np.int32(2), "groups": {"stage1.*": np.int64(7)}},
        {"budget": 0.5, "groups": "random", "num_groups": np.int64(2), "seed": np.uint8(1)},
        {"budget": 0.5, "groups": {"*": 1}, "group_weights": {1: np.float32(0.5)}},
    ],
)
def test_numpy_numbers_are_numbers(options, tmp_path):
    torch.manual_seed(0)
    model = npas.share(Residual(), **{"generator": "wavg", **options})
    npas.save(model, tmp_path)
    npas.write_artifact(model, tmp_path / "a.npas", cap=np.int64(10**6))
    again = npas.load(tmp_path, Residual()).eval()
    assert npas.allocation(again) == npas.allocation(model)
    torch.testing.assert_close(again(INPUTS), model.eval()(INPUTS), rtol=0, atol=0)


def test_a_network_with_tensors_of_sharings_names_is_refused():
    for register in ("register_parameter", "register_buffer"):
        model = Residual()
        getattr(model, register)("npas_bank_0", nn.Parameter(torch.ones(3)))
        for ask in (npas.plan, npas.share):
            with pytest.raises(ValueError, match="'npas_bank_0' has a name that sharing uses"):
                ask(model, 0.3)  # type: ignore[operator]
        assert model.npas_bank_0.tolist() == [1, 1, 1] and not npas.is_shared(model)


def test_sharing_twice_and_asking_a_dense_network_are_refused():
    model = npas.share(Residual(), 0.3)
    with pytest.raises(ValueError, match="shared already"):
        npas.share(model, 0.3)
    with pytest.raises(ValueError, match="shared already"):
        npas.plan(nn.Sequential(model), 0.3)
    for ask in (npas.allocation, npas.materialize, npas.summary):
        with pytest.raises(ValueError, match="not shared"):
            ask(Residual())  # type: ignore[operator]


def test_dropping_weights_that_look_trained_warns():
    fresh = Residual()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npas.share(fresh, 0.3)
    stepped = Residual()
    stepped(torch.randn(4, 3, 6, 6))  # moves the running statistics
    with pytest.warns(UserWarning, match="look trained"):
        npas.share(stepped, 0.3)


ASK = ("summary", "allocation", "similarity", "materialize", "is_shared", "count_parameters")
NEED_A_NETWORK = {
    "share": lambda model, _: npas.share(model, 0.5),
    "plan": lambda model, _: npas.plan(model, 0.5),
    "param_groups": lambda model, _: npas.param_groups(model, 0.1),
    "fold": lambda model, _: npas.fold(model, 0.9),
    "weight_errors": lambda model, _: npas.weight_errors(model, {}),
    "load": lambda model, folder: npas.load(folder, model),
    "read_artifact": lambda model, folder: npas.read_artifact(folder / "a.npas", model),
    **{name: lambda model, _, name=name: getattr(npas, name)(model) for name in ASK},
    **{
        name: lambda model, folder, name=name: getattr(npas, name)(model, folder / "new")
        for name in ("save", "write_artifact", "save_pretrained")
    },
}


@pytest.mark.parametrize("ask", NEED_A_NETWORK.values(), ids=NEED_A_NETWORK)
def test_what_is_no_network_is_named_by_its_type(ask, tmp_path):
    model = npas.share(Residual(), 0.5)
    npas.save(model, tmp_path)
    npas.write_artifact(model, tmp_path / "a.npas")
    values = nn.Parameter(torch.zeros(40, 40))
    for thing in (None, 3, "x", [model], nn.Linear, values, model.state_dict()):
        with pytest.raises(ValueError) as error:
            ask(thing, tmp_path)
        kind = type(thing).__name__
        assert str(error.value) == f"this {kind} is not a network: pass an nn.Module"


PATHS = {
    "save": lambda model, path: npas.save(model, path),
    "save_pretrained": lambda model, path: npas.save_pretrained(model, path),
    "write_artifact": lambda model, path: npas.write_artifact(model, path),
    "load": lambda _, path: npas.load(path, Residual()),
    "read_artifact": lambda _, path: npas.read_artifact(path, Residual()),
    "from_pretrained": lambda _, path: npas.from_pretrained(path, Residual()),
}


@pytest.mark.parametrize("use", PATHS.values(), ids=PATHS)
def test_what_is_no_path_is_refused(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, file = shared(), tmp_path / "file"
    for path in (None, 3, b"x", ""):
        with pytest.raises(ValueError, match=r"path=.* must be the name of a file or folder"):
            use(model, path)
    assert not list(tmp_path.iterdir())
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(ValueError) as error:
            use(model, path)
        assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert file.read_text() == "mine"


def test_the_summary_lists_layers_groups_and_budget():
    model = npas.share(Residual(), 0.3, generator="wavg", groups="type", exclude="stem.weight")
    plan, text = npas.allocation(model), npas.summary(model)
    lines = text.splitlines()
    assert re.fullmatch(
        r"stage1\.\{0-2\}\.conv1\.weight +x 3 +8x8x3x3 +576 +conv2d +\d +\w+", lines[1]
    )
    assert "head.weight" in text and "stem" not in text
    folded = [re.search(r"  x (\d+)  ", line) for line in lines[1 : lines.index("")]]
    assert sum(int(found[1]) if found else 1 for found in folded) == len(plan.layers)
    for group in plan.groups:
        pattern = rf"{group.name} +{len(group.layers)} +[\d,]+ +({group.bank:,}|none)"
        assert any(re.match(pattern, line) for line in lines)
    used = npas.count_parameters(model)
    assert f"asked 0.3, dense {plan.budget.dense:,}, allowed {plan.budget.allowed:,}" in text
    assert f"used {used:,} (" in text


def test_a_notebook_shows_the_summary_as_tables():
    model = npas.share(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)), 0.6)
    shown = npas.summary(model)
    text, html = str(shown), shown._repr_html_()
    assert repr(shown) == text and copy.deepcopy(shown)._repr_html_() == html
    assert html.count("<table>") == html.count("</table>") == 2
    assert html.count('<th scope="col"') == 7 + 5
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html)
    for line in text.splitlines()[:6]:  # of layers and of groups
        assert set(re.split(r" {2,}", line.strip())) <= {"", *cells}
    assert f"<pre>{text[text.index('split ') :]}</pre>" in html
    hostile = Shown(Grid([["<b>"], ["&"]]), "<script>")._repr_html_()
    assert "<b>" not in hostile and "<script>" not in hostile and "&amp;" in hostile


def test_alike_is_what_agrees_in_all_but_its_index():
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([nn.Linear(16, 16) for _ in range(12)]),
            "odd": nn.ModuleList([nn.Linear(8 + 8 * (i % 2), 16) for i in range(4)]),
            "conv1": nn.Conv2d(4, 4, 3),
            "conv2": nn.Conv2d(4, 4, 3),
        }
    )
    names = [line.split(" ")[0] for line in npas.plan(model, 0.5).summary().splitlines()[1:6]]
    assert names == [
        "blocks.{0-11}.weight", "odd.{0,2}.weight", "odd.{1,3}.weight", "conv1.weight",
        "conv2.weight",
    ]  # fmt: skip


def flops(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(INPUTS)
    return int(counter.get_total_flops())


def test_counting_operations_finds_the_dense_networks_flops():
    model, dense = shared().eval(), flops(Residual().eval())
    assert flops(model) > dense  # the weights are made once
    assert flops(model) == dense
    assert flops(npas.materialize(model)) == dense
