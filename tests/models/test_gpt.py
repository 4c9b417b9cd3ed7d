"""The language models: counts, causality, loops."""

import pytest
import torch

from npas.models import InputSpec, golf, gpt

COUNTS = {  # nanoGPT's own, positions included
    (4, 4, 128, False, 64, 65): 804_096,
    (12, 12, 768, True, 1024, 50_257): 124_439_808,
}


@pytest.mark.parametrize("shape", COUNTS)
def test_counts_are_nanogpts(shape):
    layers, heads, width, bias, length, words = shape
    config = gpt.Config(layers=layers, heads=heads, width=width, bias=bias)
    with torch.device("meta"):
        model = gpt.build(config, InputSpec((length,), words, "token"))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[shape]


def test_no_token_sees_what_comes_after_it():
    config = gpt.Config(layers=2, heads=2, width=8, loops=2, iteration_embeddings=True)
    model = gpt.build(config, InputSpec((6,), 5, "token"))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    other = torch.tensor([[0, 1, 2, 4, 1, 1]])
    assert torch.equal(model(tokens)[:, :3], model(other)[:, :3])
    assert not torch.allclose(model(tokens)[:, 3:], model(other)[:, 3:])


def test_loops_are_the_same_blocks_again():
    torch.manual_seed(0)
    looped = gpt.build(gpt.Config(layers=1, loops=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    plain = gpt.build(gpt.Config(layers=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    for name, tensor in plain.state_dict().items():
        own = name if not name.startswith("blocks.") else f"blocks.0.{name.split('.', 2)[2]}"
        tensor.copy_(looped.state_dict()[own])
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    assert torch.equal(looped(tokens), plain(tokens))
    assert sum(p.numel() for p in looped.parameters()) < sum(p.numel() for p in plain.parameters())


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"model.width=10 is not divisible by model.heads=4"):
        gpt.Config(width=10)


def test_the_contests_baseline_has_its_count():
    with torch.device("meta"):
        model = golf.build(golf.Config(), InputSpec((1024,), 1024, "token"))
    assert sum(p.numel() for p in model.parameters()) == 17_059_912


def test_the_contests_baseline_computes_what_a_plain_rewrite_does():
    """One token at a time, with loops over heads and pairs of channels."""
    torch.manual_seed(0)
    config = golf.Config(layers=5, heads=4, kv_heads=2, width=16, zero_projections=False)
    model = golf.build(config, InputSpec((6,), 11, "token")).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from their starts, where terms would be missing.
            parameter.add_(0.3 * torch.randn_like(parameter) if "weight" not in name else 0)
    state, eps = model.state_dict(), torch.finfo(torch.float64).eps
    tokens = [3, 1, 4, 1, 5, 9]

    def norm(x):
        return x / (x.square().mean() + eps).sqrt()

    def turned(x, place):
        pairs = torch.empty_like(x)
        for i in range(2):
            angle = torch.tensor(place * 10_000 ** (-i / 2))
            a, b = x[i], x[i + 2]
            pairs[i] = a * angle.cos() + b * angle.sin()
            pairs[i + 2] = b * angle.cos() - a * angle.sin()
        return pairs

    def attend(xs, own):
        normed = [norm(x) for x in xs]
        q, k, v = ([state[f"{own}.{part}.weight"] @ x for x in normed] for part in "qkv")
        found = []
        for place in range(len(xs)):
            heads = []
            for head in range(4):
                cut, pair = (
                    slice(4 * head, 4 * head + 4),
                    slice(4 * (head // 2), 4 * (head // 2) + 4),
                )
                query = turned(norm(q[place][cut]), place) * state[f"{own}.q_gain"][head]
                scores = torch.stack(
                    [query @ turned(norm(k[j][pair]), j) / 2 for j in range(place + 1)]
                ).softmax(0)
                heads.append(sum(s * v[j][pair] for j, s in enumerate(scores)))
            found.append(state[f"{own}.proj.weight"] @ torch.cat(heads))
        return found

    x0 = xs = [norm(state["tokens.weight"][token]) for token in tokens]
    kept = []
    for i in range(5):
        own = f"blocks.{i}"
        if 2 <= i < 4:
            xs = [x + state["skips"][i - 2] * y for x, y in zip(xs, kept[3 - i], strict=True)]
        mix = state[f"{own}.mix"]
        xs = [mix[0] * x + mix[1] * y for x, y in zip(xs, x0, strict=True)]
        attended = attend(xs, f"{own}.attention")
        xs = [x + state[f"{own}.attention_scale"] * y for x, y in zip(xs, attended, strict=True)]
        for j, x in enumerate(xs):
            hidden = (state[f"{own}.mlp.up.weight"] @ norm(x)).clamp(min=0) ** 2
            xs[j] = x + state[f"{own}.mlp_scale"] * (state[f"{own}.mlp.down.weight"] @ hidden)
        kept.append(xs)
    logits = torch.stack([state["tokens.weight"] @ norm(x) for x in xs])
    expected = 30 * torch.tanh(logits / 30)
    torch.testing.assert_close(model(torch.tensor([tokens]))[0], expected, rtol=1e-6, atol=1e-6)
