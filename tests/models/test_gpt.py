"""The language models: causality, loops."""

import torch

from npas.models import InputSpec, golf, gpt


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


def test_the_contests_baseline_computes_what_it_did_beside_a_plain_rewrite():
    config = golf.Config(layers=5, heads=4, kv_heads=2, width=16, zero_projections=False)
    model = golf.build(config, InputSpec((6,), 11, "token")).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel(), dtype=p.dtype) + i).view_as(p) / 2)
        logits = model(torch.tensor([[3, 1, 4, 1, 5, 9]]))[0, -1, :6]
    expected = [0.04116, 0.40498, -0.81668, 1.159, -1.40306, 1.52836]
    torch.testing.assert_close(logits, torch.tensor(expected).double(), rtol=0, atol=1e-4)
