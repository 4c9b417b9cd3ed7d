"""State dicts, files, copies and dtypes treat banks as any other tensor."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from tiny import INPUTS, Mlp, bank, loss, mlp, outputs, shared
from torch import nn

import npas


class Wrapper(nn.Module):
    """A network as trainers do: as an attribute, beside a head of its own."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = nn.Linear(5, 2)

    def training_step(self, inputs):
        return self.head(self.model(inputs)).square().mean()


def test_every_tensor_stands_once_and_in_a_stable_order():
    model, other = (shared(0.1, seed, generator="emb", upsampler="mask") for seed in (0, 3))
    names = [name for name, _ in model.named_parameters()]
    for twin in (other, copy.deepcopy(model)):
        assert names == [name for name, _ in twin.named_parameters()]
    assert names == [name for name in model.state_dict() if name in set(names)]
    pointers = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_loads_by_copy_and_by_assignment(assign):
    model, other = shared().eval(), shared(seed=5).eval()
    outputs(other)  # weights are kept; the load must end that
    assert str(other.load_state_dict(model.state_dict(), assign=assign)) == (
        "<All keys matched successfully>"
    )
    assert torch.equal(outputs(other), outputs(model))
    loss(other).backward()
    assert bank(other).grad is not None


def test_a_state_dict_of_another_sharing_is_refused():
    def grouped(seed):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
        return npas.share(model, 0.5, groups="random", num_groups=2, seed=seed)

    buffer = io.BytesIO()
    torch.save(grouped(1).state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    grouped(1).load_state_dict(state)
    with pytest.raises(RuntimeError, match="shares in another way: share with the same arguments"):
        grouped(4).load_state_dict(state)
    with pytest.warns(UserWarning, match="shares in another way"):
        grouped(4).load_state_dict(state, strict=False)
    grouped(4).load_state_dict(dict(state))  # without metadata nothing tells


@pytest.mark.slow
def test_a_state_dict_loads_whatever_the_dense_networks_held():
    def build(seed, large=None):
        torch.manual_seed(seed)
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
        if large is not None:
            nn.init.normal_(model.get_parameter(f"{large}.weight"), std=50.0)
        return npas.share(model, 0.7)

    assert {npas.allocation(build(seed)).scales for seed in range(20)} == {1}
    x = torch.randn(3, 4)
    for other in (build(1, 5), build(2), torch.compile(build(3, 5), backend="eager")):
        other.eval()(x)
        model = build(0, 2).eval()
        assert npas.allocation(model).scales == 2
        inner = getattr(other, "_orig_mod", other)
        inner.load_state_dict(model.state_dict())
        assert torch.equal(other(x), model(x))
        assert torch.equal(npas.materialize(inner)(x), model(x))


class SavesItself(nn.Linear):
    """A layer that writes its state dict itself, as PyTorch Geometric's does."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()


def test_layers_that_save_themselves_save_no_generated_weights(tmp_path):
    def build(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(SavesItself(6, 8), nn.Tanh(), SavesItself(8, 8))

    model, x = npas.share(build(), 0.5), torch.ones(2, 6)
    assert set(model.state_dict()) == {"npas_bank_0", "npas_scales", "0.bias", "2.bias"}
    npas.save(model, tmp_path)
    other = npas.share(build(1), 0.5)
    other.load_state_dict(model.state_dict())
    for twin in (other, npas.load(tmp_path, build(2))):
        assert torch.equal(twin(x), model(x))
    assert npas.materialize(model).state_dict().keys() == build().state_dict().keys()


@pytest.mark.parametrize("wrap", [Wrapper, nn.Sequential], ids=["attribute", "sequential"])
def test_as_a_part_of_something_larger_the_bank_takes_its_prefix(wrap):
    whole, other = wrap(shared()), wrap(shared(seed=5))  # type: ignore[call-arg]
    prefix = next(iter(whole.state_dict())).partition(".")[0]
    assert f"{prefix}.npas_bank_0" in whole.state_dict()
    assert f"{prefix}.npas_bank_0" in dict(whole.named_parameters())
    other.load_state_dict(whole.state_dict())
    inner, loaded = whole.get_submodule(prefix).eval(), other.get_submodule(prefix).eval()
    assert torch.equal(outputs(loaded), outputs(inner))
    assert npas.is_shared(inner) and not npas.is_shared(whole)
    with pytest.raises(ValueError, match=r"pass the module that npas\.share returned"):
        npas.summary(whole)
    npas.materialize(inner)
    assert not any("npas" in name for name in whole.state_dict())


@pytest.mark.parametrize("through_model", [False, True])
def test_safetensors_writes_no_aliases(tmp_path, through_model):
    model, other = shared().eval(), shared(seed=5).eval()
    path = str(tmp_path / "weights.safetensors")
    if through_model:
        save_model(model, path)
        load_model(other, path)
    else:
        save_file(model.state_dict(), path)  # refuses tensors that share memory
        other.load_state_dict(load_file(path))
    assert torch.equal(outputs(other), outputs(model))
    assert set(load_file(path)) == set(model.state_dict())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_can_be_pickled_with_or_without_a_wrapper(wrapped):
    model = shared().eval()
    whole = nn.Sequential(model) if wrapped else model
    outputs(model)  # kept weights stay out of the file
    buffer = io.BytesIO()
    torch.save(whole, buffer)
    assert buffer.tell() < 4 * npas.count_parameters(model) + 60_000
    buffer.seek(0)
    back = torch.load(buffer, weights_only=False)
    assert torch.equal(outputs(back), outputs(model))
    loss(back).backward()
    name = "0.npas_bank_0" if wrapped else "npas_bank_0"
    assert back.get_parameter(name).grad is not None
    assert isinstance(back.get_submodule("0.stem" if wrapped else "stem"), nn.Conv2d)


def test_copying_a_part_alone_warns_that_its_bank_is_not_in_it():
    model = shared()
    with pytest.warns(UserWarning, match="copied by itself"):
        part = copy.deepcopy(model.get_submodule("stage1"))
    assert not any("npas" in name for name, _ in part.named_parameters())
    twin = copy.deepcopy(nn.Sequential(model))  # warnings are errors: none here
    assert "0.npas_bank_0" in dict(twin.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_way_to_a_dtype_takes_banks_and_gradients_along(dtype):
    name = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}[dtype]
    expected = outputs(shared().eval()).to(dtype)
    for model in (getattr(shared(), name)(), shared().to(dtype), shared().type(dtype)):
        answer = model.eval()(INPUTS.to(dtype))
        answer.float().square().sum().backward()
        assert answer.dtype == bank(model).dtype == dtype
        assert bank(model).grad is not None
        torch.testing.assert_close(answer, expected, rtol=0.1, atol=0.1)
        model.to(torch.float32)
        assert torch.isfinite(outputs(model)).all()


@pytest.mark.parametrize("nested", [False, True])
def test_a_dense_state_dict_is_pointed_to_a_fit(nested):
    torch.manual_seed(1)
    dense = Mlp()
    model = copy.deepcopy(mlp())
    if nested:
        model, dense = nn.ModuleDict({"part": model}), nn.ModuleDict({"part": dense})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"4 shared layers \(body.first.weight, ...\).* npas\.share it with init='fit'"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(dense.state_dict())
    with pytest.warns(UserWarning, match=message) as caught:
        report = model.load_state_dict(dense.state_dict(), strict=False)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert len(report.unexpected_keys) == 4
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {name for name in dense.state_dict() if name.endswith("bias")}
    model.load_state_dict(model.state_dict())
    inner = model.get_submodule("part") if nested else model
    npas.materialize(inner)
    model.load_state_dict(dense.state_dict())


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WAYS = [
    {"budget": 0.3},
    *({"budget": 0.5, "generator": own} for own in ("avg", "emb", "mlp", "channels", "tiles")),
    *({"budget": 0.5, "generator": own} for own in ("wavg", "basis", "factorized")),
    *({"budget": 0.3, "generator": "wavg", "upsampler": own} for own in ("repeat", "mask", "wavg")),
    {"budget": 2.0, "low_rank": 1, "upsample_templates": 2},
    {"templates": 2, "groups": "shape"},
    {"templates": 1, "groups": "shape", "init": "fit"},
    {"budget": 0.5, "init": "fit", "generator": "codebook", "batches": [X]},
    {"budget": 0.5, "init": "fit", "generator": "basis", "batches": [X]},
]


@pytest.mark.filterwarnings("ignore:.*look fresh")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_default_device_and_dtype_change_nothing(way, tmp_path):
    found = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float32), ("cpu", torch.float64)):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten()]
        model = nn.Sequential(*layers, *(nn.Linear(32, 32) for _ in range(3)))
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                npas.share(model, **way)
                model(X).square().sum().backward()
                npas.summary(model)
                npas.save(model, tmp_path)
                npas.write_artifact(model, tmp_path / "a.npas")
                npas.read_artifact(tmp_path / "a.npas", copy.deepcopy(model))
                gradients = [p.grad for p in model.parameters()]
                dense = npas.materialize(model)
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([dense(X), *gradients])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
