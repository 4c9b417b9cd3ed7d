"""A picture page shows each image with its boxes and captions, and loses nothing over a bad one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from npas.reporting import picture_page
from npas.reporting.picture_page import COLUMNS, GREY, HEIGHT, INK, RIGHT, TRUTH, WIDTH, WRONG
from npas.tasks.base import Picture, Shown

SAND = "#e0c080"
TITLE = "a run"


def image(name: str = "a.png", size: tuple[int, int] = (110, 50), colour: str = SAND) -> Path:
    Image.new("RGB", size, colour).save(name)
    return Path(name)


def drawn(*samples: Shown, title: str = TITLE) -> np.ndarray:
    path = picture_page.draw(samples, "page.png", title)
    with Image.open(path) as page:
        return np.array(page)


def where(page: np.ndarray, colour: str) -> tuple[int, int, int, int]:
    """Return the box around all pixels of a colour: left, top, right, bottom, inclusive."""
    rows, columns = np.nonzero((page == ImageColor.getrgb(colour)).all(2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def count(page: np.ndarray, colour: str) -> int:
    return int((page == ImageColor.getrgb(colour)).all(2).sum())


def below_legend(page: np.ndarray) -> np.ndarray:
    """Cut off the title and what explains the colours."""
    return page[70:]


BOXES = {"truth": (10.0, 10.0, 40.0, 40.0), "chosen": (60.0, 5.0, 90.0, 30.0)}


@pytest.mark.parametrize(
    ("right", "shown", "not_shown"),
    [(True, RIGHT, WRONG), (None, RIGHT, WRONG), (False, WRONG, RIGHT)],
)
def test_boxes_are_where_they_are_in_the_image_and_say_by_colour_what_they_are(
    right: bool | None, shown: str, not_shown: str
) -> None:
    page = below_legend(drawn(Shown("", [Picture(image(), "", BOXES, right)])))
    left, top, *_ = where(page, SAND)
    assert where(page, SAND)[2] - left == WIDTH - 1  # scaled up by 2, the image's own shape
    assert where(page, SAND)[3] - top == WIDTH * 50 / 110 - 1
    found = np.subtract(where(page, TRUTH), (left, top, left, top))
    assert found.tolist() == [20, 20, 80, 80]
    found = np.subtract(where(page, shown), (left, top, left, top))
    assert found.tolist() == [120, 10, 180, 60]
    assert count(page, not_shown) == 0


def test_of_two_boxes_in_one_place_both_are_seen() -> None:
    same = {"truth": BOXES["truth"], "chosen": BOXES["truth"]}
    page = below_legend(drawn(Shown("", [Picture(image(), "", same, True)])))
    assert count(page, TRUTH) > 100 and count(page, RIGHT) > 100


def test_a_box_beyond_the_image_ends_with_it() -> None:
    outside = {"truth": (-30.0, -5.0, 500.0, 20.0)}
    page = below_legend(drawn(Shown("", [Picture(image(), "", outside)])))
    left, inside, right, _ = where(page, SAND)
    assert where(page, TRUTH) == (left, inside - 3, right, inside - 3 + 40)


def test_a_large_image_is_scaled_down_and_a_tall_one_fits_too() -> None:
    for size, expected in (((2200, 1000), (WIDTH, 100)), ((900, 1800), (HEIGHT // 2, HEIGHT))):
        left, top, right, bottom = where(drawn(Shown("", [Picture(image(size=size), "")])), SAND)
        assert (right - left + 1, bottom - top + 1) == expected


def test_the_right_one_of_several_has_a_frame() -> None:
    colours = ("#800000", "#008000", "#000080")
    pictures = [
        Picture(image(f"{i}.png", colour=colour), f"{i}", right=i == 1)
        for i, colour in enumerate(colours)
    ]
    page = below_legend(drawn(Shown("a sentence", pictures)))
    left, top, right, bottom = where(page, colours[1])
    assert where(page, TRUTH) == (left - 3, top - 3, right + 3, bottom + 3)
    lefts = [where(page, colour)[0] for colour in colours]
    assert lefts[0] < lefts[1] < lefts[2]
    assert len({where(page, colour)[1] for colour in colours}) == 1


@pytest.mark.parametrize(
    ("boxes", "right", "colours"),
    [
        ({}, None, set()),
        ({}, True, {TRUTH}),
        ({"truth": BOXES["truth"]}, None, {TRUTH}),
        (BOXES, True, {TRUTH, RIGHT}),
        (BOXES, False, {TRUTH, WRONG}),
    ],
)
def test_colours_are_explained_that_are_there(
    boxes: dict[str, tuple[float, float, float, float]], right: bool | None, colours: set[str]
) -> None:
    page = drawn(Shown("a sentence", [Picture(image(), "1.", boxes, right)]))[:70]
    assert {colour for colour in (TRUTH, RIGHT, WRONG) if count(page, colour)} == colours


def test_samples_stand_side_by_side_and_go_on_below() -> None:
    colours = [f"#{40 * i:02x}0080" for i in range(COLUMNS + 1)]
    page = drawn(
        *(Shown("", [Picture(image(f"{i}.png", colour=c), "")]) for i, c in enumerate(colours))
    )
    first, *others, last = (where(page, colour) for colour in colours)
    assert all(other[1] == first[1] for other in others)
    assert last[0] == first[0] and last[1] > first[3]


def test_images_begin_at_one_height_and_captions_follow_their_own() -> None:
    samples = [
        Shown(heading, [Picture(image(f"{i}.png", size, colour), "here")])
        for i, (heading, size, colour) in enumerate(
            [("short", (110, 20), "#800000"), ("long " * 20, (110, 80), "#000080")]
        )
    ]
    page = drawn(*samples)
    flat, tall = where(page, "#800000"), where(page, "#000080")
    assert flat[1] == tall[1]
    for found in (flat, tall):
        own = page[found[3] + 1 : found[3] + 40, found[0] : found[2]]
        assert count(own, INK) > 10
    assert count(page[flat[3] + 40 : tall[3], flat[0] : flat[2]], INK) == 0


def test_captions_without_an_image_stand_below_each_other_and_the_right_one_is_green() -> None:
    image_alone = Shown("", [Picture(image(), "")])
    said = [Picture(None, "a first sentence"), Picture(None, "a second one", right=True)]
    with_text = Shown("", [Picture(image(), ""), *said])
    assert count(below_legend(drawn(image_alone)), INK) == 0
    page = below_legend(drawn(with_text))
    black, green = where(page, INK), where(page, TRUTH)
    assert black[0] > where(page, SAND)[2] and green[1] > black[3]
    assert abs(int(green[0]) - int(black[0])) < 3


@pytest.mark.parametrize("kind", ["missing", "no image", "cut short", "a folder"])
def test_a_bad_image_is_a_grey_panel_and_the_others_are_shown(kind: str) -> None:
    bad = Path("bad.png")
    if kind == "no image":
        bad.write_text("no image at all")
    elif kind == "cut short":
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), "uint8")).save("whole.png")
        bad.write_bytes(Path("whole.png").read_bytes()[:500])
    elif kind == "a folder":
        bad.mkdir()
    page = drawn(Shown("one", [Picture(bad, "", BOXES)]), Shown("two", [Picture(image(), "")]))
    left, top, right, bottom = where(page, GREY)
    assert (right - left + 1, bottom - top + 1) == (WIDTH, HEIGHT)
    assert count(page[top:bottom, left:right], INK) > 20  # its name
    assert where(page, SAND)[0] > right


def test_long_words_stay_in_their_column() -> None:
    page = below_legend(drawn(Shown("w" * 300, [Picture(image(), "word " * 40 + "x" * 400)])))
    left, _, right, _ = where(page, INK)
    assert right - left < WIDTH
    short = below_legend(drawn(Shown("w", [Picture(image(), "word")])))
    assert short.shape[0] < page.shape[0] < short.shape[0] + 200  # not all of it


def test_what_is_written_is_shown() -> None:
    pages = [
        drawn(Shown(heading, [Picture(image(), caption)]), title=title).tobytes()
        for heading, caption, title in (
            ("one", "IoU 0.50", "x"),
            ("two", "IoU 0.50", "x"),
            ("one", "IoU 0.51", "x"),
            ("one", "IoU 0.50", "y"),
        )
    ]
    assert len(set(pages)) == 4


def test_the_same_samples_give_the_same_file_as_readable_as_others() -> None:
    samples = [Shown("a heading", [Picture(image(), "caption", BOXES, False)])]
    first, second = (picture_page.draw(samples, f"{i}.png", TITLE) for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    Path("usual").touch()
    assert first.stat().st_mode == Path("usual").stat().st_mode


def test_a_page_that_cannot_be_written_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = picture_page.draw([Shown("before", [])], "page.png", TITLE)
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        picture_page.draw([Shown("after", [])], page, TITLE)
    assert page.read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["page.png"]


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        picture_page.draw([], "page.png", TITLE)
