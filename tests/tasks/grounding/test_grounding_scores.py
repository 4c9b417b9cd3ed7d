"""IoU as Flickr30K Entities computes it, and labels drawn as CITE's."""

import pytest
import torch

from npas.tasks.grounding.metrics import NEG_IOU, NEG_IOU_FALLBACK, compare, labels, overlaps

KEY = 1234


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 0, 9, 9], [0, 0, 9, 9], 1.0),
        ([3, 3, 3, 3], [3, 3, 3, 3], 1.0),  # a pixel is a pixel wide
        ([0, 0, 9, 9], [0, 0, 9, 4], 0.5),
        ([0, 0, 9, 9], [9, 9, 18, 18], 1 / 199),  # they have the pixel of their edges in common
        ([0, 0, 9, 9], [10, 0, 19, 9], 0.0),
        ([0, 0, 9, 9], [30, 30, 39, 39], 0.0),
        ([0, 0, 9, 9], [2, 2, 3, 4], 0.06),
    ],
)
def test_pixels_of_both_edges_count(one, other, expected):
    assert overlaps(boxes(one), boxes(other)).item() == pytest.approx(expected)


def drawn(overlap, negatives=2, key=KEY):
    return labels(torch.tensor([overlap]), 0.6, negatives, key)[0].tolist()


def test_negatives_are_far_off_and_so_many_for_each_positive():
    overlap = [0.6, 0.9, 0.59, 0.5, 0.4, 0.39, 0.3, *[0.29] * 20]
    found = drawn(overlap)
    assert found[:7] == [1, 1, 0, 0, 0, 0, 0]
    assert found.count(-1) == 4
    # Others by another key; all of them come up, and nothing else does.
    seen = {i for key in range(100) for i, y in enumerate(drawn(overlap, key=key)) if y < 0}
    assert seen == set(range(7, 27))
    assert drawn(overlap) == found != drawn(overlap, key=KEY + 1)


def test_where_few_are_far_off_those_less_far_count_too():
    overlap = [0.7, 0.35, 0.35, 0.35, 0.1]
    seen = {i for key in range(100) for i, y in enumerate(drawn(overlap, key=key)) if y < 0}
    assert seen == {1, 2, 3, 4}
    assert drawn(overlap).count(-1) == 2
    assert drawn([0.7, 0.5, 0.4, 0.1]).count(-1) == 1  # no more are there
    assert drawn([0.7, 0.35, 0.2, 0.1]) == [1, 0, -1, -1]  # enough are far off
    assert (NEG_IOU, NEG_IOU_FALLBACK) == (0.3, 0.4)


def naive(scores, overlap, counts):
    """Say of each phrase what `compare` does, one after the other."""
    found = []
    for scores_PR, overlap_PR, count in zip(scores, overlap, counts, strict=True):
        for own, near in zip(scores_PR, overlap_PR, strict=True):
            best = max(range(count), key=lambda r, own=own: own[r])
            right = [near[r] >= 0.5 for r in range(count)]
            found.append([float(right[best]), float(any(right)), sum(right) / count, best])
    return found


def test_repeated_regions_are_neither_chosen_nor_counted():
    torch.manual_seed(0)
    scores, overlap = torch.randn(6, 5, 8), torch.rand(6, 5, 8)
    counts = torch.tensor([8, 1, 3, 5, 8, 2])
    found, chosen = compare(scores, overlap, counts)
    expected = naive(scores.tolist(), overlap.tolist(), counts.tolist())
    for own, best, other in zip(found.view(-1, 3), chosen.flatten(), expected, strict=True):
        assert [*own.tolist(), int(best)] == other
    assert found.dtype == torch.float64


INF, NAN = float("inf"), float("nan")
TIES = {
    # scores, overlaps, how many regions are real; what counts as right, and which is chosen
    "all alike": ([0, 0, 0, 0], [0.1, 0.5, 0.1, 0.1], 4, 0.25, 0),
    "two best": ([1, 3, 0, 3], [0.9, 0.1, 0.9, 0.9], 4, 0.5, 1),
    "two that are right": ([3, 1, 3], [0.9, 0.1, 0.8], 3, 1.0, 0),
    "two that are wrong": ([3, 1, 3], [0.1, 0.9, 0.1], 3, 0.0, 0),
    "what is repeated": ([2, 1, 2, 1], [0.1, 0.9, 0.9, 0.9], 2, 0.0, 0),
    "nothing is possible": ([-INF, -INF, 0], [0.9, 0.1, 0.9], 2, 0.5, 0),
    "overflown": ([INF, 0, INF], [0.1, 0.9, 0.9], 3, 0.5, 0),
    "NaN": ([1, NAN, 0], [0.9, 0.9, 0.9], 3, 0.0, 0),
    "all NaN": ([NAN, NAN], [0.9, 0.9], 2, 0.0, 0),
    "NaN of what is repeated": ([1, 0, NAN], [0.9, 0.1, 0.1], 2, 1.0, 0),
}


@pytest.mark.parametrize("what", TIES)
def test_a_tie_counts_as_the_part_of_it_that_is_right_and_nan_as_wrong(what):
    scores, overlap, count, right, first = TIES[what]
    given = torch.tensor([[scores]]).float(), torch.tensor([[overlap]])
    found, chosen = compare(*given, torch.tensor([count]))
    fits = [near >= 0.5 for near in overlap[:count]]
    expected = [right, float(any(fits)), sum(fits) / count]
    assert found[0, 0].tolist() == pytest.approx(expected)
    assert int(chosen) == first
