"""Phrase grounding: choose the proposed region of an image that a phrase refers to.

Words are fixed vectors. A sample is an image with `task.phrases` of its phrases, drawn anew each
epoch. The loss is CITE's (Plummer et al. 2018, arXiv 1711.08389), logistic over the regions that
overlap a phrase's box by at least `task.positive`, and `task.negatives` others for each of these,
which here depend on the phrase's own regions only. The metrics, in percent over phrases:
`accuracy`, whether the best scored region overlaps the box by at least 0.5; `oracle`, whether any
region does; `chance`, the fraction that do. In all, phrases of images without features are wrong.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import Input, InputSpec
from npas.tasks.base import Batch, Metrics, Picture, Shown, spread
from npas.tasks.common import word_vectors
from npas.tasks.common.measure import fill, measuring, over_ranks
from npas.tasks.common.workers import iterate
from npas.tasks.grounding import metrics, reading
from npas.tasks.grounding.reading import Flat, Reading
from npas.tasks.grounding.regions import Lot, Part, Regions
from npas.tasks.scenes import dataset, writing
from npas.tasks.scenes.dataset import Made
from npas.tasks.scenes.world import Difficulty
from npas.utils import rng
from npas.utils.checks import Ranged

NAMES = {"flickr30k": "flickr30k_entities", "referit": "referit", "scenes": "scenes"}
EVAL_BATCH = 8  # lots; small enough that each of many ranks gets some batches
TRIED = 1000  # images of each part, evenly spread, whose features `inspect` reads
SYNTHETIC_REGIONS, SYNTHETIC_PHRASES = 20, 4


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of phrase grounding.

    `vectors` is a text file under `data.root`, `bert` a folder, or a name on the Hugging Face hub;
    rendered scenes have their own. `scenes` describes rendered scenes, `made` their number.
    """

    family: str = "grounding"
    set: Literal["flickr30k", "referit", "scenes"] = "flickr30k"
    region_width: Annotated[int, "[1, 100000]"] = 2048  # features per region
    regions: Annotated[int, "[1, 10000]"] = 300  # per image, at most: the best ones
    phrases: Annotated[int, "[1, 1000]"] = 16  # per image, in a sample
    words: Literal["vectors", "bert"] = "vectors"
    vectors: str = "glove.6B.300d.txt"
    bert: str = "bert-base-uncased"
    word_width: Annotated[int, "[1, 100000]"] = 300  # numbers per word vector
    max_words: Annotated[int, "[1, 500]"] = 10  # per phrase: the last ones
    positive: Annotated[float, "[0.4, 1]"] = 0.6  # smallest overlap of a positive region
    negatives: Annotated[int, "[1, 10000]"] = 2  # per positive region
    scenes: Difficulty = field(default_factory=Difficulty)
    made: Made = field(default_factory=Made)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("vectors", "bert"):
            if not getattr(self, key).strip():
                raise ValueError(f"task.{key} must not be empty")
        dataset.refuse_unread(self, ("vectors", "bert"))


class Task(dataset.SceneTask):
    """Score the regions of an image for each of its phrases."""

    samples = "training images"
    selection_metric = "accuracy"

    def prepare(self) -> None:
        super().prepare()
        config = self.config
        self.name = NAMES[config.set]
        self.phrases = self.at_most(SYNTHETIC_PHRASES, config.phrases)
        self.regions = self.at_most(SYNTHETIC_REGIONS, config.regions)
        inputs = {
            "words": Input((self.phrases, config.max_words, config.word_width)),
            "lengths": Input((self.phrases,), True),
            "regions": Input((self.regions, config.region_width)),
            "boxes": Input((self.regions, 5)),
        }
        self.spec = InputSpec((), 1, outputs="regions", inputs=inputs)
        self.readings: dict[str, Reading] = {}

    def read(self) -> dict[str, Part]:
        config, root = self.config, self.root
        name = "referit" if config.set == "referit" else "flickr30k"
        if self.is_rendered:
            root = self.find(f"flickr30k {config.words}", {}, self._write)
        readings = reading.read(name, root)
        if not self.is_rendered:
            reading.compare(name, root, readings, self.compared)
        flats = {split: Flat.of(own) for split, own in readings.items()}
        for split, flat in flats.items():
            if not len(flat):
                raise ValueError(f"{self.name}: no phrase of {split} has a box: see docs/data.md")
        regions = {
            split: Regions(
                reading.features_path(name, root, split), flat.images, config.region_width
            )
            for split, flat in flats.items()
        }
        words = self._look_up([text for flat in flats.values() for text in flat.texts], root)
        parts, first = {}, 0
        for split, flat in flats.items():
            text_N = torch.from_numpy(flat.text_N) + first
            parts[split] = Part(flat, regions[split], words, text_N, self.phrases, self.regions)
            first += len(flat.texts)
        # Free half a million small objects.
        self.readings = {split: replace(own, phrases=[]) for split, own in readings.items()}
        return parts

    def _write(self, root: Path, counts: dict[str, int], seed: int) -> None:
        config = self.config
        write = writing.write_referit if config.set == "referit" else writing.write_flickr30k
        write(root, config.scenes, counts, config.region_width, seed)
        if config.words == "bert":
            writing.write_bert(root / "bert", config.word_width)
        else:
            writing.write_vectors(root / "vectors.txt", config.word_width)

    def _look_up(self, texts: list[str], root: Path) -> word_vectors.Words:
        config, is_rendered = self.config, self.is_rendered
        if config.words == "bert":
            folder = str(root / "bert") if is_rendered else config.bert
            size, download = (config.word_width, config.max_words), self.data.download
            found = word_vectors.from_bert(texts, folder, *size, self.computing, download)
        else:
            path = root / ("vectors.txt" if is_rendered else config.vectors)
            found = word_vectors.look_up(texts, path, config.word_width, config.max_words)
        more = config.max_words - found.rows_UT.shape[1]
        return replace(found, rows_UT=F.pad(found.rows_UT, (0, more)))

    def inspect(self) -> dict[str, str]:
        found = self.compared.lines()
        for split, own in self.readings.items():
            part, regions = self.parts[split], self.parts[split].regions
            tried = [part.there[i] for i in spread(len(part.there), TRIED)]
            for index in tried:
                regions.read(index, int(regions.rows_I[index]))
            rows_I, existing = regions.rows_I[part.there], sum(i.path.is_file() for i in own.images)
            found[split] = (
                f"{len(own.images):,} images, {existing:,} of them as files,"
                f" {len(part.flat):,} phrases with a box, {rows_I.sum():,} regions,"
                f" {rows_I.min():,} to {rows_I.max():,} per image, of {regions.width:,} numbers;"
                f" {len(tried):,} of {len(rows_I):,} images read,"
                f" {len(regions.missing):,} have none"
            )
        words = self.parts["train"].words
        found["words"] = (
            f"{len(words.lengths_U):,} different phrases of up to {int(words.lengths_U.max())}"
            f" words, {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers"
        )
        return found

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        part, lots, keys = self.parts["train"], [], []
        for index in map(part.there.__getitem__, index_B.tolist()):
            lots.append(part.drawn(index, rng.derive_key(self.seed, "phrases", epoch, index)))
            keys.append(rng.derive_key(self.seed, "negatives", epoch, index))
        return part.training(lots, keys, self.config.positive, self.config.negatives)

    def part_weights(self, parts: list[Batch], world: int) -> list[Tensor]:
        """Weigh parts so that the loss is the mean over the whole batch's labelled pairs."""
        count_P = torch.stack([(part.targets["labels"] != 0).sum() for part in parts]).float()
        total = over_ranks(count_P.sum(), world)
        return list((world * count_P / total.clamp(min=1)).unbind())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean logistic loss over labelled pairs of a phrase and a region.

        `fits_best` is how many percent of the phrases with positive regions score one of them best.
        """
        labels_BPR = batch.targets["labels"]
        scores_BPR = model(**batch.inputs).float()
        is_labelled_BPR = labels_BPR != 0
        loss_BPR = F.softplus(-scores_BPR * labels_BPR) * is_labelled_BPR
        loss = loss_BPR.sum() / is_labelled_BPR.sum().clamp(min=1)
        best_BP1 = scores_BPR.detach().argmax(2, keepdim=True)
        right = (labels_BPR.gather(2, best_BP1) > 0).sum()
        asked = (labels_BPR > 0).any(2).sum().clamp(min=1)
        return loss, {"fits_best": 100 * right / asked * batch.size}

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        part = self.parts[split]
        own = range(rank, -(-len(part.lots) // EVAL_BATCH), world)
        made = iterate(functools.partial(_measured, part), own, self.data.workers)
        with measuring(model) as device:

            def compare(batch: Batch) -> tuple[Tensor, Tensor]:
                batch = batch.to(device)
                is_own_BP = batch.targets["phrases"] >= 0
                found_BP3, _ = _compare(model, batch)
                return batch.targets["phrases"][is_own_BP], found_BP3[is_own_BP]

            # Phrases of images without features stay 0.
            found_N3 = torch.zeros(len(part.flat), 3, dtype=torch.float64, device=device)
            found_N3 = fill(found_N3, made, world, compare)
        return metrics.summarize(found_N3.cpu().numpy(), part.flat.types, part.flat.is_type_NC)

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        part, shown = self.parts[split], []
        with measuring(model) as device:
            for number in spread(len(part.flat), count):
                index = part.flat.image_of(number)
                boxes: dict[str, Any] = {"truth": tuple(part.flat.boxes_N4[number].tolist())}
                path, caption, right = part.flat.images[index].path, "no features", False
                if part.regions.rows_I[index]:
                    batch = part.read([Lot(index, [number])]).to(device)
                    found_BP3, chosen_BP = _compare(model, batch)
                    chosen = int(chosen_BP[0, 0])
                    overlap = float(batch.targets["overlaps"][0, 0, chosen])
                    _, boxes_R4 = part.regions.read(index, self.regions)
                    boxes["chosen"] = tuple(boxes_R4[chosen].tolist())
                    # Of a tie the first is shown; with NaN scores none is right.
                    right = overlap >= metrics.RIGHT and bool(found_BP3[0, 0, 0] > 0)
                    # Rounded down, so that 0.499 is not shown as 0.50.
                    caption = f"IoU {math.floor(100 * overlap) / 100:.2f}"
                shown.append(Shown(part.flat.text(number), [Picture(path, caption, boxes, right)]))
        return shown


def _measured(part: Part, steps: range) -> Iterator[Batch]:
    for step in steps:
        yield part.read(part.lots[step * EVAL_BATCH : (step + 1) * EVAL_BATCH])


def _compare(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the network and compare its scores with the overlaps: see `metrics.compare`."""
    scores_BPR, targets = model(**batch.inputs).float(), batch.targets
    return metrics.compare(scores_BPR, targets["overlaps"], targets["regions"])
