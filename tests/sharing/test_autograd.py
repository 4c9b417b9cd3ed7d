"""Gradients reach the bank by the ordinary path, whoever asks for them and however."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import INPUTS, LABELS, bank, gradients, loss, outputs, shared
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import npas


def test_per_sample_gradients_by_vmap_add_up_to_the_batch_gradient() -> None:
    model = shared().eval()
    parameters = dict(model.named_parameters())

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, values, (x[None],)), y[None])

    found = vmap(grad(one), in_dims=(None, 0, 0))(parameters, INPUTS, LABELS)
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name].mean(0), expected, rtol=1e-4, atol=1e-6)


# torch says so of itself when it first differentiates forward.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_agrees_with_a_difference_quotient() -> None:
    model = shared().double().eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values, (INPUTS.double(),))

    _, tangent = jvp(run, (parameters,), (directions,))
    step = 1e-6
    ahead, behind = (
        run({n: p + sign * step * directions[n] for n, p in parameters.items()}) for sign in (1, -1)
    )
    torch.testing.assert_close(
        tangent, (ahead - behind).detach() / (2 * step), rtol=1e-4, atol=1e-6
    )
    with torch.autograd.forward_ad.dual_level():
        dual = {
            name: torch.autograd.forward_ad.make_dual(p, directions[name])
            for name, p in parameters.items()
        }
        same = torch.autograd.forward_ad.unpack_dual(run(dual)).tangent
    torch.testing.assert_close(same, tangent)


def test_double_backward_agrees_with_plain_mixing() -> None:
    def penalty(model: nn.Module, plain: bool) -> Tensor:
        values = dict(model.named_parameters())
        x = INPUTS.double()
        if plain:  # a transform makes the weights by plain operations
            found = grad(lambda v: F.cross_entropy(functional_call(model, v, (x,)), LABELS))(values)
            return torch.stack([g.square().sum() for g in found.values()]).sum()
        answer = F.cross_entropy(model(x), LABELS)
        found_ = torch.autograd.grad(answer, list(values.values()), create_graph=True)
        return torch.stack([g.square().sum() for g in found_]).sum()

    results = []
    for plain in (False, True):
        model = shared().double().eval()
        penalty(model, plain).backward()
        results.append(bank(model).grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-12)


def test_a_tensor_hook_on_the_bank_changes_its_gradient() -> None:
    model = shared().eval()
    seen: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return 2 * gradient

    bank(model).register_hook(double)
    loss(model).backward()
    assert len(seen) == 1
    torch.testing.assert_close(bank(model).grad, 2 * gradients(shared())["npas_bank_0"])


def test_a_hook_on_a_generated_weight_sees_its_gradient() -> None:
    model = shared().eval()
    seen: dict[str, Tensor] = {}

    def watch(layer: nn.Module, *_: object) -> None:
        layer.weight.register_hook(lambda g: seen.update(stem=g))  # type: ignore[operator, union-attr]

    model.get_submodule("stem").register_forward_hook(watch)
    loss(model).backward()
    dense = npas.materialize(shared()).eval()
    loss(dense).backward()
    torch.testing.assert_close(seen["stem"], dense.get_parameter("stem.weight").grad)


def test_loss_scaling_unscales_to_the_same_gradient_and_skips_an_overflow() -> None:
    model = shared().eval()
    expected = gradients(model)["npas_bank_0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss(model)).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(bank(model).grad, expected)
    scaler.step(optimizer)
    scaler.update()
    before = bank(model).detach().clone()
    optimizer.zero_grad()
    scaler.scale(loss(model) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(bank(model), before) and scaler.get_scale() == 512.0


def test_autocast_answers_as_the_dense_network_does() -> None:
    model, dense = shared().eval(), npas.materialize(shared()).eval()
    found = {}
    for name, network in (("shared", model), ("dense", dense)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = network(INPUTS)
        assert answer.dtype == torch.bfloat16
        found[name] = answer.float()
    torch.testing.assert_close(found["shared"], found["dense"], rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model)
    value.backward()
    expected = gradients(shared())["npas_bank_0"]
    gradient = bank(model).grad
    assert gradient is not None and gradient.dtype == torch.float32
    assert F.cosine_similarity(gradient, expected, dim=0) > 0.99


@pytest.mark.parametrize("frozen", ["npas_bank_0", "npas_coefficients_0_8", ""])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen: str) -> None:
    model = shared().eval()
    expected = gradients(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(frozen) and name != frozen)
    inputs = INPUTS.clone().requires_grad_()
    F.cross_entropy(model(inputs), LABELS).backward()
    assert inputs.grad is not None and bool(inputs.grad.any())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_every_form_of_an_optimizer_takes_the_same_steps(
    optimizer: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    answers = []
    for choice in ({"foreach": False}, options):
        model = shared().eval()
        steps = optimizer(model.parameters(), lr=0.01, **choice)  # type: ignore[call-arg]
        for _ in range(4):
            steps.zero_grad()
            loss(model).backward()
            steps.step()
        answers.append(outputs(model))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


class Blocks(nn.Module):
    """Blocks that are checkpointed, but for what their matrix products return."""

    def __init__(self, selective: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(3)
        )
        self.selective = selective

    def forward(self, x: Tensor) -> Tensor:
        products = [torch.ops.aten.addmm.default, torch.ops.aten.mm.default]
        contexts = partial(create_selective_checkpoint_contexts, products)
        for block in self.blocks:
            if self.selective:
                x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x)
        return x


# torch says that it may one day pass what such a checkpoint keeps through the hooks of recompute.
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("generator", "upsampler", "budget"), [("emb", "inter", 2.6), ("wavg", "wavg", 0.5)]
)
def test_selective_checkpoints_see_the_networks_operations_alone(
    generator: str, upsampler: str, budget: float, recompute: bool
) -> None:
    found = []
    for selective in (False, True):
        torch.manual_seed(0)
        model = npas.share(
            Blocks(selective),
            budget,
            generator=generator,
            upsampler=upsampler,
            recompute=recompute,
        )
        model(torch.ones(4, 16)).square().sum().backward()
        found.append(bank(model).grad)
    torch.testing.assert_close(found[0], found[1])
