"""Recalls and losses equal a second, naive implementation of the papers."""

import math

import numpy as np
import pytest
import torch

from npas.models._match import Match
from npas.tasks.retrieval import metrics as scores


def sorted_recalls(similarity_SN):
    """Sort all there is for every question, and look where the answers are."""
    count = similarity_SN.shape[1]
    found = {"i2t": [], "t2i": []}
    for image in range(count):
        order = list(np.argsort(-similarity_SN[:, image]))
        found["i2t"].append(min(order.index(5 * image + i) for i in range(5)))
    for sentence in range(5 * count):
        order = list(np.argsort(-similarity_SN[sentence]))
        found["t2i"].append(order.index(sentence // 5))
    figures = {
        f"{way}_r{k}": 100 * sum(place < k for place in places) / len(places)
        for way, places in found.items()
        for k in (1, 5, 10)
    }
    return {**figures, "mr": sum(figures.values()) / 6}


def test_recalls_are_those_of_a_full_sort_of_each_fold():
    rng = np.random.default_rng(0)
    folds = rng.normal(size=(4, 150, 30)) + 1.5 * np.eye(30).repeat(5, 0)
    each = [sorted_recalls(fold) for fold in folds]
    found = scores.recalls(torch.from_numpy(folds))
    assert found == pytest.approx({k: sum(own[k] for own in each) / 4 for k in each[0]})
    assert 20 < found["t2i_r1"] < found["t2i_r5"] < found["t2i_r10"] < 100
    assert list(found) == ["mr", *(f"{w}_r{k}" for w in ("i2t", "t2i") for k in (1, 5, 10))]


def test_ties_and_nan_find_nothing_and_hide_nothing():
    for value in (0.0, -torch.inf, torch.nan):
        assert set(scores.recalls([torch.full((100, 20), value)]).values()) == {0.0}
    similarity = torch.eye(20).repeat_interleave(5, 0)
    assert set(scores.recalls([similarity]).values()) == {100.0}
    similarity[7] = torch.nan  # comes before all others that an image is compared with
    image_N, sentence_S = scores.ranks(similarity)
    assert sentence_S.tolist() == [19 if i == 7 else 0 for i in range(100)]
    assert image_N.tolist() == [19 * 5 if i == 1 else 1 for i in range(20)]


# --- losses, over all pairs, in plain Python


def batch(seed, images=5, each=1):
    """Draw how sentences fit images, and the sentences."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(images * each, images, generator=generator) / 4
    sentences = torch.randn(images * each, 6, generator=generator)
    return similarity, Match(similarity, torch.nn.functional.normalize(sentences, dim=1))


def shortfalls(similarity, image, margin):
    """For each sentence what others of the batch leave short: images, and sentences."""
    s, each = similarity.tolist(), len(similarity) // len(image)
    found = []
    for i in range(len(s)):
        own = i // each
        images = [
            max(0.0, margin + s[i][j] - s[i][own])
            for j in range(len(image))
            if image[j] != image[own]
        ]
        sentences = [
            max(0.0, margin + s[j][own] - s[i][own])
            for j in range(len(s))
            if image[j // each] != image[own]
        ]
        found.append((images, sentences))
    return found


CASES = [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 2, 3, 4]), (1, [7, 3, 7, 9, 3]), (3, [4, 4, 8, 1, 2])]


@pytest.mark.parametrize(("each", "image"), CASES)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_hardest_count_alone_in_the_end(each, image, weight):
    similarity, _ = batch(each, each=each)
    costs = scores.costs(similarity, torch.tensor(image), 0.2)
    found = scores.hardest(costs, torch.tensor(weight))
    short = shortfalls(similarity, image, 0.2)
    total = sum(sum(a) + sum(b) for a, b in short)
    hard = sum(max(a) + max(b) for a, b in short)
    assert float(found) == pytest.approx(((1 - weight) * total + weight * hard) / len(short))


def top(similarity, match, image, **changes):
    keys = {"negatives": 3, "image_factor": 1.5, "sentence_factor": 0.1, **changes}
    return float(
        scores.top(scores.costs(similarity, torch.tensor(image), 0.05), match, 0.05, **keys)
    )


def mean_of_worst(values, most, others):
    """The mean of the greatest few of each, of which those not there are 0."""
    most = min(most, others)
    picked = [sorted(own, reverse=True)[:most] for own in values]
    return sum(map(sum, picked)) / (most * len(values))


@pytest.mark.parametrize(("each", "image"), CASES)
def test_the_worst_few_count_as_two_branch_networks_count_them(each, image):
    similarity, match = batch(10 + each, each=each)
    short = shortfalls(similarity, image, 0.05)
    images = mean_of_worst([a for a, _ in short], 3, 4)
    sentences = mean_of_worst([b for _, b in short], 3, 4 * each)
    vectors = match.sentences.tolist()
    far = [[math.sqrt(math.dist(a, b) ** 2 + 1e-4) for b in vectors] for a in vectors]
    whose = [image[i // each] for i in range(5 * each)]
    among = []
    for i, row in enumerate(far):
        own = max(d for d, w in zip(row, whose, strict=True) if w == whose[i])
        among.append(
            [max(0.0, 0.05 + own - d) for d, w in zip(row, whose, strict=True) if w != whose[i]]
        )
    together = mean_of_worst(among, 3, 4 * each)
    found = top(similarity, match, image)
    assert found == pytest.approx(1.5 * images + sentences + 0.1 * together, abs=1e-5)
    assert top(similarity, match, image, sentence_factor=0.0) == pytest.approx(
        1.5 * images + sentences, abs=1e-6
    )


def test_what_has_nothing_to_be_compared_with_costs_nothing_and_pulls_at_nothing():
    alone, match = torch.zeros(2, 1, requires_grad=True), Match(torch.zeros(0), torch.eye(2))
    costs = scores.costs(alone, torch.tensor([5]), 0.2)
    for loss in (scores.hardest(costs, torch.tensor(1.0)), scores.top(costs, match, 1, 9, 1, 1)):
        loss.backward(retain_graph=True)
        assert loss == 0
    similarity, match = batch(0, images=2)
    similarity.requires_grad_()
    same = torch.tensor([3, 3])
    costs = scores.costs(similarity, same, 0.2)
    both = scores.hardest(costs, torch.tensor(0.5))
    both = both + scores.top(costs, match, 0.2, 10, 1.5, 0.0)
    both.backward()
    assert both == 0 and similarity.grad is not None and not similarity.grad.any()
