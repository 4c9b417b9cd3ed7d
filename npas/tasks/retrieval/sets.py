"""Find where a set of images and sentences lies, or write a synthetic one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npas.tasks.scenes import dataset

if TYPE_CHECKING:
    from npas.config import DataConfig
    from npas.tasks.retrieval.task import Config

VECTORS = "vectors.txt"  # of synthetic words
SEED = 0  # of a synthetic run's scenes


class Found(NamedTuple):
    """Where a set's files are."""

    folder: Path
    splits: dict[str, str]  # what the files of "train", "val" and "test" are called
    vectors: Path
    vocabulary: Path | None  # none: words are to be counted
    pictures: Path | None  # the folder of the images themselves


def find(config: Config, data: DataConfig, regions: int, owner: object) -> Found:
    """Find the files of a set; synthetic ones are written where they are not there yet.

    Those of a synthetic run are gone with their `owner`. ValueError, one line, if there are none.
    """
    root, name = Path(data.root), f"{config.set}_precomp"
    splits = {"train": "train", "val": "dev", "test": config.test}
    if data.source == "synthetic":
        few = data.synthetic
        counts = {"train": few.train, "dev": few.test, config.test: few.test}
        root = dataset.temporary(owner)
        _write(root, name, config, counts, regions, SEED)
    elif config.set == "scenes":
        made = config.made
        counts = {"train": made.train, "dev": made.val, "test": made.test}
        sizes = {
            "regions": regions,
            "region_width": config.region_width,
            "word_width": config.word_width,
        }
        root = dataset.ensure(
            root,
            "scan",
            config.scenes,
            made,
            sizes,
            lambda new: _write(new, name, config, counts, regions, made.seed),
        )
    else:
        return _real(root, name, splits, config)
    return Found(root / name, splits, root / VECTORS, None, root / name / "images")


def _real(root: Path, name: str, splits: dict[str, str], config: Config) -> Found:
    if not (root / name).is_dir():
        raise ValueError(
            f"{config.set} is not under data.root={root}: put its arrays into {root / name} as"
            " docs/data.md says, or set data.source=synthetic"
        )
    # Beside the arrays, or where SCAN's own archive has it.
    places = (root / name / f"{name}_vocab.json", root / "vocab" / f"{name}_vocab.json")
    vocabulary = next((path for path in places if path.exists()), None)
    pictures = root / config.images if config.images else None
    return Found(root / name, splits, root / config.vectors, vocabulary, pictures)


def _write(
    root: Path,
    name: str,
    config: Config,
    counts: dict[str, int],
    regions: int,
    seed: int,
) -> None:
    from npas.tasks import scenes

    scenes.write_scan(root, name, config.scenes, counts, regions, config.region_width, seed)
    scenes.write_vectors(root / VECTORS, config.word_width)
