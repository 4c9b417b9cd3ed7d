"""A picture page shows each image with its boxes and captions; a bad image is a grey panel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from npas.reporting import picture_page
from npas.reporting.picture_page import COLUMNS, GREY, HEIGHT, INK, RIGHT, TRUTH, WIDTH, WRONG
from npas.tasks.base import Picture, Shown

SAND = "#e0c080"
TITLE = "a run"
BOXES = {"truth": (10.0, 10.0, 40.0, 40.0), "chosen": (60.0, 5.0, 90.0, 30.0)}


def image(name="a.png", size=(110, 50), colour=SAND):
    Image.new("RGB", size, colour).save(name)
    return Path(name)


def drawn(*samples, title=TITLE):
    with Image.open(picture_page.draw(samples, "page.png", title)) as page:
        return np.array(page)


def one(*pictures, heading=""):
    """Draw one sample, and cut off the title and what explains the colours."""
    return drawn(Shown(heading, [*pictures]))[70:]


def where(page, colour):
    """Return the box around all pixels of a colour: left, top, right, bottom, inclusive."""
    rows, columns = np.nonzero((page == ImageColor.getrgb(colour)).all(2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def count(page, colour):
    return int((page == ImageColor.getrgb(colour)).all(2).sum())


@pytest.mark.parametrize(
    ("right", "shown", "not_shown"),
    [(True, RIGHT, WRONG), (None, RIGHT, WRONG), (False, WRONG, RIGHT)],
)
def test_boxes_are_where_they_are_in_the_image_and_say_by_colour_what_they_are(
    right, shown, not_shown
):
    page = one(Picture(image(), "", BOXES, right))
    left, top, *_ = where(page, SAND)
    assert where(page, SAND)[2] - left == WIDTH - 1  # scaled up by 2, the image's own shape
    assert where(page, SAND)[3] - top == WIDTH * 50 / 110 - 1
    for colour, expected in ((TRUTH, [20, 20, 80, 80]), (shown, [120, 10, 180, 60])):
        assert np.subtract(where(page, colour), (left, top, left, top)).tolist() == expected
    assert count(page, not_shown) == 0


def test_the_right_one_of_several_has_a_frame():
    colours = ("#800000", "#008000", "#000080")
    page = one(
        *(Picture(image(f"{i}.png", colour=c), "", right=i == 1) for i, c in enumerate(colours)),
        heading="a sentence",
    )
    left, top, right, bottom = where(page, colours[1])
    assert where(page, TRUTH) == (left - 3, top - 3, right + 3, bottom + 3)
    lefts = [where(page, colour)[0] for colour in colours]
    assert lefts == sorted(lefts) and len({where(page, colour)[1] for colour in colours}) == 1


def test_samples_stand_side_by_side_at_one_height_and_go_on_below():
    colours = [f"#{40 * i:02x}0080" for i in range(COLUMNS + 1)]
    pictures = [Picture(image(f"{i}.png", colour=c), "here") for i, c in enumerate(colours)]
    page = drawn(*(Shown("long " * 20 * (i == 1), [own]) for i, own in enumerate(pictures)))
    first, *others, last = (where(page, colour) for colour in colours)
    assert all(other[1] == first[1] for other in others)
    assert last[0] == first[0] and last[1] > first[3]
    for left, _, right, bottom in (first, *others, last):
        assert count(page[bottom + 1 : bottom + 40, left:right], INK) > 10  # its own caption


@pytest.mark.parametrize("content", [None, b"no image at all"])
def test_a_bad_image_is_a_grey_panel_and_the_others_are_shown(content):
    bad = Path("bad.png")
    if content is not None:
        bad.write_bytes(content)
    page = drawn(Shown("one", [Picture(bad, "", BOXES)]), Shown("two", [Picture(image(), "")]))
    left, top, right, bottom = where(page, GREY)
    assert (right - left + 1, bottom - top + 1) == (WIDTH, HEIGHT)
    assert count(page[top:bottom, left:right], INK) > 20  # its name
    assert where(page, SAND)[0] > right


def test_long_words_stay_in_their_column():
    page = one(Picture(image(), "word " * 40 + "x" * 400), heading="w" * 300)
    left, _, right, _ = where(page, INK)
    assert right - left < WIDTH
    short = one(Picture(image(), "word"), heading="w")
    assert short.shape[0] < page.shape[0] < short.shape[0] + 200  # not all of it


def test_the_same_samples_give_the_same_file_and_all_that_is_written_is_shown():
    given = [("one", "IoU 0.50", "x"), ("two", "IoU 0.50", "x"), ("one", "IoU 0.51", "x")]
    given += [("one", text, "x") for text in ("Käse", "Köse")]  # Pillow's own font has neither
    pages = [
        drawn(Shown(heading, [Picture(image(), caption, BOXES, False)]), title=title).tobytes()
        for heading, caption, title in (*given, ("one", "IoU 0.50", "y"), given[0])
    ]
    assert len(set(pages)) == 6 and pages[0] == pages[-1]
    Path("usual").touch()
    assert Path("page.png").stat().st_mode == Path("usual").stat().st_mode


def test_a_page_that_cannot_be_written_leaves_the_one_before(monkeypatch):
    page = picture_page.draw([Shown("before", [])], "page.png", TITLE)
    before = page.read_bytes()

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="full"):
        picture_page.draw([Shown("after", [])], page, TITLE)
    assert page.read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["page.png"]
    with pytest.raises(ValueError, match="nothing to show"):
        picture_page.draw([], "page.png", TITLE)
