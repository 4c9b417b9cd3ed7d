"""The parts of the report: sections of entries with pictures and tables."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npas.reporting.report_markdown import slug

PIXELS = 4 / 3  # per point


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the page."""

    source: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table; the columns in `right` are numbers."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    links: Mapping[str, str] = field(default_factory=dict)  # ids by the first cells of rows


@dataclass(frozen=True)
class Entry:
    """A heading of a section with its content."""

    title: str
    anchor: str
    text: str = ""
    command: str = ""  # the command that reproduces it
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    html: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, listed in its contents."""

    title: str
    entries: Sequence[Entry]
    text: str = ""

    @property
    def anchor(self) -> str:
        """Return the section's id."""
        return slug(self.title)


def file_of(stem: Path) -> Path | None:
    """Return the .svg file of this name, else the .png file; None if there is neither."""
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png"))
    return next((path for path in found if path.is_file()), None)


def picture(path: Path, alt: str, caption: str) -> Picture:
    """Read a picture. Raises ValueError for a damaged file."""
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
        raise ValueError(f"{path} is not a valid picture: draw it again, or delete it")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(source, round(width), round(height), alt, caption)
