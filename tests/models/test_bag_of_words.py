"""The baseline of phrase grounding adds up what each word says of each feature, and no more."""

from typing import Any

import pytest
import torch
from phrase_regions import inputs, spec

import npas
from npas.models import bag_of_words


def make(**keys: Any) -> bag_of_words.BagOfWords:
    model = bag_of_words.build(bag_of_words.Config(**{"width": 4} | keys), spec())
    assert isinstance(model, bag_of_words.BagOfWords)
    return model


@pytest.mark.parametrize(("boxes", "count"), [(False, 601_601), (True, 602_881)])
def test_it_is_as_large_as_it_says(boxes: bool, count: int) -> None:
    with torch.device("meta"):
        model = bag_of_words.build(bag_of_words.Config(boxes=boxes), spec(300, 2048))
    assert sum(p.numel() for p in model.parameters()) == count
    assert count == 256 * (300 + 2048 + 5 * boxes) + 2 * 256 + 1
    assert "601,601 parameters; 1,280 more" in (bag_of_words.__doc__ or "")


def test_a_score_is_the_product_of_two_linear_maps() -> None:
    model, given = make(), inputs()
    torch.nn.init.normal_(model.bias)
    found = model(**given)
    assert found.shape == (2, 3, 5)
    for image, phrase, region in ((0, 0, 0), (0, 2, 3), (1, 1, 4)):
        length = int(given["lengths"][image, phrase])
        mean = given["words"][image, phrase, :length].mean(0)
        features = torch.cat([given[name][image, region] for name in ("regions", "boxes")])
        expected = model.phrase(mean) @ model.region(features) / 4**0.5 + model.bias
        torch.testing.assert_close(found[image, phrase, region], expected)


def test_the_order_of_words_says_nothing_and_each_word_has_its_own_say() -> None:
    model, given = make(), inputs()
    given["words"], given["lengths"] = torch.randn(2, 3, 2, 6), torch.full((2, 3), 2)
    turned = given | {"words": given["words"].flip(2)}
    torch.testing.assert_close(model(**turned), model(**given))
    alone = [
        model(**given | {"words": given["words"][:, :, i : i + 1], "lengths": torch.ones(2, 3)})
        for i in range(2)
    ]
    torch.testing.assert_close(model(**given), (alone[0] + alone[1]) / 2)


def test_places_are_read_unless_they_are_left_out() -> None:
    given = inputs()
    moved = given | {"boxes": 1 - given["boxes"]}
    for boxes in (True, False):
        model = make(boxes=boxes)
        assert torch.equal(model(**given), model(**moved)) is not boxes


def test_it_shares_and_trains() -> None:
    model = npas.share(make(width=32), 0.6)
    model(**inputs()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("width", [0, 65537])
def test_a_width_that_cannot_be_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width must be at"):
        bag_of_words.Config(width=width)
