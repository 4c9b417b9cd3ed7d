"""A page of samples with a network's outputs: images, boxes and captions.

A sample has a heading and rows of pictures, each an image with boxes and a caption. Captions
without an image form a column. Every part is drawn as an image of its own, and parts are joined.
The same samples give the same file, byte for byte, with one version of Pillow.
"""

import functools
import textwrap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from npas.tasks.base import Picture, Shown
from npas.tasks.imagenet.transforms import to_rgb
from npas.utils.files import replacing

# Pixels: the largest picture, the gap between pictures, the page's margin, and a picture's frame.
WIDTH, HEIGHT, GAP, EDGE, FRAME = 220, 180, 16, 24, 3
CELL = WIDTH + 2 * FRAME
COLUMNS = 6
TITLE, HEADING, CAPTION = 20, 15, 13  # font sizes in pixels
LEADING = 1.3  # line height, relative to the font size
MOST_LINES = 6  # of a heading or a caption; the rest is cut

PAPER, INK, GREY = "#ffffff", "#202020", "#d0d0d0"
TRUTH, RIGHT, WRONG = "#1a9641", "#2166ac", "#d7191c"
LEGEND = {
    TRUTH: "green: the truth, or the right one",
    RIGHT: "blue: chosen",
    WRONG: "red: chosen, and wrong",
}


def draw(shown: Sequence[Shown], path: str | Path, title: str) -> Path:
    """Write the samples as a PNG page atomically, and return its path.

    A missing or damaged image becomes a grey panel with its name. Raises OSError if the page cannot
    be written, ValueError if there is nothing to show.
    """
    if not shown:
        raise ValueError("there is nothing to show")
    whole, path = _across(COLUMNS), Path(path)
    used = {_colour(name, own.right) for _, owns in shown for own in owns for name in own.boxes}
    used |= {TRUTH for _, owns in shown for own in owns if own.right}
    legend = [_text(text, whole, CAPTION, c) for c, text in LEGEND.items() if c in used]
    head = _joined([_text(title, whole, TITLE), _joined(legend or [_text(" ")], GAP, True)])
    page = ImageOps.expand(_joined([head, *_rows(shown)], GAP, width=whole), EDGE, PAPER)
    with replacing(path) as temporary:
        page.save(temporary, "PNG")
    return path


def _across(columns: int) -> int:
    return columns * CELL + (columns - 1) * GAP


def _colour(name: str, right: bool | None) -> str:
    assert name in ("truth", "chosen"), f"boxes are truth and chosen, not {name}"
    return TRUTH if name == "truth" else WRONG if right is False else RIGHT


def _joined(
    parts: Sequence[Image.Image], gap: int = 0, across: bool = False, width: int = 0
) -> Image.Image:
    """Join parts vertically, or horizontally if `across`, to an image at least `width` wide."""
    steps = [(part.width if across else part.height) + gap for part in parts]
    length = sum(steps) - gap
    if across:
        size = max(width, length), max(part.height for part in parts)
    else:
        size = max(width, *(part.width for part in parts)), length
    paper, at = Image.new("RGB", size, PAPER), 0
    for part, step in zip(parts, steps, strict=True):
        paper.paste(part, (at, 0) if across else (0, at))
        at += step
    return paper


def _rows(shown: Sequence[Shown]) -> Iterator[Image.Image]:
    """Draw rows of as many samples as fit into the columns, in their order."""
    row: list[tuple[int, Image.Image, Image.Image]] = []
    for sample in shown:
        cells = [*_cells(sample.pictures)]
        columns = max(1, min(COLUMNS, len(cells)))
        width, starts = _across(columns), range(0, len(cells), columns)
        lines = [_joined(cells[i : i + columns], GAP, True, width) for i in starts]
        heading = _joined([_text(sample.heading, width, HEADING)], width=width)
        if sum(taken for taken, _, _ in row) + columns > COLUMNS:
            yield _samples(row)
            row = []
        row.append((columns, heading, _joined(lines or [_text("")], GAP, width=width)))
    yield _samples(row)


def _samples(row: Sequence[tuple[int, Image.Image, Image.Image]]) -> Image.Image:
    """Join a row of samples, with their pictures aligned at the top."""
    _, headings, bodies = zip(*row, strict=True)
    return _joined([_joined(part, GAP, across=True) for part in (headings, bodies)], GAP // 4)


def _cells(pictures: Sequence[Picture]) -> Iterator[Image.Image]:
    """Draw each picture with its caption, and captions without images as one column."""
    for has_image, owns in groupby(pictures, lambda own: own.image is not None):
        if has_image:
            for own in owns:
                yield _joined([_picture(own), _text(own.caption)], GAP // 4, width=CELL)
        else:
            texts = [_text(own.caption, colour=TRUTH if own.right else INK) for own in owns]
            yield _joined(texts, CAPTION // 2, width=CELL)


@functools.cache
def _font(size: int, is_ascii: bool = True) -> Any:
    """Return Pillow's own font, which is the same on every machine but knows no umlauts.

    For other texts, return matplotlib's font if it is installed.
    """
    if not is_ascii and (found := find_spec("matplotlib")) is not None:
        folder = (found.submodule_search_locations or [""])[0]
        return ImageFont.truetype(f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf", size)
    return ImageFont.load_default(size)


def _text(text: str, width: int = WIDTH, size: int = CAPTION, colour: str = INK) -> Image.Image:
    """Draw wrapped text; a text no wider than a column is made as wide as one."""
    font, found = _font(size, text.isascii()), []
    most = max(1, int(width / font.getlength("W")))  # letters that always fit into a line
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            cut = textwrap.wrap(word, most) if font.getlength(word) > width else [word]
            for piece in cut:
                joined = f"{line} {piece}".strip()
                if line and font.getlength(joined) > width:
                    found.append(line)
                    joined = piece
                line = joined
        found.append(line)
    if len(found) > MOST_LINES:
        found[MOST_LINES - 1 :] = [f"{found[MOST_LINES - 1][:-3]}..."]
    step = round(size * LEADING)
    across = max([0, *(int(font.getlength(line)) + 1 for line in found)])
    image = Image.new("RGB", (across if width > WIDTH else WIDTH, step * len(found)), PAPER)
    for i, line in enumerate(found):
        ImageDraw.Draw(image).text((0, i * step), line, fill=colour, font=font)
    return image


def _picture(picture: Picture) -> Image.Image:
    """Draw the scaled image with its boxes, and a frame around a right answer."""
    assert picture.image is not None
    try:
        with Image.open(picture.image) as file:
            image = to_rgb(file)
    except Exception:  # a damaged file may raise anything, and must not cost the page
        drawn = Image.new("RGB", (WIDTH, HEIGHT), GREY)
        name = getattr(picture.image, "name", "the image")
        text = textwrap.fill(f"{name}\ncannot be read", 24)
        ImageDraw.Draw(drawn).text((GAP, GAP), text, fill=INK, font=_font(CAPTION))
    else:
        scale = min(WIDTH / image.width, HEIGHT / image.height)
        width, height = (max(1, int(side * scale)) for side in image.size)
        resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        drawn = image.resize((width, height), resampling)
        for name in sorted(picture.boxes, reverse=True):  # the chosen box over the truth
            _draw_box(drawn, picture.boxes[name], scale, name, picture.right)
    framed = picture.right and not picture.boxes
    return ImageOps.expand(drawn, FRAME, TRUTH if framed else PAPER)


def _draw_box(
    image: Image.Image, box: Sequence[float], scale: float, name: str, right: bool | None
) -> None:
    pen = ImageDraw.Draw(image)
    x1, y1, x2, y2 = (round(side * scale) for side in box)
    x1, x2 = (min(max(x, 0), image.width - 1) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), image.height - 1) for y in (y1, y2))
    x2, y2 = max(x1, x2), max(y1, y2)
    # The chosen box is thinner, so that equal boxes are both visible.
    width = 3 if name == "truth" else 2
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=1)
    pen.rectangle((x1, y1, x2, y2), outline=_colour(name, right), width=width)
