"""The parts of the report: sections of entries, which hold pictures and tables."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npas.reporting.report_markdown import slug

PIXELS = 4 / 3  # of a point


@dataclass(frozen=True)
class Picture:
    """A plot or a drawing, within the page."""

    source: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table that the page makes itself; `right` are its columns of numbers."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    links: Mapping[str, str] = field(default_factory=dict)  # an id by a row's first cell


@dataclass(frozen=True)
class Entry:
    """What stands under one heading of a section."""

    title: str
    anchor: str
    text: str = ""
    command: str = ""  # that makes it
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    html: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, with its place in the contents."""

    title: str
    entries: Sequence[Entry]
    text: str = ""

    @property
    def anchor(self) -> str:
        """Return its id."""
        return slug(self.title)


def file_of(stem: Path) -> Path | None:
    """Return the drawing, or else the image, of this name."""
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png"))
    return next((path for path in found if path.is_file()), None)


def picture(path: Path, alt: str, caption: str) -> Picture:
    """Read a picture; ValueError if it is none."""
    data = path.read_bytes()
    if path.suffix == ".svg":
        size = re.search(rb'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', data)
        width, height = (float(x) * PIXELS for x in size.groups()) if size else (0.0, 0.0)
        kind = "svg+xml"
    else:
        is_png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24
        width, height = struct.unpack(">II", data[16:24]) if is_png else (0, 0)
        kind = "png"
    if not width or not height:
        raise ValueError(f"{path} is no picture that can be read: draw it again, or delete it")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(source, round(width), round(height), alt, caption)
