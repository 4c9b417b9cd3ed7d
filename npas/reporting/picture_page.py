"""Draw what a network answered onto one page: images, boxes, and what was asked of them.

Every sample has its heading, and below it a row of pictures: an image with its boxes, and what is
written below it. Captions that have no image stand below each other. The same samples give the same
file, byte for byte, with one version of Pillow.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from npas.tasks.base import Picture, Shown
from npas.tasks.common.files import give_usual_mode

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

# Pixels: of a picture at most, between two, and of the page's edge.
WIDTH, HEIGHT, GAP, EDGE = 220, 180, 16, 24
COLUMNS = 6
SIZES = {"title": 20, "heading": 15, "caption": 13}  # of letters, in pixels
LEADING = 1.3  # from line to line, as part of a letter's size
MOST_LINES = 6  # of a heading or a caption; the rest is left out

PAPER, INK, GREY = "#ffffff", "#202020", "#d0d0d0"
TRUTH, RIGHT, WRONG = "#1a9641", "#2166ac", "#d7191c"
LEGEND = {
    TRUTH: "green: the truth, or the right one",
    RIGHT: "blue: chosen",
    WRONG: "red: chosen, and wrong",
}


def draw(shown: Sequence[Shown], path: str | Path, title: str) -> Path:
    """Write the samples as a PNG page, whole or not at all, and return its path.

    An image that is missing or cannot be read is a grey panel with its name. OSError where the page
    cannot be written. ValueError if there is nothing to show.
    """
    if not shown:
        raise ValueError("there is nothing to show")
    from PIL import Image, ImageDraw

    path = Path(path)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    head = _Text(title, _page_width() - 2 * EDGE, "title")
    legend = _Text("", WIDTH, "caption")
    rows = list(_rows([_Block.of(sample, ruler) for sample in shown]))
    headings = [max(block.heading_height for block in row) for row in rows]
    heights = [
        above + max(block.height for block in row)
        for row, above in zip(rows, headings, strict=True)
    ]
    top = EDGE + head.height(ruler) + legend.line + GAP
    height = top + sum(heights) + GAP * (len(rows) - 1) + EDGE
    page = Image.new("RGB", (_page_width(), height), PAPER)
    pen = ImageDraw.Draw(page)
    below = head.draw(pen, EDGE, EDGE)
    x = float(EDGE)
    for colour, words in _legend(shown).items():
        pen.text((x, below), words, fill=colour, font=legend.font)
        x += legend.font.getlength(words) + GAP
    for row, above, tall in zip(rows, headings, heights, strict=True):
        left = EDGE
        for block in row:
            block.draw(page, pen, left, top, above)
            left += block.columns * (WIDTH + GAP)
        top += tall + GAP
    _write(page, path)
    return path


def _legend(shown: Sequence[Shown]) -> dict[str, str]:
    """Return what there is to say of the colours that are there."""
    pictures = [picture for sample in shown for picture in sample.pictures]
    used = (
        {TRUTH} if any("truth" in picture.boxes or picture.right for picture in pictures) else set()
    )
    used |= {
        WRONG if picture.right is False else RIGHT
        for picture in pictures
        if "chosen" in picture.boxes
    }
    return {colour: words for colour, words in LEGEND.items() if colour in used}


def _page_width() -> int:
    return 2 * EDGE + COLUMNS * WIDTH + (COLUMNS - 1) * GAP


def _write(page: Image, path: Path) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            page.save(file, "PNG")
            file.flush()
            os.fsync(file.fileno())
        give_usual_mode(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- what is on a page


@functools.cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    """Return the font that comes with Pillow: the same letters on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


@dataclass(frozen=True)
class _Text:
    """Words that are broken into lines no wider than `width` pixels."""

    words: str
    width: int
    size: str
    colour: str = INK

    @property
    def font(self) -> FreeTypeFont | ImageFont:
        return _font(SIZES[self.size])

    @property
    def line(self) -> int:
        return round(SIZES[self.size] * LEADING)

    def lines(self, ruler: ImageDraw) -> list[str]:
        font = self.font

        def fits(line: str) -> bool:
            return ruler.textlength(line, font) <= self.width

        found: list[str] = []
        for paragraph in self.words.splitlines():
            line = ""
            for word in paragraph.split():
                joined = f"{line} {word}".strip()
                if fits(joined):
                    line = joined
                    continue
                found += [line] if line else []
                line = word
                while not fits(line):  # a word wider than the page is cut
                    cut = max(1, next(i for i in range(1, len(line) + 1) if not fits(line[:i])) - 1)
                    found.append(line[:cut])
                    line = line[cut:]
            found.append(line)
        if len(found) > MOST_LINES:
            found = found[:MOST_LINES]
            while found[-1] and not fits(f"{found[-1]}..."):
                found[-1] = found[-1][:-1]
            found[-1] += "..."
        return found

    def height(self, ruler: ImageDraw) -> int:
        return self.line * len(self.lines(ruler))

    def draw(self, pen: ImageDraw, left: int, top: int) -> int:
        """Write the lines and return where the next one would be."""
        for line in self.lines(pen):
            pen.text((left, top), line, fill=self.colour, font=self.font)
            top += self.line
        return top


@dataclass(frozen=True)
class _Cell:
    """One picture with an image, or several without: a column of captions."""

    pictures: tuple[Picture, ...]

    @property
    def has_image(self) -> bool:
        return self.pictures[0].image is not None

    def captions(self) -> list[_Text]:
        """Return what is written; without an image, the right one is green."""
        return [
            _Text(
                own.caption,
                WIDTH,
                "caption",
                TRUTH if own.right and not self.has_image else INK,
            )
            for own in self.pictures
        ]

    def height(self, ruler: ImageDraw) -> int:
        written = [text.height(ruler) for text in self.captions()]
        between = SIZES["caption"] // 2 * (len(written) - 1)
        return sum(written) + between + (HEIGHT + GAP // 4 if self.has_image else 0)

    def draw(self, page: Image, pen: ImageDraw, left: int, top: int) -> None:
        if self.has_image:
            top += _draw_image(page, pen, self.pictures[0], left, top) + GAP // 4
        for text in self.captions():
            top = text.draw(pen, left, top) + SIZES["caption"] // 2


@dataclass(frozen=True)
class _Block:
    """One sample: a heading, and rows of cells below it."""

    heading: _Text
    heading_height: int
    rows: tuple[tuple[_Cell, ...], ...]
    heights: tuple[int, ...]  # of each row
    columns: int

    @classmethod
    def of(cls, sample: Shown, ruler: ImageDraw) -> _Block:
        cells: list[_Cell] = []
        for has_image, found in groupby(sample.pictures, lambda own: own.image is not None):
            own = tuple(found)
            cells += [_Cell((picture,)) for picture in own] if has_image else [_Cell(own)]
        columns = max(1, min(COLUMNS, len(cells)))
        rows = tuple(tuple(cells[i : i + columns]) for i in range(0, len(cells), columns))
        heading = _Text(sample.heading, columns * WIDTH + (columns - 1) * GAP, "heading")
        heights = tuple(max(cell.height(ruler) for cell in row) for row in rows)
        return cls(heading, heading.height(ruler) + GAP // 4, rows, heights, columns)

    @property
    def height(self) -> int:
        """Return what is below the heading."""
        return sum(self.heights) + GAP * max(0, len(self.heights) - 1)

    def draw(self, page: Image, pen: ImageDraw, left: int, top: int, above: int) -> None:
        """Draw it; the pictures begin `above` pixels below the top, as those beside them do."""
        self.heading.draw(pen, left, top)
        top += above
        for row, height in zip(self.rows, self.heights, strict=True):
            for i, cell in enumerate(row):
                cell.draw(page, pen, left + i * (WIDTH + GAP), top)
            top += height + GAP


def _rows(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """Put as many samples beside each other as there are columns for, in their order."""
    row: list[_Block] = []
    for block in blocks:
        if sum(own.columns for own in row) + block.columns > COLUMNS:
            yield row
            row = []
        row.append(block)
    yield row


# --- one picture


def _draw_image(page: Image, pen: ImageDraw, picture: Picture, left: int, top: int) -> int:
    """Draw the image, as large as fits, with its boxes; the right one has a frame.

    Return its height.
    """
    from PIL import Image

    path = picture.image
    assert path is not None
    image, reason = _read(path)
    if image is None:
        pen.rectangle((left, top, left + WIDTH - 1, top + HEIGHT - 1), fill=GREY)
        _Text(f"{path.name}\n{reason}", WIDTH - 2 * GAP, "caption").draw(pen, left + GAP, top + GAP)
        width, height = WIDTH, HEIGHT
    else:
        scale = min(WIDTH / image.width, HEIGHT / image.height)
        width, height = (max(1, int(side * scale)) for side in image.size)
        way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        drawn = image.resize((width, height), way)
        _draw_boxes(drawn, picture.boxes, scale, picture.right)
        page.paste(drawn, (left, top))
    if picture.right and not picture.boxes:
        frame = (left - 3, top - 3, left + width + 2, top + height + 2)
        pen.rectangle(frame, outline=TRUTH, width=3)
    return height


def _draw_boxes(
    image: Image,
    boxes: Mapping[str, tuple[float, float, float, float]],
    scale: float,
    right: bool | None,
) -> None:
    """Outline the boxes, given in pixels before scaling, with a light edge for dark images."""
    from PIL import ImageDraw

    assert set(boxes) <= {"truth", "chosen"}, f"boxes are truth and chosen, not {sorted(boxes)}"
    pen = ImageDraw.Draw(image)
    for name in ("truth", "chosen"):
        if name in boxes:
            colour = TRUTH if name == "truth" else WRONG if right is False else RIGHT
            x1, y1, x2, y2 = (round(side * scale) for side in boxes[name])
            x1, x2 = (min(max(x, 0), image.width - 1) for x in (x1, x2))
            y1, y2 = (min(max(y, 0), image.height - 1) for y in (y1, y2))
            x2, y2 = max(x1, x2), max(y1, y2)
            # The chosen box is thinner, so that one upon the other shows both.
            pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=1)
            pen.rectangle((x1, y1, x2, y2), outline=colour, width=3 if name == "truth" else 2)


def _read(path: Path) -> tuple[Image | None, str]:
    """Return an image in colours, or none and why."""
    from PIL import Image

    from npas.tasks.imagenet.transforms import to_rgb

    try:
        with Image.open(path) as file:
            return to_rgb(file), ""
    except FileNotFoundError:
        return None, "is not there"
    # Whatever damaged files make their readers say: a page is not lost over one of them.
    except Exception:
        return None, "cannot be read"
