"""Gradients reach the bank through autograd, whatever asks for them."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import INPUTS, LABELS, bank, gradients, loss, outputs, shared
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import npas
from npas.sharing.generators import hashing
from npas.sharing.layers import LayerSpec
from npas.sharing.runtime import bank as memory
from npas.sharing.runtime import reading
from npas.sharing.runtime.bank import BankReader, Block, BufferPool


def test_per_sample_gradients_by_vmap_add_up_to_the_batch_gradient():
    model = shared().eval()
    parameters = dict(model.named_parameters())

    def one(values, x, y):
        return F.cross_entropy(functional_call(model, values, (x[None],)), y[None])

    found = vmap(grad(one), in_dims=(None, 0, 0))(parameters, INPUTS, LABELS)
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name].mean(0), expected, rtol=1e-4, atol=1e-6)


# torch says so of itself when it first differentiates forward.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_agrees_with_a_difference_quotient():
    model = shared().double().eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(values):
        return functional_call(model, values, (INPUTS.double(),))

    _, tangent = jvp(run, (parameters,), (directions,))
    step = 1e-7  # a longer one crosses a kink of ReLU
    ahead, behind = (
        run({n: p + sign * step * directions[n] for n, p in parameters.items()}) for sign in (1, -1)
    )
    torch.testing.assert_close(
        tangent, (ahead - behind).detach() / (2 * step), rtol=1e-4, atol=1e-6
    )


def test_double_backward_agrees_with_plain_mixing():
    def penalty(model, plain):
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


def test_a_tensor_hook_on_the_bank_changes_its_gradient():
    model = shared().eval()
    seen = []

    def double(gradient):
        seen.append(gradient)
        return 2 * gradient

    bank(model).register_hook(double)
    loss(model).backward()
    assert len(seen) == 1
    torch.testing.assert_close(bank(model).grad, 2 * gradients(shared())["npas_bank_0"])


def test_a_hook_on_a_generated_weight_sees_its_gradient():
    model = shared().eval()
    seen = {}

    def watch(layer, *_):
        layer.weight.register_hook(lambda g: seen.update(stem=g))  # type: ignore[operator, union-attr]

    model.get_submodule("stem").register_forward_hook(watch)
    loss(model).backward()
    dense = npas.materialize(shared()).eval()
    loss(dense).backward()
    torch.testing.assert_close(seen["stem"], dense.get_parameter("stem.weight").grad)


def test_loss_scaling_unscales_to_the_same_gradient_and_skips_an_overflow():
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


def test_autocast_answers_as_the_dense_network_does():
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
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen):
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
def test_every_form_of_an_optimizer_takes_the_same_steps(optimizer, options):
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

    def __init__(self, selective):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(3)
        )
        self.selective = selective

    def forward(self, x):
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
    ("generator", "upsampler", "budget"),
    [("emb", "inter", 2.6), ("wavg", "wavg", 0.5), ("hash", "inter", 0.4)],
)
def test_selective_checkpoints_see_the_networks_operations_alone(
    generator, upsampler, budget, recompute
):
    found = []
    for selective in (False, True):
        torch.manual_seed(0)
        model = npas.share(
            Blocks(selective), budget, generator=generator, upsampler=upsampler, recompute=recompute
        )
        model(torch.ones(4, 16)).square().sum().backward()
        found.append(bank(model).grad)
    torch.testing.assert_close(found[0], found[1])


# --- the bank's buffer


def test_gradients_gathered_piece_by_piece_are_the_same(monkeypatch):
    model = shared().eval()
    whole = gradients(model)
    monkeypatch.setattr(memory, "PIECE", 50)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_weights_and_gradients_do_not_depend_on_what_is_generated_at_once(monkeypatch):
    found = []
    for block, part in ((1 << 22, 0.5), (1, 0.5), (1, 0.0)):  # no sets; sets; each layer alone
        monkeypatch.setattr(reading, "LARGEST_BLOCK", block)
        monkeypatch.setattr(reading, "LARGEST_PART", 0.0)
        monkeypatch.setattr(reading, "LARGEST_SET", part)
        model = shared().eval()
        batches = npas.sharing.runtime.install.shared_weights(model).reading.batches.values()
        has_sets = any(batch.made_with is not None for batch in batches)
        found.append((has_sets, outputs(model), gradients(model)))
    assert [has_sets for has_sets, _, _ in found] == [False, True, False]
    for _, made, given in found[1:]:
        assert torch.equal(made, found[0][1])
        for name, gradient in given.items():
            torch.testing.assert_close(gradient, found[0][2][name], rtol=1e-4, atol=1e-6)


def test_gradients_are_gathered_as_backward_reaches_each_layer(monkeypatch):
    """Not at its end, which would keep the gradients of all layers that are made at once."""
    monkeypatch.setattr(reading, "LARGEST_BLOCK", 1)
    monkeypatch.setattr(reading, "LARGEST_PART", 0.0)
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
    model = npas.share(layers, 0.5, generator="wavg")
    gathered, at_first_layer = [], []
    gather = Block.gather
    monkeypatch.setattr(Block, "gather", lambda *given: gathered.append(1) or gather(*given))
    watch = lambda grad: at_first_layer.append(len(gathered))  # noqa: E731
    model[0].register_forward_hook(lambda *given: given[-1].register_hook(watch) and None)
    model(torch.randn(2, 16)).sum().backward()
    assert len(gathered) == 8
    assert at_first_layer[0] >= 6


def test_many_small_layers_are_put_together_in_time_in_proportion_to_them(monkeypatch):
    reads = []
    size = property(lambda layer: reads.append(layer) or math.prod(layer.shape))
    counts = []
    for many in (100, 400):
        plan = npas.plan(nn.Sequential(*(nn.Linear(4, 4) for _ in range(many))), 0.5)
        reads.clear()
        with monkeypatch.context() as patched:
            patched.setattr(LayerSpec, "size", size)
            reading.Reading(plan)
        counts.append(len(reads))
    assert counts[1] <= 4 * counts[0], counts


def test_gradients_of_hashed_rows_are_those_of_each_value(monkeypatch):
    monkeypatch.setattr(hashing, "PIECE", 3)  # rows, of less than a layer: its ends go alone
    for length, size, first in ((20, 50, 7), (700, 1300, 45), (9000, 500, 9), (640, 9, 2)):
        hashing._readers.cache_clear()
        buffer, gradient, scale = torch.zeros(length), torch.randn(size), torch.tensor([0.5])
        hashing.add_to_rows(buffer, gradient, first, scale)
        values = torch.randn(length, requires_grad=True)
        (hashing.hashed_weight(values, length, size, first) * scale).backward(gradient)
        torch.testing.assert_close(buffer, values.grad)
    hashing._readers.cache_clear()


@pytest.mark.parametrize("positions", [(0, 6, 12), (3,), (0, 4, 8), (14, 8)])
def test_mixing_passes_gradcheck(positions):
    values = torch.randn(20, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(len(positions), dtype=torch.float64, requires_grad=True)

    def mixed(values, alpha):
        reader = BankReader(values, BufferPool())
        rows = [torch.stack([alpha, alpha.flip(0), alpha**2]), alpha[None]]
        three = Block((0, 1, 2), positions, 6, ((0, 0), (0, 1), (0, 2)), 3 * ((6,),))
        one = Block((3,), positions, 6, ((1, 0),), ((2, 3),))
        made = reader.weights([three, one], rows, values.dtype)
        first, second, _, alone = reader.mix(made, [three, one], rows)
        return first * alone.flatten(), second * first

    assert torch.autograd.gradcheck(mixed, (values, alpha))
    assert torch.autograd.gradgradcheck(mixed, (values, alpha))


def test_a_backward_that_skips_the_bank_leaves_nothing_behind():
    model = shared().eval()
    expected = gradients(model)["npas_bank_0"]
    alpha = [p for n, p in model.named_parameters() if n.startswith("npas_coefficients")]
    value = loss(model)
    torch.autograd.grad(value, alpha, retain_graph=True)
    value.backward()
    torch.testing.assert_close(bank(model).grad, expected)


def test_repeated_and_accumulated_backward_add_up():
    model = shared().eval()
    once = gradients(model)["npas_bank_0"]
    value = loss(model)
    for times in (1, 2):
        value.backward(retain_graph=True)
        torch.testing.assert_close(bank(model).grad, times * once)
    loss(model).backward()
    torch.testing.assert_close(bank(model).grad, 3 * once)


def test_memory_is_used_again_and_kept_gradients_are_not_overwritten():
    model = npas.share(nn.Sequential(*[nn.Linear(600, 600) for _ in range(3)]), 2.0)
    places = []
    for _ in range(3):
        bank(model).grad = None
        model(torch.randn(2, 600)).sum().backward()
        places.append(bank(model).grad.data_ptr())  # type: ignore[union-attr]
    assert places[1] == places[2]
    kept = bank(model).grad
    assert kept is not None
    before = kept.clone()
    bank(model).grad = None
    answers = [model(torch.randn(2, 600)) for _ in range(2)]  # two graphs: weights are apart
    answers[0].sum().backward()
    answers[1].sum().backward()
    assert torch.equal(kept, before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant):
    model = shared().eval()
    x = INPUTS.clone().requires_grad_()
    for name in ("stem", "stage1", "widen", "stage2"):
        x = checkpoint(model.get_submodule(name), x, use_reentrant=reentrant)
    F.cross_entropy(model.get_submodule("head")(x.mean((2, 3))), LABELS).backward()
    for name, gradient in gradients(shared()).items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6, msg=name)
