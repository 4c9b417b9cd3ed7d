"""The language models: counts, causality, loops."""

import pytest
import torch

from npas.models import InputSpec, gpt

COUNTS = {  # nanoGPT's own, positions included
    (4, 4, 128, False, 64, 65): 804_096,
    (12, 12, 768, True, 1024, 50_257): 124_439_808,
}


@pytest.mark.parametrize("shape", COUNTS)
def test_counts_are_nanogpts(shape: tuple[int, int, int, bool, int, int]) -> None:
    layers, heads, width, bias, length, words = shape
    config = gpt.Config(layers=layers, heads=heads, width=width, bias=bias)
    with torch.device("meta"):
        model = gpt.build(config, InputSpec((length,), words, "token"))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[shape]


def test_no_token_sees_what_comes_after_it() -> None:
    config = gpt.Config(layers=2, heads=2, width=8, loops=2, iteration_embeddings=True)
    model = gpt.build(config, InputSpec((6,), 5, "token"))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    other = torch.tensor([[0, 1, 2, 4, 1, 1]])
    assert torch.equal(model(tokens)[:, :3], model(other)[:, :3])
    assert not torch.allclose(model(tokens)[:, 3:], model(other)[:, 3:])


def test_loops_are_the_same_blocks_again() -> None:
    torch.manual_seed(0)
    looped = gpt.build(gpt.Config(layers=1, loops=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    plain = gpt.build(gpt.Config(layers=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    for name, tensor in plain.state_dict().items():
        own = name if not name.startswith("blocks.") else f"blocks.0.{name.split('.', 2)[2]}"
        tensor.copy_(looped.state_dict()[own])
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    assert torch.equal(looped(tokens), plain(tokens))
    assert sum(p.numel() for p in looped.parameters()) < sum(p.numel() for p in plain.parameters())


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.width=10 does not divide by model.heads=4"):
        gpt.Config(width=10)
