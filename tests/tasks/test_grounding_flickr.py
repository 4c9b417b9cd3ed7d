"""Flickr30K Entities is read as published, and what is wrong with a file is said in one line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grounding_files import BOXED, BOXES, CAPTIONS, IDS, annotation, write_flickr

from npas.tasks.grounding import flickr, sets
from npas.tasks.grounding.phrases import (
    BOXLESS,
    CLIPPED,
    GARBLED,
    ODD_BOXES,
    ODD_PHRASES,
    UNANNOTATED,
    Flat,
    Phrase,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_flickr(tmp_path)


def test_each_phrase_has_the_box_around_its_chain(folder: Path) -> None:
    found = flickr.read(folder)
    assert {split: [image.id for image in own.images] for split, own in found.items()} == IDS
    reading = found["val"]
    image = reading.images[0]
    assert (image.width, image.height) == (100, 60)
    assert image.path == folder / "flickr30k-images" / "200.jpg"
    assert reading.phrases[0] == [
        Phrase("A man", (10, 10, 29, 49), ("people",)),
        Phrase("a red hat", (14, 10, 24, 17), ("clothing", "other")),
        Phrase("Two men", (10, 10, 59, 59), ("people",)),
        Phrase("a dog", (70, 30, 99, 59), ("animals",)),
        Phrase("The man", (10, 10, 29, 49), ("people",)),
        Phrase("the dog", (70, 30, 99, 59), ("animals",)),
        Phrase("a blue car", (0, 0, 39, 19), ("vehicles",)),
    ]
    assert dict(reading.counts) == {
        "captions": 15, "boxes": 18, "phrases without a box": 9,
    }  # fmt: skip


def test_captions_of_some_other_image_are_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def texts() -> list[str]:
        return [phrase.text for phrase in flickr.read(folder)["train"].phrases[1]]

    assert "The man" not in texts() and len(texts()) == BOXED - 1
    with open(folder / "UNRELATED_CAPTIONS", "a") as file:
        file.write("101 5 6\n")
    with pytest.raises(ValueError, match="'101 5 6' is no id and a number"):
        texts()
    (folder / "UNRELATED_CAPTIONS").unlink()
    assert len(texts()) == BOXED
    assert "are not left out" in caplog.text


def test_phrases_lie_in_arrays_image_by_image(folder: Path) -> None:
    reading = flickr.read(folder)["val"]
    reading.phrases[1] = []  # an image without any is passed over
    flat = Flat.of(reading)
    assert [image.id for image in flat.images] == ["200", "202"] and len(flat) == 2 * BOXED
    assert flat.types == ["animals", "clothing", "other", "people", "vehicles"]
    assert len(flat.texts) == BOXED  # the images speak alike
    for index, phrases in enumerate((reading.phrases[0], reading.phrases[2])):
        for number, phrase in zip(flat.of_image(index), phrases, strict=True):
            assert flat.image_of(number) == index
            assert flat.text(number) == phrase.text
            assert tuple(flat.boxes_N4[number].tolist()) == phrase.box
            of = [t for t, is_it in zip(flat.types, flat.is_type_NC[number], strict=True) if is_it]
            assert tuple(of) == tuple(sorted(phrase.types))


def test_a_box_beyond_its_image_is_clipped_and_keeps_its_phrase(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "Annotations" / "201.xml"
    path.write_text(annotation("201", {**BOXES, "7": [(0, -4, 40, 20)], "5": [(71, 31, 104, 60)]}))
    with caplog.at_level(logging.WARNING):
        reading = flickr.read(folder)["val"]
    boxes = {phrase.text: phrase.box for phrase in reading.phrases[1]}
    assert boxes["a blue car"] == (0, 0, 39, 19) and boxes["a dog"] == (70, 30, 99, 59)
    assert reading.counts[CLIPPED] == 2 and len(reading.phrases[1]) == BOXED
    (line,) = caplog.messages
    assert "2 boxes reach beyond their image and were clipped" in line and "201.xml" in line


def test_a_phrase_whose_chain_is_nowhere_is_left_out_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = {chain: own for chain, own in BOXES.items() if chain != "7"}
    (folder / "Annotations" / "301.xml").write_text(annotation("301", without))
    with caplog.at_level(logging.WARNING):
        reading = flickr.read(folder)["test"]
    assert len(reading.phrases[1]) == BOXED - 1 and reading.counts[BOXLESS] == 3 * 4 + 1
    (line,) = caplog.messages
    assert "1 phrases are left out" in line and "chain 7 of" in line and "301.xml" in line


def test_odd_phrases_are_read_for_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "1.txt"
    path.write_text("\ufeff[/EN#1/people  Two  men] , [/EN#12 a hat] .\r\n\n[/EN#3/other ] x\n")
    (one, other), odd = flickr.read_captions(path)
    assert odd == []
    assert one == [("1", ("people",), "Two men"), ("12", (), "a hat")]
    assert other == [("3", ("other",), "")]


def write(name: str, text: str | bytes) -> Callable[[Path], Any]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def unlink(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def with_box(*box: int) -> Callable[[Path], Any]:
    return write("Annotations/302.xml", annotation("302", {**BOXES, "5": [(71, 31, 90, 60), box]}))


ODD_BOX = {
    "outside": (with_box(201, 1, 220, 20), "200 0 219 19, "),
    "beyond the left side": (with_box(-9, 1, -2, 20), "-10 0 -3 19, "),
    "inside out": (with_box(40, 1, 20, 20), "39 0 19 19, "),
}


@pytest.mark.parametrize("what", ODD_BOX)
def test_one_odd_box_costs_its_chain_and_no_more(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, said = ODD_BOX[what]
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        reading = flickr.read(folder)["test"]
    texts = [phrase.text for phrase in reading.phrases[2]]
    assert texts == ["A man", "a red hat", "Two men", "The man", "a blue car"]
    assert [len(own) for own in reading.phrases] == [BOXED, BOXED, BOXED - 2, BOXED]
    counts = reading.counts
    assert (counts[ODD_BOXES], counts[BOXLESS], counts[UNANNOTATED]) == (1, 3 * 4 + 2, 0)
    assert counts["boxes"] == 6 * 4 + 1
    (line,) = caplog.messages
    assert "1 boxes are empty or outside their image" in line
    assert said in line and "302.xml" in line


ODD_MARKUP = {
    "open bracket": ("[/EN#4/people Two men and a dog .", []),
    "nested": ("[/EN#4/people Two men with [/EN#5/animals a dog] ]", ["a dog"]),
    "bracketed": ("[/EN#4/people Two [sic] men] and [/EN#5/animals a dog]", ["a dog"]),
    "no chain": ("[/EN#x/people Two men] and [/EN#5/animals a dog]", ["a dog"]),
}


@pytest.mark.parametrize("what", ODD_MARKUP)
def test_one_odd_phrase_is_left_out_alone(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, left = ODD_MARKUP[what]
    (folder / "Sentences" / "300.txt").write_text(f"{CAPTIONS[2]}\n{line}\n")
    with caplog.at_level(logging.WARNING):
        reading = flickr.read(folder)["test"]
    assert [phrase.text for phrase in reading.phrases[0]] == ["The man", *left]
    assert reading.counts[ODD_PHRASES] == 1 and len(reading.phrases[1]) == BOXED
    (said,) = caplog.messages
    assert "1 phrases are left out" in said and "caption 2 of " in said and "300.txt" in said


def test_bytes_that_are_no_text_are_passed_over_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = "[/EN#1/people A man] drinks [/EN#5/animals Caf\u00e9 au lait]".encode("latin1")
    (folder / "Sentences" / "300.txt").write_bytes(line)
    with caplog.at_level(logging.WARNING):
        reading = flickr.read(folder)["test"]
    assert [phrase.text for phrase in reading.phrases[0]] == ["A man", "Caf\ufffd au lait"]
    assert reading.counts[GARBLED] == 1
    (said,) = caplog.messages
    assert "1 phrases hold bytes that are no UTF-8" in said and "300.txt" in said


@pytest.mark.parametrize(
    ("spoiled", "images", "refused"),
    [(3, 9, False), (4, 9, True), (4, 400, False), (5, 400, True)],
)
def test_more_odd_images_than_an_accident_explains_are_refused(
    spoiled: int, images: int, refused: bool, folder: Path
) -> None:
    names = [str(1000 + i) for i in range(images)]
    for i, name in enumerate(names):
        boxes = {**BOXES, "5": [(40, 1, 20, 20), (9, 9, 1, 1)]} if i < spoiled else BOXES
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, boxes))
        (folder / "Sentences" / f"{name}.txt").write_text(CAPTIONS[0])
    (folder / "train.txt").write_text("\n".join(names))
    if not refused:
        assert flickr.read(folder)["train"].counts[ODD_BOXES] == 2 * spoiled
        return
    with pytest.raises(ValueError, match=f"{spoiled} of the {images} images of train") as error:
        flickr.read(folder)
    assert "1000.xml" in str(error.value) and "\n" not in str(error.value)


XML = annotation("302")
DAMAGE = {
    "cut off": (write("Annotations/302.xml", XML[:200]), r"302\.xml cannot be read as XML.*again"),
    "no XML": (write("Annotations/302.xml", b"\x89PNG"), r"302\.xml cannot be read as XML"),
    "empty": (write("Annotations/302.xml", ""), r"302\.xml cannot be read as XML \(no element"),
    "odd encoding": (
        write("Annotations/302.xml", '<?xml version="1.0" encoding="nope"?><annotation/>'),
        r"302\.xml cannot be read as XML",
    ),
    "no size": (
        write("Annotations/302.xml", "<annotation></annotation>"),
        r"302\.xml is no annotation of flickr30k_entities \(it has no size/width\): unpack",
    ),
    "no number": (
        write("Annotations/302.xml", XML.replace("<xmin>11<", "<xmin>x<", 1)),
        r"302\.xml is no annotation .*\(xmin is 'x'\)",
    ),
    "no edge": (
        write("Annotations/302.xml", XML.replace("<ymax>50</ymax>", "", 1)),
        r"302\.xml is no annotation .*it has no ymax",
    ),
    "no name": (
        write("Annotations/302.xml", XML.replace("<name>2</name>", "")),
        r"302\.xml is no annotation .*an object has no name",
    ),
    "no pixels": (
        write("Annotations/302.xml", annotation("302", size=(0, 60))),
        r"302\.xml is no annotation .*its size is 0x60",
    ),
    "no XML at all": (unlink("Annotations/300.xml"), r"300\.xml is not there: unpack annotations"),
    "no sentences": (unlink("Sentences/300.txt"), r"Sentences/300\.txt is not there: unpack"),
    "empty sentences": (write("Sentences/300.txt", " \n"), r"300\.txt has no caption: unpack"),
    "a folder": (
        lambda folder: (unlink("val.txt")(folder), (folder / "val.txt").mkdir()),
        r"val\.txt cannot be read \(Is a directory\): put the split's file",
    ),
    "no split": (unlink("val.txt"), r"val\.txt is not there: put the split's file of github"),
    "empty split": (write("val.txt", "\n"), r"val\.txt names no image"),
    "no text": (write("val.txt", b"2\xff0\n"), r"val\.txt: '2\ufffd0' is no image's id"),
    "a path": (write("val.txt", "../200\n"), r"val\.txt: '../200' is no image's id"),
    "twice": (write("val.txt", "200\n200\n"), r"names image 200 twice, in val: name it once"),
    "in two": (write("val.txt", "200\n101\n"), r"names image 101 twice, in train and in val"),
    "not there": (write("val.txt", "200\n777\n"), r"777\.txt is not there"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_with_a_file_is_one_clear_line(what: str, folder: Path) -> None:
    spoil, said = DAMAGE[what]
    spoil(folder)
    with pytest.raises(ValueError, match=said) as error:
        sets.read("flickr30k", folder.parent)
    assert "\n" not in str(error.value)


def test_a_set_that_is_not_there_says_where_it_belongs(tmp_path: Path) -> None:
    for name, folder in (("flickr30k", "flickr30k_entities"), ("referit", "refclef")):
        with pytest.raises(ValueError, match=rf"{name} is not under data\.root=.*{folder} as docs"):
            sets.read(name, tmp_path)


def test_images_are_listed_by_split_whether_or_not_they_are_there(folder: Path) -> None:
    found = sets.read("flickr30k", folder.parent)["test"]
    assert [image.id for image in found.images] == IDS["test"]
    assert not any(image.path.exists() for image in found.images)
    path = sets.features_path("flickr30k", folder.parent, "test")
    assert path == folder / "test_features.h5"
