"""A two-branch network puts sentences and images where distances say how well they fit."""

from typing import Any

import pytest
import torch
from sentence_images import inputs, parameters, spec
from torch import Tensor, nn
from torch.nn import functional as F

import npas
from npas.models import build, two_branch
from npas.models._match import distance


def make(**keys: Any) -> two_branch.TwoBranch:
    torch.manual_seed(0)
    model = build(two_branch.Config(**{"width": 8, "embedding": 5} | keys), spec())
    assert isinstance(model, two_branch.TwoBranch)
    return model.eval()


@pytest.mark.parametrize(("sentence", "count"), [("mean", 6_919_168), ("attention", 6_919_769)])
def test_it_is_as_large_as_it_says(sentence: Any, count: int) -> None:
    with torch.device("meta"):
        model = build(two_branch.Config(sentence=sentence), spec(300, 2048))
    text, image = ((n + 1) * 2048 + 2 * 2048 + 2049 * 512 for n in (300, 2048))
    assert parameters(model) == count == text + image + (601 if sentence == "attention" else 0)
    for figure in (text, image, count):
        assert f"{figure:,}" in (two_branch.__doc__ or "")


def branch(own: two_branch.Branch, x: Tensor) -> Tensor:
    """Go through a branch by hand, in eval mode: norms have seen nothing yet."""
    hidden = F.relu((x @ own.hidden.weight.T + own.hidden.bias) / (1 + 1e-5) ** 0.5)
    out = hidden @ own.out.weight.T + own.out.bias
    return out / out.norm(dim=1, keepdim=True)


def test_a_sentence_is_the_mean_of_its_words_and_an_image_of_its_regions() -> None:
    model, given = make(), inputs()
    match = model(**given)
    images = branch(model.image, given["regions"].mean(1))
    for i in range(6):
        own = given["words"].flatten(0, 1)[i, : int(given["lengths"].flatten()[i])]
        sentence = branch(model.text, own.mean(0)[None])
        torch.testing.assert_close(match.sentences[i : i + 1], sentence)
        far = (images - sentence).square().sum(1)
        torch.testing.assert_close(match.similarity[i], -(far + 1e-4).sqrt(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sentence", ["mean", "attention"])
def test_a_word_without_a_vector_is_passed_over(sentence: Any) -> None:
    model, given = make(sentence=sentence), inputs()
    given["words"] = torch.randn(3, 2, 5, 6)
    given["words"][:, :, 3:] = 0
    given["lengths"] = torch.full_like(given["lengths"], 3)
    gap = given | {"words": torch.zeros(3, 2, 5, 6), "lengths": given["lengths"] + 2}
    gap["words"][:, :, [0, 2, 4]] = given["words"][:, :, :3]
    expected = model(**given).sentences
    torch.testing.assert_close(model(**gap).sentences, expected)
    given["words"][:, :, 1] = 0  # it is words that are read
    assert (model(**given).sentences - expected).abs().max() > 0.01
    nothing = given | {"words": torch.zeros(3, 2, 5, 6)}
    assert model(**nothing).similarity.isfinite().all()


def test_attention_weighs_words() -> None:
    model, given = make(sentence="attention"), inputs()
    assert model.attention is not None
    nn.init.zeros_(model.attention.score.weight)  # all words alike
    even = model(**given).sentences
    unit = F.normalize(given["words"].flatten(0, 1).sum(1), dim=1)
    torch.testing.assert_close(even, branch(model.text, unit))
    nn.init.normal_(model.attention.score.weight)
    assert not torch.allclose(model(**given).sentences, even)


def test_its_steps_by_themselves_give_the_same() -> None:
    model, given = make(), inputs()
    flat = [given[name].flatten(0, 1) for name in ("words", "lengths", "ids")]
    sentences = model.encode_sentences(*flat)
    found = model.match(model.encode_images(given["regions"]), sentences)
    torch.testing.assert_close(found, model(**given).similarity)


def test_distances_keep_their_precision_and_their_slope_under_autocast() -> None:
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(near, near)
    assert found.dtype == torch.float32
    expected = torch.tensor([[1e-2, (1e-6 + 1e-4) ** 0.5], [(1e-6 + 1e-4) ** 0.5, 1e-2]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.sum().backward()
    assert near.grad is not None and near.grad.isfinite().all()


def test_it_shares_and_trains() -> None:
    model = npas.share(make(width=32).train(), 0.6)
    model(**inputs()).similarity.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"width": 0}, "model.width must be at least 1"),
        ({"embedding": 65537}, "model.embedding must be at most 65536"),
        ({"dropout": 1.0}, "model.dropout must be below 1"),
        ({"dropout": -0.1}, "model.dropout must be at least 0"),
    ],
)
def test_what_cannot_be_built_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        two_branch.Config(**keys)
