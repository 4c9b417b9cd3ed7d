"""ADAPT-T2I is what its paper and code say, sentence by sentence, in less memory."""

from typing import Any

import pytest
import torch
from sentence_images import KNOWN, REGION, WORD, inputs, parameters, spec
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import npas
from npas.models import adapt, build


def make(**keys: Any) -> adapt.Adapt:
    torch.manual_seed(0)
    config = adapt.Config(**{"width": 8, "vocab_size": KNOWN, "embedding": 3} | keys)
    model = build(config, spec())
    assert isinstance(model, adapt.Adapt)
    return model


@pytest.mark.parametrize(
    ("words", "count"), [(8481, 16_731_820), (11_755, 17_714_020), (1, 14_187_520 + 300)]
)
def test_it_is_as_large_as_it_says(words: int, count: int) -> None:
    with torch.device("meta"):
        model = build(adapt.Config(vocab_size=words), spec(300, 2048))
    regions, learned, wide = 2048 * 1024 + 1024, 300 * words, 300 + 300
    grus = 2 * (3 * 1024 * (wide + 1024) + 6 * 1024)
    assert parameters(model) == count == regions + learned + grus + 2 * (1024 * 1024 + 1024)
    if words > 1:
        assert f"{words:,} words: {count:,}" in (adapt.__doc__ or "")


def bidirectional(gru: Any) -> nn.GRU:
    """Return torch's own GRU of both ways, of the same weights."""
    found = nn.GRU(gru.onward.input_size, gru.onward.hidden_size, 1, True, True, 0.0, True)
    own = dict(found.named_parameters())
    for name, value in gru.onward.named_parameters():
        own[name].data.copy_(value)
    for name, value in gru.backward_.named_parameters():
        own[f"{name}_reverse"].data.copy_(value)
    return found


def one_by_one(model: adapt.Adapt, given: dict[str, Tensor], fovea: float) -> Tensor:
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
def test_it_adapts_every_image_to_every_sentence(keys: dict[str, Any]) -> None:
    model, given = make(**keys), inputs()
    match = model(**given)
    expected = one_by_one(model, given, keys.get("fovea", 10.0))
    assert match.similarity.shape == (6, 3)
    torch.testing.assert_close(match.similarity, expected)
    assert match.sentences.shape == (6, 8)
    torch.testing.assert_close(match.sentences.norm(dim=1), torch.ones(6))


def gradients(model: nn.Module, similarity_SB: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (similarity_SB * torch.arange(18.0).view(6, 3).sin()).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_its_gradient_is_that_of_the_plain_way() -> None:
    model, given = make(), inputs()
    found = gradients(model, model(**given).similarity)
    assert len(found) == len(list(model.parameters()))
    plain = gradients(model, one_by_one(model, given, 10.0))
    assert found.keys() - plain.keys() == {n for n in found if n.startswith("gru")}  # a copy
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    images, sharp = torch.randn(2, 3, 4).double(), torch.randn(5, 4).double()
    given_D = (images.requires_grad_(), sharp.requires_grad_())
    assert torch.autograd.gradcheck(adapt.Fovea.apply, given_D)


def test_some_sentences_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = make(), inputs()
    whole = gradients(model, model(**given).similarity)
    monkeypatch.setattr(adapt, "MOST_NUMBERS", 200)  # of 96 a sentence
    torch.testing.assert_close(gradients(model, model(**given).similarity), whole)


def test_its_steps_by_themselves_give_the_same() -> None:
    model, given = make().eval(), inputs()
    with torch.no_grad():
        match = model(**given)
        images = model.encode_images(given["regions"])
        flat = [given[name].flatten(0, 1) for name in ("words", "lengths", "ids")]
        torch.testing.assert_close(
            model.match(images, model.encode_sentences(*flat)), match.similarity
        )
        alone = model.match(images[1:2], model.encode_sentences(*(x[3:4] for x in flat)))
    torch.testing.assert_close(alone[0, 0], match.similarity[3, 1])


def test_what_is_behind_a_sentences_end_says_nothing() -> None:
    model, given = make().eval(), inputs()
    outside = torch.arange(5) >= given["lengths"][..., None]
    other = given | {"ids": given["ids"].masked_fill(outside, 7)}
    assert torch.equal(model(**given).similarity, model(**other).similarity)


def test_learned_words_are_read_only_if_there_are_some() -> None:
    given = inputs()
    other = given | {"ids": (given["ids"] + 1) % KNOWN}
    for learned in (3, 0):
        model = make(embedding=learned).eval()
        same = torch.equal(model(**given).similarity, model(**other).similarity)
        assert same is not bool(learned)
        assert model.vocab_size == (KNOWN if learned else None)


def test_it_shares_and_trains() -> None:
    model, given = npas.share(make(width=16), 0.5), inputs()
    found = gradients(model, model(**given).similarity)
    assert len(found) == len(list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in found.values())
    with torch.no_grad():
        model.eval()
        images = model.encode_images(given["regions"])
        flat = [given[name].flatten(0, 1) for name in ("words", "lengths", "ids")]
        alone = model.match(images, model.encode_sentences(*flat))
    torch.testing.assert_close(alone, model(**given).similarity)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"width": 0}, "model.width must be at least 1"),
        ({"width": 65537}, "model.width must be at most 65536"),
        ({"vocab_size": 0}, "model.vocab_size must be at least 1"),
        ({"embedding": -1}, "model.embedding must be at least 0"),
        ({"fovea": 0.0}, "model.fovea must be above 0"),
    ],
)
def test_what_cannot_be_built_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapt.Config(**keys)


def test_the_numbers_of_words_and_regions_are_the_tasks() -> None:
    model = make()
    assert (model.image.in_features, model.gru.onward.input_size) == (REGION, WORD + 3)
