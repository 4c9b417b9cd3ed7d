"""Image-sentence retrieval on Flickr30K and COCO, with SCAN's features (Lee et al. 2018).

Features stay on disk. The vocabulary of learned words is SCAN's, or built from the training
sentences; each word also has a fixed vector. Metrics, in percent: R@1, R@5 and R@10, from an image
to any of its sentences (`i2t`) and back (`t2i`), and their mean, `mr`, over `task.folds` parts.

Dimensions: B images, P sentences each, S = B x P, R regions of D features, F folds of N images.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from npas.models import Input, InputSpec
from npas.models._match import Match, Matcher
from npas.tasks import base
from npas.tasks.base import Batch, Metrics, Shown
from npas.tasks.common import word_vectors
from npas.tasks.common.measure import fill, measuring
from npas.tasks.retrieval import metrics, reader
from npas.tasks.retrieval.reader import PER_IMAGE
from npas.tasks.scenes import dataset, writing
from npas.tasks.scenes.dataset import Made
from npas.tasks.scenes.world import Difficulty
from npas.utils import rng
from npas.utils.checks import Ranged

EVAL_IMAGES, EVAL_SENTENCES = 100, 500  # encoded at once in evaluation
SYNTHETIC_REGIONS, SYNTHETIC_WORDS = 12, 20  # at most
VECTORS = "vectors.txt"  # of synthetic words
# Images, with five sentences each; Karpathy's splits.
PUBLISHED = {
    "f30k": {"train": 29_000, "dev": 1014, "test": 1000},
    "coco": {"train": 113_287, "dev": 5000, "test": 1000, "testall": 5000},
}


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of retrieval.

    `loss=hardest` is ADAPT's margin loss: over all others in a batch at first, then more and more,
    with weight 1 - beta^step, over the hardest only. It is a mean over sentences, where their code
    sums: divide their optim.clip_norm by the batch size. `loss=top` is that of two-branch networks:
    over the `negatives` hardest images, times `image_factor`, the hardest sentences, and, times
    `sentence_factor`, the hardest sentences compared with sentences.
    """

    family: str = "retrieval"
    set: Literal["f30k", "coco", "scenes"] = "f30k"
    regions: Annotated[int, "[1, 10000]"] = 36  # per image: the first ones
    region_width: Annotated[int, "[1, 65536]"] = 2048
    vectors: str = "glove.6B.300d.txt"  # under data.root
    word_width: Annotated[int, "[1, 65536]"] = 300
    max_words: Annotated[int, "[1, 10000]"] = 32  # per sentence: the first ones
    # Per image in a batch, P: with 1 an epoch is all sentences, else all images.
    captions: Annotated[int, "[1, 5]"] = 1
    loss: Literal["hardest", "top"] = "hardest"
    margin: Annotated[float, "(0, inf)"] = 0.2
    beta: Annotated[float, "[0, 1)"] = 0.991
    negatives: Annotated[int, "[1, inf)"] = 10
    image_factor: Annotated[float, "[0, inf)"] = 1.5
    sentence_factor: Annotated[float, "[0, inf)"] = 0.1
    test: Literal["test", "testall"] = "test"
    # Equal parts of the split that are searched separately; 0: no folds.
    folds: Annotated[int, "[0, inf)"] = 0
    images: str = ""  # folder under data.root with images, <name>.jpg, for npas-eval show=
    scenes: Difficulty = field(default_factory=Difficulty)
    made: Made = field(default_factory=Made)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vectors.strip():
            raise ValueError("task.vectors must not be empty: name a file of word vectors")
        dataset.refuse_unread(self, ("vectors", "images"))
        if self.test not in PUBLISHED.get(self.set, {"test"}):
            raise ValueError(f"task.test={self.test}: set={self.set} has none; set task.test=test")
        if self.folds and self.set != "scenes" and self.test != "testall":
            raise ValueError(f"task.folds={self.folds} is for COCO's testall: set it to 0")


@dataclass(frozen=True)
class Part:
    """One split: its images, whose features are on disk, and its sentences on the CPU."""

    images: reader.Split
    sentences: reader.Sentences

    def __len__(self) -> int:
        return len(self.images)


class Task(dataset.SceneTask):
    """Match sentences with images whose region features stream from disk."""

    selection_metric = "mr"

    def prepare(self) -> None:
        super().prepare()
        config = self.config
        self.regions = self.at_most(SYNTHETIC_REGIONS, config.regions)
        self.words = self.at_most(SYNTHETIC_WORDS, config.max_words)
        self.folds = self.at_most(1, config.folds or 1)
        # The names of each part's files.
        self.splits = {"train": "train", "val": "dev", "test": config.test}
        length = self.words + reader.MARKS
        self.samples = f"training {'sentences' if config.captions == 1 else 'images'}"
        inputs = {
            "words": Input((config.captions, length, config.word_width)),
            "lengths": Input((config.captions,), True),
            "regions": Input((self.regions, config.region_width)),
            "ids": Input((config.captions, length), True),
        }
        self.spec = InputSpec((), 1, outputs="match", inputs=inputs)
        self.vocabulary_path: Path | None = None  # None: built from the training sentences
        self.pictures: Path | None = None  # the folder of the images

    def read(self) -> dict[str, Part]:
        config, root, name = self.config, self.root, f"{self.config.set}_precomp"
        if self.is_rendered:
            root = self.find("scan", {"regions": self.regions}, self._write)
            vectors, self.pictures = root / VECTORS, root / name / "images"
        else:
            if not (root / name).is_dir():
                raise self.missing(f"its arrays into {root / name}")
            # Beside the arrays, or where SCAN's archive has it.
            paths = [root / folder / f"{name}_vocab.json" for folder in (name, "vocab")]
            self.vocabulary_path = next((path for path in paths if path.exists()), None)
            vectors = root / config.vectors
            self.pictures = root / config.images if config.images else None
        read = {
            part: reader.read(root / name, split, self.regions, config.region_width)
            for part, split in self.splits.items()
        }
        for part, split in self.splits.items():
            known = PUBLISHED.get(self.name, {}).get(split) if self.source == "real" else None
            self.compared.add_images(split, len(read[part]), known, root / name / split)
            if part != "train" and len(read[part]) % self.folds:
                raise ValueError(f"task.folds={self.folds} does not divide the images of {split}")
        captions = [caption for own in read.values() for caption in own.captions]
        self.rows, table_NV = word_vectors.read_vectors(vectors, config.word_width, captions)
        self.vocabulary = (
            reader.read_vocabulary(self.vocabulary_path)
            if self.vocabulary_path
            else reader.count_words(read["train"].captions, self.rows)
        )
        how = self.vocabulary, self.rows, table_NV, self.words
        return {part: Part(own, reader.look_up(own.captions, *how)) for part, own in read.items()}

    def _write(self, root: Path, counts: dict[str, int], seed: int) -> None:
        config, name = self.config, f"{self.config.set}_precomp"
        named = {self.splits[part]: count for part, count in counts.items()}
        sizes = self.regions, config.region_width
        writing.write_scan(root, name, config.scenes, named, *sizes, seed)
        writing.write_vectors(root / VECTORS, config.word_width)

    def inspect(self) -> dict[str, str]:
        found = {}
        for name, part in self.parts.items():
            features, split = part.images.features, self.splits[name]
            features.check()
            found[split] = (
                f"{len(part):,} images of {self.regions} regions of {features.width} numbers,"
                f" {len(part.images.captions):,} sentences"
            )
            found[split] += self.compared.note(split)
        by = self.vocabulary_path
        numbered = f"as {by.name} numbers them" if by else "counted in training"
        learned = f"{len(self.vocabulary):,} are learned, {numbered}"
        return {**found, "words": f"{learned}; {len(self.rows):,} have vectors"}

    @property
    def train_size(self) -> int:
        count = len(self.parts["train"])
        return count * PER_IMAGE if self.config.captions == 1 else count

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        train, image_B = self.parts["train"], index_B
        if self.config.captions == 1:
            image_B, sentence_BP = index_B // PER_IMAGE, index_B[:, None]
        else:
            sentences_B5 = index_B[:, None] * PER_IMAGE + torch.arange(PER_IMAGE)
            draws_B5 = rng.bits(rng.derive_key(self.seed, "sentences", epoch), sentences_B5)
            order_B5 = draws_B5.argsort(stable=True, dim=1)
            sentence_BP = sentences_B5.gather(1, order_B5[:, : self.config.captions])
        inputs = train.sentences.take(sentence_BP)
        inputs["regions"] = train.images.features.read(image_B)
        targets = {"image": image_B, "iteration": torch.full_like(image_B, step + 1)}
        return Batch(inputs, targets, len(index_B))

    def check_parts(self, size: int, parts: int) -> None:
        if parts > 1:
            raise ValueError(
                f"the loss of {self.name} compares all of a batch, so it cannot be split into"
                f" {parts} parts: set trainer.devices=1 and trainer.grad_accum_steps=1"
            )
        if size < 2:
            raise ValueError(f"batch_size={size}: the loss compares images; set at least 2")

    def check_network(self, model: nn.Module) -> None:
        count = len(self.vocabulary)
        base.check_vocabulary(model, count, f"{self.name} has {count:,} learned words")

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the percentage of sentences that find their image."""
        config, image_B = self.config, batch.targets["image"]
        match: Match = model(**batch.inputs)
        similarity_SB = match.similarity.float()
        costs = metrics.costs(similarity_SB, image_B, config.margin)
        if config.loss == "hardest":
            weight = 1 - config.beta ** batch.targets["iteration"][0].float()
            loss = metrics.hardest(costs, weight)
        else:
            factors = config.image_factor, config.sentence_factor
            loss = metrics.top(costs, match, config.margin, config.negatives, *factors)
        own_S = metrics.owners(similarity_SB)
        found_S = image_B[similarity_SB.detach().argmax(1)] == image_B[own_S]
        return loss, {"in_batch": 100 * found_S.sum() / config.captions}

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        return metrics.recalls(self._similarity(model, split, rank, world))

    def _similarity(self, model: nn.Module, split: str, rank: int, world: int) -> Tensor:
        """Return the similarity of all sentences and images of each fold, FxSxN, on all ranks."""
        part, network = self.parts[split], cast(Matcher, model)
        count = len(part) // self.folds
        with measuring(model) as device:
            encoded = []
            for index in torch.arange(len(part) * PER_IMAGE).split(EVAL_SENTENCES):
                taken = (value.to(device) for value in part.sentences.take(index).values())
                encoded.append(network.encode_sentences(*taken))
            folds = torch.cat(encoded).split(count * PER_IMAGE)

            def match(cut: tuple[int, Tensor]) -> tuple[tuple[int, slice, slice], Tensor]:
                fold, index = cut
                regions_BRD = part.images.features.read(fold * count + index).to(device)
                images_B = network.encode_images(regions_BRD)
                columns = slice(int(index[0]), int(index[-1]) + 1)
                return (fold, slice(None), columns), network.match(images_B, folds[fold]).float()

            cuts = [
                (fold, index)
                for fold in range(self.folds)
                for index in torch.arange(count).split(EVAL_IMAGES)
            ]
            similarity_FSN = torch.zeros(self.folds, count * PER_IMAGE, count, device=device)
            return fill(similarity_FSN, cuts[rank::world], world, match)

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        similarity_FSN = self._similarity(model, split, 0, 1).cpu()
        return metrics.examples(similarity_FSN, self.parts[split].images, self.pictures, count)
