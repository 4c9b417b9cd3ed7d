"""ADAPT-T2I, two-branch networks and their readers of texts compute what their papers define."""

import pytest
import torch
from network_inputs import KNOWN, build, inputs
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import npas
from npas import sharing
from npas.models import _phrases, adapt
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


# --- texts


LENGTHS_W = torch.tensor([1, 4, 7, 3])
WIDTH = 5


def texts(beyond=0.0):
    words_WTV = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    return words_WTV.masked_fill(~_phrases.within(LENGTHS_W, 7)[..., None], beyond)


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_gru_reads_what_one_over_packed_texts_does(both_ways):
    ours = _phrases.GRU(WIDTH, 6, both_ways)
    theirs = nn.GRU(WIDTH, 6, batch_first=True, bidirectional=both_ways)
    ours_named, to = dict(ours.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in to.items():
            way = "backward_" if name.endswith("_reverse") else "onward"
            parameter.copy_(ours_named[f"{way}.{name.removesuffix('_reverse')}"])
    packed = pack_padded_sequence(texts(), LENGTHS_W, batch_first=True, enforce_sorted=False)
    states_WTH, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    if both_ways:
        states_WTH = (states_WTH[..., :6] + states_WTH[..., 6:]) / 2
    torch.testing.assert_close(ours(texts(), LENGTHS_W), states_WTH)
    last_WH = torch.stack([own[n - 1] for own, n in zip(states_WTH, LENGTHS_W, strict=True)])
    torch.testing.assert_close(ours.last(texts(), LENGTHS_W), last_WH)
    assert sharing.count_parameters(ours) == sharing.count_parameters(theirs)


def by_hand(attention, text_TV):
    """Weigh the words of one text, none of which is beyond its end or zeros."""
    mean_TV = text_TV.mean(0).expand_as(text_TV)
    joined_TC = torch.cat([mean_TV, text_TV], 1)
    score_T = (joined_TC @ attention.score.weight[0] + attention.score.bias).clamp(min=0)
    return nn.functional.normalize((score_T.softmax(0)[:, None] * text_TV).sum(0), dim=0)


def test_attention_scores_words_by_themselves_and_by_their_text():
    attention = _phrases.SelfAttention(WIDTH)
    nn.init.normal_(attention.score.weight)
    found_WV = attention(texts(), LENGTHS_W)
    torch.testing.assert_close(found_WV.norm(dim=1), torch.ones(4))
    for text_TV, length, found_V in zip(texts(), LENGTHS_W, found_WV, strict=True):
        torch.testing.assert_close(found_V, by_hand(attention, text_TV[:length]))
    with torch.no_grad():
        attention.score.weight[:, :WIDTH] = 0
    without_context_WV = attention(texts(), LENGTHS_W)
    assert (found_WV - without_context_WV).abs().max() > 1e-4  # over ten seeds: 0.004 and above


def test_attention_passes_over_words_of_zeros():
    attention = _phrases.SelfAttention(WIDTH)
    words_WTV = texts()
    gaps_WTV = torch.zeros(4, 10, WIDTH)
    gaps_WTV[:, [0, 2, 3, 5, 6, 8, 9]] = words_WTV  # none at 1, 4 and 7
    last_W = torch.tensor([1, 6, 10, 4])
    torch.testing.assert_close(attention(gaps_WTV, last_W), attention(words_WTV, LENGTHS_W))
    nothing_WV = attention((words_WTV * 0).requires_grad_(), LENGTHS_W)
    nothing_WV.sum().backward()
    assert not nothing_WV.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
