"""Flickr30K Entities and RefCLEF are read as published; a bad file is one line."""

import json
import pickle

import numpy as np
import pytest
from grounding_files import (
    BOXED,
    BOXES,
    CAPTIONS,
    IDS,
    annotation,
    expressions,
    instances,
    write_flickr,
    write_refclef,
)
from helpers import Call, one_line

from npas.tasks.grounding import reading as of
from npas.tasks.grounding.reading import Phrase

REFS = "refs(berkeley).p"


@pytest.fixture
def entities(tmp_path):
    return write_flickr(tmp_path)


@pytest.fixture
def refclef(tmp_path):
    return write_refclef(tmp_path)


def put(name, data):
    """Return what replaces a file of a set, or removes it."""
    if data is None:
        return lambda folder: (folder / name).unlink()
    raw = data if isinstance(data, bytes) else data.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def refs(change):
    found = expressions()
    change(found)
    return put(REFS, pickle.dumps(found, protocol=2))


def described(change):
    found = instances()
    change(found)
    return put("instances.json", json.dumps(found))


# --- Flickr30K Entities


def test_each_phrase_has_the_box_around_its_chain(entities):
    found = of.read("flickr30k", entities.parent)
    assert {split: [image.id for image in own.images] for split, own in found.items()} == IDS
    reading = found["val"]
    image = reading.images[0]
    assert (image.width, image.height) == (100, 60)
    assert image.path == entities / "flickr30k-images" / "200.jpg" and not image.path.exists()
    assert reading.phrases[0] == [
        Phrase("A man", (10, 10, 29, 49), ("people",)),
        Phrase("a red hat", (14, 10, 24, 17), ("clothing", "other")),
        Phrase("Two men", (10, 10, 59, 59), ("people",)),
        Phrase("a dog", (70, 30, 99, 59), ("animals",)),
        Phrase("The man", (10, 10, 29, 49), ("people",)),
        Phrase("the dog", (70, 30, 99, 59), ("animals",)),
        Phrase("a blue car", (0, 0, 39, 19), ("vehicles",)),
    ]
    assert not +reading.counts
    assert of.features_path("flickr30k", entities.parent, "test").parent == entities


def boxed(**boxes):
    """Return what annotates image 302 anew, chain by chain."""
    own = {**BOXES, **{chain.removeprefix("c"): box for chain, box in boxes.items()}}
    return put("Annotations/302.xml", annotation({k: v for k, v in own.items() if v}))


def told(line):
    raw = line if isinstance(line, bytes) else line.encode()
    return put("Sentences/302.txt", CAPTIONS[2].encode() + b"\n" + raw + b"\n")


WITHOUT_DOG = ["A man", "a red hat", "Two men", "The man", "a blue car"]
ODD = {
    "outside": (boxed(c5=[(71, 31, 90, 60), (201, 1, 220, 20)]), WITHOUT_DOG, of.ODD_BOXES),
    "inside out": (boxed(c5=[(40, 1, 20, 20)]), WITHOUT_DOG, of.ODD_BOXES),
    "no such chain": (boxed(c5=None), WITHOUT_DOG, of.ODD_PHRASES),
    "open": (told("[/EN#4/people Two men and a dog ."), ["The man"], of.ODD_PHRASES),
    "no chain": (told("[/EN#x/people Two]"), ["The man"], of.ODD_PHRASES),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_annotations_drop_only_their_phrases(what, entities, caplog):
    spoil, left, counted = ODD[what]
    spoil(entities)
    reading = of.read("flickr30k", entities.parent)["test"]
    assert [phrase.text for phrase in reading.phrases[2]] == left
    assert [len(own) for own in reading.phrases] == [BOXED, BOXED, len(left), BOXED]
    (message,) = caplog.messages
    assert f"{reading.counts[counted]} {counted}" in message


def test_repairable_annotations_are_read(entities, caplog):
    boxed(c7=[(0, -4, 40, 20)], c5=[(71, 31, 104, 60)])(entities)
    line = "[/EN#1/people  A  man] , [/EN#5 Caf\u00e9 ] .\r\n\n[/EN#7/other ] x"
    told(line.encode("latin1"))(entities)
    reading = of.read("flickr30k", entities.parent)["test"]
    assert reading.phrases[2] == [
        Phrase("The man", (10, 10, 29, 49), ("people",)),
        Phrase("A man", (10, 10, 29, 49), ("people",)),
        Phrase("Caf\ufffd", (70, 30, 99, 59)),
    ]
    assert reading.counts[of.CLIPPED] == 2
    assert caplog.messages == ["flickr30k: 2 boxes clipped to their image"]


# --- RefCLEF


def test_every_expression_is_a_phrase_in_small_ascii_letters(refclef):
    found = of.read("referit", refclef.parent)
    assert {split: [image.id for image in own.images] for split, own in found.items()} == IDS
    man, dog = (10, 10, 30, 50), (70, 30, 100, 60)
    for reading in found.values():
        for own in reading.phrases:
            expected = [("the man with caf hat", man), ("man", man), ("dog left", dog)]
            assert own == [Phrase(*pair) for pair in expected]
        # A box at the edge ends one beyond the last pixel; that is how CITE takes it.
        assert reading.counts[of.CLIPPED] == 0
    image = found["val"].images[1]
    assert image.path == refclef.parent / "images/saiapr_tc-12/02/images/201.jpg"
    assert (image.width, image.height) == (100, 60)
    as_numpy = expressions()
    for ref in as_numpy:
        ref.update(ann_id=np.int64(ref["ann_id"]), image_id=np.int32(ref["image_id"]))
    for data in (pickle.dumps(expressions(), protocol=0), pickle.dumps(as_numpy, protocol=2)):
        (refclef / REFS).write_bytes(data)
        assert of.read_referit(refclef) == found


def test_odd_entries_are_counted_and_only_they_are_dropped(refclef, caplog):
    refs(lambda found: found[0]["sentences"][1].update(raw=" \u00e9 "))(refclef)
    raw = instances()
    boxes = ([70, 30, 31, 30], [500, 1, 9, 9], [5, float("nan"), 2, 9])
    for i, box in zip((1, 2, 4), boxes, strict=True):
        raw["annotations"][i]["bbox"] = box
    (refclef / "instances.json").write_text(json.dumps(raw))
    reading = of.read("referit", refclef.parent)["train"]
    assert [len(own) for own in reading.phrases] == [2, 1, 1, *[3] * 6]
    assert reading.phrases[0][1].box == (70, 30, 100, 60)
    (message,) = caplog.messages
    assert message == f"referit: 1 {of.CLIPPED}, 2 {of.ODD_BOXES}"


XML = annotation()
NO_XML = r"302\.xml cannot be read "
NOT_REFER = r"refclef cannot be read \(.*\): unpack"
DAMAGE = {
    "cut off": (put("Annotations/302.xml", XML[:200]), f"{NO_XML}.*again"),
    "no size": (put("Annotations/302.xml", "<annotation/>"), NO_XML),
    "no number": (put("Annotations/302.xml", XML.replace("<xmin>11<", "<xmin>x<", 1)), NO_XML),
    "no sentences": (put("Sentences/300.txt", None), r"Sentences/300\.txt cannot be read .*unpack"),
    "no split": (put("val.txt", None), r"val\.txt cannot be read \(No such file"),
    # RefCLEF
    "no refs": (put(REFS, None), NOT_REFER),
    "a function": (
        put(REFS, pickle.dumps([Call(print, "called")], 2)),
        "not a pickle of plain data: it names",
    ),
    "no words": (refs(lambda f: f[3].pop("sentences")), r"\(sentences\)"),
    "None": (refs(lambda f: f[3]["sentences"][0].update(raw=None)), NOT_REFER),
    "other split": (refs(lambda f: f[3].update(split="testA")), r"\(testA\)"),
    "no JSON": (put("instances.json", b"{"), NOT_REFER),
    "half a box": (described(lambda d: d["annotations"][4].update(bbox=[1, 2, 3])), NOT_REFER),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_one_clear_line(what, tmp_path, capsys):
    is_refclef = list(DAMAGE).index(what) >= list(DAMAGE).index("no refs")
    name, write = ("referit", write_refclef) if is_refclef else ("flickr30k", write_flickr)
    with one_line(rf"{name} is not at .*docs/data\.md"):
        of.read(name, tmp_path)
    spoil, message = DAMAGE[what]
    spoil(write(tmp_path))
    with pytest.raises(ValueError, match=message):
        of.read(name, tmp_path)
    assert capsys.readouterr().out == ""  # nothing that a pickle names is called
