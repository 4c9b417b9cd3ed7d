"""RefCLEF is read as refer packs it, and what is wrong with a file is said in one line."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grounding_files import IDS, expressions, instances, write_refclef

from npas.tasks.cifar import synthetic
from npas.tasks.grounding import referit
from npas.tasks.grounding.phrases import BOXLESS, CLIPPED, ODD_BOXES, WORDLESS, Phrase

REFS = "refs(berkeley).p"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_refclef(tmp_path)


def test_every_expression_is_a_phrase_in_small_ascii_letters(folder: Path) -> None:
    found = referit.read(folder)
    assert {split: [image.id for image in own.images] for split, own in found.items()} == IDS
    man, dog = (10, 10, 30, 50), (70, 30, 100, 60)
    for reading in found.values():
        for own in reading.phrases:
            expected = [("the man with caf hat", man), ("man", man), ("dog left", dog)]
            assert own == [Phrase(*pair) for pair in expected]
        # A box at the edge ends one beyond the last pixel; that is how CITE takes it.
        assert reading.counts[CLIPPED] == 0
    image = found["val"].images[1]
    assert image.path == folder.parent / "images/saiapr_tc-12/02/images/201.jpg"
    assert (image.width, image.height) == (100, 60)


@pytest.mark.parametrize("protocol", [0, 1, 2, "of Python 2"])
def test_a_pickle_of_any_age_is_read(protocol: Any, folder: Path) -> None:
    before = referit.read(folder)
    refs = expressions()
    is_old = isinstance(protocol, str)
    data = synthetic.python2_pickle(refs) if is_old else pickle.dumps(refs, protocol=protocol)
    (folder / REFS).write_bytes(data)
    assert referit.read(folder) == before


def test_what_is_strange_is_counted_and_loses_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refs, described = expressions(), instances()
    refs[0]["sentences"][1]["raw"] = " \u00e9 "
    described["annotations"][1]["bbox"] = [70, 30, 31, 30]
    (folder / REFS).write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(described))
    with caplog.at_level(logging.WARNING):
        reading = referit.read(folder)["train"]
    assert [phrase.text for phrase in reading.phrases[0]] == ["the man with caf hat", "dog left"]
    assert reading.phrases[0][1].box == (70, 30, 100, 60)
    assert reading.counts[WORDLESS] == 1 and reading.counts[CLIPPED] == 1
    (line,) = caplog.messages
    assert "1 boxes reach beyond their image" in line and "annotation 1001 of" in line


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([500, 1, 9, 9], "500 1 509 10, annotation 1010 of "),
        ([5, 1, -2, 9], "5 1 3 10, annotation 1010 of "),
        ([5, float("nan"), 2, 9], "5 nan 7 nan, annotation 1010 of "),
    ],
)
def test_one_odd_box_costs_its_expressions_and_no_more(
    box: Any, said: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described = instances()
    described["annotations"][2]["bbox"] = box
    (folder / "instances.json").write_text(json.dumps(described))
    with caplog.at_level(logging.WARNING):
        reading = referit.read(folder)["train"]
    assert [len(own) for own in reading.phrases] == [3, 1, *[3] * 7]
    assert reading.counts[ODD_BOXES] == 1 and reading.counts[BOXLESS] == 2
    (line,) = caplog.messages
    assert "1 boxes are empty or outside" in line and said in line and "instances.json" in line


def test_numbers_may_be_numpys_own(folder: Path) -> None:
    before = referit.read(folder)
    found = expressions()
    for ref in found:
        ref.update(ann_id=np.int64(ref["ann_id"]), image_id=np.int32(ref["image_id"]))
    (folder / REFS).write_bytes(pickle.dumps(found, protocol=2))
    assert referit.read(folder) == before


def changed(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        described = instances()
        change(described)
        (folder / "instances.json").write_text(json.dumps(described))

    return spoil


def refs(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        found = expressions()
        change(found)
        (folder / REFS).write_bytes(pickle.dumps(found, protocol=2))

    return spoil


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def end(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


class Call:
    """Ask to call a function when it is loaded."""

    def __reduce__(self) -> Any:
        return print, ("called",)


AS_WRITTEN = r"is not as refer writes it"
DAMAGE = {
    "no refs": (end(REFS), r"refs\(berkeley\)\.p is not there: unpack refclef\.zip of"),
    "no instances": (end("instances.json"), r"instances\.json is not there: unpack"),
    "cut off": (write(REFS, pickle.dumps(expressions(), 2)[:500]), AS_WRITTEN),
    "a function": (
        write(REFS, pickle.dumps([Call()], 2)),
        rf"{AS_WRITTEN} \(refused as a pickle of data: it names",
    ),
    "no list": (write(REFS, pickle.dumps(7, 2)), AS_WRITTEN),
    "no sentences": (
        refs(lambda found: found[3].pop("sentences")),
        rf"{AS_WRITTEN} \(something has no 'sentences'\)",
    ),
    "no text": (refs(lambda f: f[3]["sentences"][0].update(raw=None)), AS_WRITTEN),
    "other split": (refs(lambda f: f[3].update(split="testA")), r"has a split 'testA', not one of"),
    "no val": (refs(lambda f: f.__delitem__(slice(18, 24))), r"has nothing of the split val"),
    "two splits": (
        refs(lambda f: f[1].update(split="val")),
        r"names image 100 twice, in train and in val",
    ),
    "no annotation": (
        refs(lambda f: f[3].update(ann_id=77)),
        r"instances\.json has no annotation 77 of an image 101, which refs\(berkeley\)\.p refers",
    ),
    "other image's": (refs(lambda f: f[3].update(ann_id=1000)), r"no annotation 1000 of an image"),
    "no JSON": (write("instances.json", b"{"), rf"instances\.json {AS_WRITTEN}"),
    "no text at all": (write("instances.json", b"\xff\xff"), rf"instances\.json {AS_WRITTEN}"),
    "a list": (write("instances.json", b"[]"), rf"instances\.json {AS_WRITTEN}"),
    "no box": (
        changed(lambda d: d["annotations"][4].pop("bbox")),
        rf"instances\.json {AS_WRITTEN} \(something has no 'bbox'\)",
    ),
    "half a box": (changed(lambda d: d["annotations"][4].update(bbox=[1, 2, 3])), AS_WRITTEN),
    "no size": (changed(lambda d: d["images"][4].update(width="x")), "image 104 has no size of"),
    "flat": (changed(lambda d: d["images"][4].update(height=0)), "image 104 has no size of"),
    "other pixels": (
        changed(lambda d: [own.update(bbox=[500, 1, 9, 9]) for own in d["annotations"][:8]]),
        r"4 of the 9 images of train have boxes or phrases that make no sense \(first: 500 1 509"
        r" 10, annotation 1000 of .*instances\.json\): unpack refclef\.zip",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_with_a_file_is_one_clear_line(
    what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = DAMAGE[what]
    spoil(folder)
    with pytest.raises(ValueError, match=said) as error:
        referit.read(folder)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""  # nothing that a pickle names is called
