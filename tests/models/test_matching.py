"""ADAPT-T2I and two-branch networks compute what their papers define."""

import pytest
import torch
from network_inputs import KNOWN, build, inputs
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import npas
from npas.models import adapt
from npas.models._match import distance

SMALL = {
    "adapt": {"width": 8, "vocab_size": KNOWN, "embedding": 3},
    "two_branch": {"width": 8, "embedding": 5},
}
FAMILIES = list(SMALL)


def make(family, **keys):
    return build(family, **SMALL[family] | keys)


# --- ADAPT-T2I


def bidirectional(gru):
    """Return torch's own GRU of both ways, of the same weights."""
    found = nn.GRU(gru.onward.input_size, gru.onward.hidden_size, 1, True, True, 0.0, True)
    own = dict(found.named_parameters())
    for name, value in gru.onward.named_parameters():
        own[name].data.copy_(value)
    for name, value in gru.backward_.named_parameters():
        own[f"{name}_reverse"].data.copy_(value)
    return found


def one_by_one(model, given, fovea):
    """Match as the paper says it: adapt all images to each sentence in turn."""
    words = given["words"].flatten(0, 1)
    if model.embedding is not None:
        words = torch.cat([words, model.embedding(given["ids"].flatten(0, 1))], 2)
    lengths = given["lengths"].flatten()
    packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(bidirectional(model.gru)(packed)[0], batch_first=True)
    states = F.normalize(states.unflatten(2, (2, -1)).mean(2), dim=2)
    regions = F.normalize(F.leaky_relu(model.image(given["regions"]), 0.1), dim=2)
    mean = regions.mean((0, 1))
    deviation = (regions.var((0, 1), correction=0) + 1e-5).sqrt()
    regions = (regions - mean) / deviation
    found = []
    for own, length in zip(states, lengths.tolist(), strict=True):
        sentence = own[:length].mean(0)
        adapted = regions * (model.scale(sentence) + 1) + model.shift(sentence)
        chosen = (adapted * (fovea * adapted).softmax(1)).mean(1)
        found.append(F.cosine_similarity(chosen, sentence[None]))
    return torch.stack(found)


@pytest.mark.parametrize("keys", [{}, {"embedding": 0}, {"fovea": 1.5}])
def test_adapt_adapts_every_image_to_every_sentence(keys):
    model, given = make("adapt", **keys), inputs("match")
    match = model(**given)
    assert match.similarity.shape == (6, 2) and match.sentences.shape == (6, 8)
    expected = one_by_one(model, given, keys.get("fovea", 10.0))
    torch.testing.assert_close(match.similarity, expected)
    torch.testing.assert_close(match.sentences.norm(dim=1), torch.ones(6))


def gradients(model, similarity_SB):
    model.zero_grad()
    (similarity_SB * torch.arange(12.0).view(6, 2).sin()).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_of_adapt_is_that_of_the_plain_way(monkeypatch):
    model, given = make("adapt"), inputs("match")
    found = gradients(model, model(**given).similarity)
    assert len(found) == len(list(model.parameters()))
    plain = gradients(model, one_by_one(model, given, 10.0))
    assert found.keys() - plain.keys() == {n for n in found if n.startswith("gru")}  # a copy
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    images, sharp = torch.randn(2, 3, 4).double(), torch.randn(5, 4).double()
    given_D = (images.requires_grad_(), sharp.requires_grad_())
    assert torch.autograd.gradcheck(adapt.Fovea.apply, given_D)
    monkeypatch.setattr(adapt, "MOST_NUMBERS", 200)  # some sentences at a time, of 64 each
    torch.testing.assert_close(gradients(model, model(**given).similarity), found)


# --- two branches


def branch(own, x):
    """Go through a branch by hand, in eval mode: norms have seen nothing yet."""
    hidden = F.relu((x @ own.hidden.weight.T + own.hidden.bias) / (1 + 1e-5) ** 0.5)
    out = hidden @ own.out.weight.T + own.out.bias
    return out / out.norm(dim=1, keepdim=True)


def test_two_branches_compare_the_means_of_words_and_of_regions():
    model, given = make("two_branch").eval(), inputs("match")
    match = model(**given)
    images = branch(model.image, given["regions"].mean(1))
    for i in range(6):
        own = given["words"].flatten(0, 1)[i, : int(given["lengths"].flatten()[i])]
        sentence = branch(model.text, own.mean(0)[None])
        torch.testing.assert_close(match.sentences[i : i + 1], sentence)
        far = (images - sentence).square().sum(1)
        torch.testing.assert_close(match.similarity[i], -(far + 1e-4).sqrt(), atol=1e-5, rtol=0)


def test_distances_keep_their_precision_and_their_slope_under_autocast():
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(near, near)
    assert found.dtype == torch.float32
    expected = torch.tensor([[1e-2, (1e-6 + 1e-4) ** 0.5], [(1e-6 + 1e-4) ** 0.5, 1e-2]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.sum().backward()
    assert near.grad is not None and near.grad.isfinite().all()


# --- both


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_by_themselves_give_the_same_also_of_a_shared_network(family):
    given = inputs("match")
    flat = [given[name].flatten(0, 1) for name in ("words", "lengths", "ids")]
    for model in (make(family), npas.share(make(family, width=32), 0.6)):
        found = gradients(model.train(), model(**given).similarity)
        assert len(found) == len(list(model.parameters()))
        assert all(gradient.isfinite().all() for gradient in found.values())
        model.eval()
        with torch.no_grad():
            whole, images = model(**given).similarity, model.encode_images(given["regions"])
            found_SB = model.match(images, model.encode_sentences(*flat))
            torch.testing.assert_close(found_SB, whole)
            alone = model.match(images[1:], model.encode_sentences(*(x[3:4] for x in flat)))
            torch.testing.assert_close(alone[0, 0], whole[3, 1])
