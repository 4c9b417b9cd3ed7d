"""Grounding is measured as a naive reading says, to the bit, on any number of ranks."""

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from grounding_files import BOXED, IDS, Network, make, write_flickr, write_refclef
from simulated_ranks import by_ranks
from torch import Tensor

from npas.tasks.grounding import metrics
from npas.tasks.grounding import task as grounding

WRITERS = {"flickr30k": write_flickr, "referit": write_refclef}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a maker of tasks, ready for use, on true files."""
    roots = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, root in roots.items():
        WRITERS[name](root)

    def made(name: str = "flickr30k", **keys: Any) -> Any:
        task = make(roots[name], name, **keys)
        task.setup()
        return task

    return made


def naive(task: Any, model: Any, split: str) -> dict[str, float]:
    """Measure phrase by phrase, in plain Python, from the files' own boxes."""
    part = task.parts[split]
    right: dict[str, list[float]] = {}
    for i, image in enumerate(part.flat.images):
        with h5py.File(part.regions.path) as file:
            rows_RX = file[image.id][: task.sizes.regions]
        boxes = [[float(v) for v in row[-4:]] for row in rows_RX]
        place = [
            [
                x1 / image.width, y1 / image.height, x2 / image.width, y2 / image.height,
                (x2 - x1 + 1) * (y2 - y1 + 1) / image.width / image.height,
            ]
            for x1, y1, x2, y2 in boxes
        ]  # fmt: skip
        for number in part.flat.of_image(i):
            words, length = part.words.take(part.text_N[number])
            (scores,) = model(
                words=words[None, None],
                lengths=length[None, None],
                regions=torch.from_numpy(rows_RX[None, :, : task.config.region_width].copy()),
                boxes=torch.tensor([place]),
            )[0].tolist()
            a = part.flat.boxes_N4[number].tolist()
            fits = []
            for b in boxes:
                across = min(a[2], b[2]) - max(a[0], b[0]) + 1
                down = min(a[3], b[3]) - max(a[1], b[1]) + 1
                both = max(across, 0) * max(down, 0)
                areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                fits.append(both / (sum(areas) - both) >= 0.5)
            hit = float(fits[scores.index(max(scores))])
            right.setdefault("accuracy", []).append(hit)
            right.setdefault("oracle", []).append(float(any(fits)))
            right.setdefault("chance", []).append(sum(fits) / len(fits))
            for kind, is_it in zip(part.flat.types, part.flat.is_type_NC[number], strict=True):
                if is_it:
                    right.setdefault(f"accuracy_{kind}", []).append(hit)
    return {key: 100 * sum(own) / len(own) for key, own in right.items()}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", WRITERS)
def test_measures_what_a_naive_reading_does(
    name: str, split: str, ready: Callable[..., Any]
) -> None:
    task = ready(name)
    model = Network(task)
    found = task.evaluate(model, split)
    assert model.training
    expected = naive(task, model.eval(), split)
    assert found == pytest.approx(expected) and set(found) == set(expected)
    assert 0 < found["chance"] < found["oracle"] and found["accuracy"] <= found["oracle"]
    kinds = ["animals", "clothing", "other", "people", "vehicles"] if name == "flickr30k" else []
    assert [key for key in found if "_" in key] == [f"accuracy_{kind}" for kind in kinds]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_ranks_measures_the_same_to_the_bit(
    workers: int, monkeypatch: pytest.MonkeyPatch, ready: Callable[..., Any]
) -> None:
    monkeypatch.setattr(grounding, "EVAL_BATCH", 3)
    task = ready(workers=workers)
    model = Network(task)
    alone = task.evaluate(model, "test")
    sizes, model.sizes = model.sizes, []
    assert sizes == [3, 3, 2]  # four images of seven phrases, five at a time
    for world in (2, 5):
        found = by_ranks(
            task, model, "test", world, lambda f: monkeypatch.setattr(grounding, "over_ranks", f)
        )
        assert found == [alone] * world
        assert sorted(model.sizes) == sorted(sizes * 2)  # each batch once in both passes
        model.sizes = []


class Constant(torch.nn.Module):
    """Score all regions alike."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, words: Tensor, regions: Tensor, **_: Tensor) -> Tensor:
        return torch.full((*words.shape[:2], regions.shape[1]), self.score)


@pytest.mark.parametrize("name", WRITERS)
def test_a_network_that_does_not_decide_is_as_good_as_chance(
    name: str, ready: Callable[..., Any]
) -> None:
    task = ready(name)
    found = task.evaluate(Constant(0.5), "test")
    assert found["accuracy"] == pytest.approx(found["chance"]) and 0 < found["chance"] < 50
    lost = task.evaluate(Constant(float("nan")), "test")
    assert {**found, **dict.fromkeys((key for key in found if "accuracy" in key), 0.0)} == lost
    assert not any(shown.pictures[0].right for shown in task.examples(Constant(np.nan), "test", 9))


class Seeing(torch.nn.Module):
    """Score regions by how near they lie to boxes that it is told, in parts of the image."""

    def __init__(self, truth_P4: np.ndarray) -> None:
        super().__init__()
        self.truth_P4 = torch.from_numpy(truth_P4) / torch.tensor([100, 60, 100, 60])

    def forward(self, boxes: Tensor, **_: Tensor) -> Tensor:
        return -(boxes[:, None, :, :4] - self.truth_P4[None, :, None]).abs().sum(3)


def test_examples_show_what_is_asked_and_what_was_chosen(ready: Callable[..., Any]) -> None:
    task = ready(phrases=1)
    part = task.parts["test"]
    images = set()
    for count, there in ((5, 5), (200, 4 * BOXED)):
        shown = task.examples(Seeing(part.flat.boxes_N4[:1]), "test", count)
        assert len(shown) == there
    for number, sample in enumerate(shown):
        (picture,) = sample.pictures
        assert sample.heading == part.flat.text(number)
        assert picture.boxes["truth"] == tuple(part.flat.boxes_N4[number].tolist())
        chosen, truth = (torch.tensor([picture.boxes[key]]) for key in ("chosen", "truth"))
        overlap = metrics.overlaps(chosen, truth).item()
        assert picture.caption == f"IoU {int(100 * overlap) / 100:.2f}" and picture.right == (
            overlap >= 0.5
        )
        images.add(picture.image.name)
    assert images == {f"{name}.jpg" for name in IDS["test"]}
    assert shown[0].pictures[0].right  # which it was told
