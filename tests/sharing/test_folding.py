"""Folding: networks built to fold become loops, with the tied network's outputs."""

import copy

import pytest
import torch
from soft import GRIDS, Chain, chain, repeated, set_rows
from torch import nn

import npas
from npas.sharing.runtime.loops import Loop, Repeat
from npas.sharing.trained.folding import fold, fold_tied, load_folded, save_folded
from npas.sharing.trained.layer_similarity import tie

A, B = [1.0, 0.2, 0.0], [0.0, -1.0, 0.5]
C, D = [0.7, 0.7, -1.0], [0.1, 0.0, 1.0]
WEIGHT = 8 * 8 * 9
OWN = 4 * 8 + 8  # a norm's weight, bias, mean and variance, and conv1's bias


@torch.no_grad()
def outputs(model):
    return model.eval()(GRIDS)


def folded(rows, **options):
    """Return a network with these coefficients, tied, and the folded one."""
    model = chain(len(rows[0]), **options)  # type: ignore[arg-type]
    set_rows(model, rows)
    ties = tie(model, 0.99)
    return copy.deepcopy(model), model, fold_tied(model, ties)


def test_equal_blocks_become_one_loop_with_the_same_outputs():
    tied, model, found = folded(repeated([A, B], 6))
    assert found.repeats == [Repeat("blocks", ("0", "1", "2", "3", "4", "5"), 1, 6, 6 * OWN)]
    assert found.blocks == found.repeats
    loop = model.get_submodule("blocks.0")
    assert isinstance(loop, Loop) and len(model.blocks) == 1  # type: ignore[arg-type]
    assert "times=6" in repr(loop)
    torch.testing.assert_close(outputs(model), outputs(tied), rtol=1e-5, atol=1e-6)
    # Two weights in place of three templates: the standard parameters are back.
    assert found.plain == ["blocks"] and found.allocation is None
    assert not npas.is_shared(model)
    assert (found.layers_before, found.layers, found.weights) == (13, 3, 3)
    assert found.parameters_before - found.parameters == WEIGHT + 12 * 3
    assert found.parameters == npas.count_parameters(model)


def test_a_run_in_the_middle_leaves_its_neighbours():
    tied, model, found = folded([A, B, *[C, D] * 4, B, A])
    assert [(b.blocks, b.times) for b in found.blocks] == [
        (("0",), 1),
        (("1", "2", "3", "4"), 4),
        (("5",), 1),
    ]
    assert list(model.blocks._modules) == ["0", "1", "2"]  # type: ignore[union-attr]
    torch.testing.assert_close(outputs(model), outputs(tied))


def test_more_weights_than_templates_go_on_sharing():
    tied, model, found = folded([A, B, A, B, C, D, D, C, A, C, B, D])
    assert found.plain == [] and found.allocation is not None
    assert npas.is_shared(model)
    assert npas.allocation(model) is not None
    torch.testing.assert_close(outputs(model), outputs(tied))
    assert found.weights == 4 + 1  # four of the group's and the stem's
    assert found.allocation.split["coefficients"] == 4 * 3
    assert found.parameters == npas.count_parameters(model) == found.allocation.budget.used
    # Blocks 0 and 1 loop; the others hold the same weights in another order.
    assert [(r.blocks, r.times) for r in found.repeats] == [(("0", "1"), 2)]


@pytest.mark.parametrize("generator", ["wavg", "emb", "mlp"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("templates", [2, 3, "layers"])
def test_folding_at_any_threshold_keeps_the_tied_outputs(generator, normed, templates):
    for threshold in (0.999, 0.9, 0.5, 0.01):
        model = chain(templates, normed=normed, generator=generator)
        tied = copy.deepcopy(model)
        ties = tie(tied, threshold)
        found = fold(model, threshold)
        assert found.tied == ties
        torch.testing.assert_close(outputs(model), outputs(tied), rtol=1e-5, atol=1e-6)
        assert found.parameters <= found.parameters_before
        assert sum(len(block.blocks) for block in found.blocks) == 6


def test_a_folded_network_trains_and_keeps_statistics_per_iteration():
    _, model, _ = folded(repeated([A, B], 6))
    means = [t.clone() for n, t in model.named_buffers() if n.endswith("running_mean")]
    assert len(means) == 6
    model.train()
    loss = model(torch.randn(8, 2, 5, 5)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    moved = [t for n, t in model.named_buffers() if n.endswith("running_mean")]
    assert not any(torch.equal(a, b) for a, b in zip(means, moved, strict=True))
    assert len({tuple(t.tolist()) for t in moved}) == 6


@pytest.mark.parametrize(
    "rows", [repeated([A, B], 6), [A, B, A, B, C, D, D, C, A, C, B, D]], ids=["plain", "shared"]
)
def test_a_folded_network_comes_back_from_its_files(tmp_path, rows):
    _, model, found = folded(rows)
    save_folded(model, found, tmp_path)
    again = load_folded(tmp_path, Chain())
    assert torch.equal(outputs(again), outputs(model))
    assert npas.count_parameters(again) == found.parameters
    with pytest.raises(ValueError, match="another architecture"):
        load_folded(tmp_path, Chain(count=3))
    with pytest.raises(ValueError, match="holds no model"):
        load_folded(tmp_path / "nowhere", Chain())


def test_ties_outside_of_a_sequential_are_one_parameter():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.other(torch.relu(self.one(x)))

    model = npas.share(Pair(), templates=2)
    set_rows(model, [[1.0, 0.0], [1.0, 0.0]])
    x = torch.randn(2, 4)
    ties = tie(model, 0.99)  # their scales differ: it is the weights that are set equal
    assert ties == [["one.weight", "other.weight"]]
    before = model(x).detach()
    found = fold_tied(model, ties)
    assert found.repeats == []
    assert model.one.weight is model.other.weight
    assert model.one.bias is not model.other.bias
    torch.testing.assert_close(model(x), before)
    assert (found.layers, found.weights) == (2, 1)


def test_what_is_tied_without_a_loop_is_saved_as_folded_alone(tmp_path):
    def build():
        torch.manual_seed(0)
        parts = (nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.Tanh()) for _ in range(6))
        return nn.Sequential(*parts)

    model = npas.share(build(), templates=3, groups="shape")
    found = fold(model, 0.4)
    assert found.tied and not found.repeats and npas.is_shared(model)
    save_folded(model, found, tmp_path)
    again = load_folded(tmp_path, build())
    inputs = torch.randn(2, 12)
    assert torch.equal(again(inputs), model(inputs))
    for network in (model, copy.deepcopy(model), again):
        for write in (npas.save, npas.write_artifact):
            with pytest.raises(ValueError, match="save folded ones with"):
                write(network, tmp_path / "other")


def test_what_cannot_be_folded_is_left_as_it_was():
    def network(**options):
        layers = [nn.Linear(8, 8) for _ in range(4)]
        return npas.share(nn.Sequential(*layers), **options)

    mixed = {"templates": 2, "groups": "shape"}
    for model, threshold, example, line in (
        (nn.Linear(2, 2), 0.9, None, "not shared"),
        (network(**mixed), 2, None, "is no cosine"),
        (network(**mixed), 0.1, torch.ones(2, 9), r"example .*\(RuntimeError: .*dict of them"),
        (network(**mixed), 0.1, (), r"the example cannot be run .*\(TypeError: "),
        (network(**mixed), 0.1, 3, r"example cannot be run .*: it=3 must be a tensor"),
        (network(budget=0.5), 0.9, None, "generator='hash' has no coefficients per layer"),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=line):
            fold(model, threshold, example)
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_ordinary_parameters_of_one_shape_stay_apart():
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6))), torch.randn(3, 16)
    with torch.no_grad():  # of rank 1: what fitting it saves leaves the others whole
        model.get_parameter("0.weight").copy_(torch.outer(torch.arange(16.0), torch.arange(16.0)))
    npas.share(model, 0.95, init="fit")
    layers = npas.allocation(model).layers
    assert [layer.how for layer in layers[1:]] == ["ordinary parameter"] * 5
    before = model(x).detach()
    assert npas.fold(model, 0.99).weights == 6
    torch.testing.assert_close(model(x), before)


class Listed(nn.Module):
    """Blocks in a list that the network goes through: whole, or skipping its last."""

    def __init__(self, skips):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.skips = skips

    def forward(self, x, shift):
        layers = [self.layers[i] for i in range(4)] if self.skips else self.layers
        for layer in layers:
            x = torch.tanh(layer(x)) + shift if self.skips else layer(x)
        return x


@pytest.mark.parametrize("skips", [False, True])
def test_a_list_loops_where_the_network_maps_through_it(skips):
    model = npas.share(Listed(skips), templates=2, groups={"layers.[1-4].*": "a"})
    set_rows(model, repeated([[1.0, 0.5]], 4))
    ties = tie(model, 0.99)
    example = (torch.randn(3, 4), 0.1)
    before = model(*example).detach()
    unseen = copy.deepcopy(model)
    assert fold_tied(unseen, ties).repeats == []  # nobody can tell how the list is used
    named = {"x": example[0], "shift": example[1]}
    assert fold_tied(copy.deepcopy(model), ties, named) == (
        found := fold_tied(model, ties, example)
    )
    torch.testing.assert_close(model(*example), before)
    assert [r.blocks for r in found.repeats] == ([] if skips else [("1", "2", "3", "4")])
    assert len(model.layers) == (5 if skips else 2)  # type: ignore[arg-type]
    assert found.weights == 2


def test_a_fitted_transformer_becomes_a_recursive_one(tmp_path):
    """One block looped, fitted to the trained ones; norms and biases stay each turn's own."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, num_hidden_layers=4, **sizes)
    torch.manual_seed(0)
    dense = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = copy.deepcopy(dense)
    how = {"generator": "avg", "groups": "place", "exclude": ["@embeddings"]}
    npas.share(model, templates=1, init="fit", **how)  # type: ignore[arg-type]
    mean = torch.stack([layer.output.dense.weight for layer in dense.encoder.layer]).mean(0)
    torch.testing.assert_close(model.encoder.layer[3].output.dense.weight, mean)
    tokens = torch.randint(50, (2, 9))
    tied = model(tokens).last_hidden_state.detach()
    found = npas.fold(model, 0.99, {"input_ids": tokens})
    assert [(r.container, r.times) for r in found.repeats] == [("encoder.layer", 4)]
    assert len(model.encoder.layer) == 1 and not npas.is_shared(model)
    torch.testing.assert_close(model(tokens).last_hidden_state, tied)
    matrices = 4 * 16 * 16 + 2 * 16 * 32
    assert found.parameters == npas.count_parameters(dense) - 3 * matrices
    save_folded(model, found, tmp_path)
    again = load_folded(tmp_path, BertModel(config, add_pooling_layer=False)).eval()
    torch.testing.assert_close(again(tokens).last_hidden_state, tied)
