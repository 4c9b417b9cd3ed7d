"""Render a committed page of markdown as HTML for the report, with sortable tables.

The HTML has no external links: a link becomes one within the page, or plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

COMMANDS = ("npas-", "make ", "python ")  # prefixes of code in cells that is a command


@dataclass(frozen=True)
class Grid:
    """A table's texts."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def column(self, name: str) -> list[str]:
        """Return a column's texts; [] if there is no such column."""
        return [row[i] for row in self.rows for i, head in enumerate(self.heads) if head == name]


@dataclass(frozen=True)
class Page:
    """A page without its title."""

    title: str
    html: str
    grids: Sequence[Grid]


def slug(text: str) -> str:
    """Return the text in a form for HTML ids."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read(text: str, name: str, links: Mapping[str, str] | None = None, level: int = 4) -> Page:
    """Render a page; its second-level headings get `level`, and ids that start with `name`.

    `links` maps targets of the page's links to ids within the report.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    title, done = "", []
    heading, used = "", set()
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            heading = following.content
            if token.tag == "h1":
                title = heading
            anchor = f"{name}-{slug(heading)}"
            assert token.tag == "h1" or anchor not in used, f"two headings {heading!r}"
            used.add(anchor)
            token.attrSet("id", anchor)
        done.append(token)
    done = _without_title(done)
    for token in done:
        if token.type.startswith("heading_"):
            token.tag = f"h{level + int(token.tag[1]) - 2}"
        if token.type == "inline":
            token.children = _local(token.children or [], links or {})
    html: str = parser.renderer.render(_tables(done, title), parser.options, {})
    return Page(title, html, _grids(tokens))


def _without_title(tokens: Sequence[Token]) -> list[Token]:
    kept, skipping = [], False
    for token in tokens:
        skipping = skipping or (token.type == "heading_open" and token.tag == "h1")
        if not skipping:
            kept.append(token)
        skipping = skipping and token.type != "heading_close"
    return kept


def _local(children: Sequence[Token], links: Mapping[str, str]) -> list[Token]:
    """Point links to ids in the report; reduce other links to their text."""
    kept, opened = [], []
    for child in children:
        if child.type == "link_open":
            target = links.get(str(child.attrGet("href")))
            opened.append(target is not None)
            if target is None:
                continue
            child.attrSet("href", f"#{target}")
        elif child.type == "image":  # the report has its own pictures
            continue
        if child.type == "link_close" and not opened.pop():
            continue
        kept.append(child)
    return kept


def _tables(tokens: Sequence[Token], title: str) -> list[Token]:
    """Add captions, row heads and a scrolling frame to tables."""
    from markdown_it.token import Token

    def raw(html: str) -> Token:
        return Token("html_block", "", 0, content=html)

    done, caption, first, in_cell = [], title, False, False
    for i, token in enumerate(tokens):
        kind = token.type
        if kind == "heading_open":
            caption = f"{title}: {tokens[i + 1].content}"
        if kind == "table_open":
            label = escape(caption, quote=True)
            frame = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
            done += [raw(frame), token, raw(f"<caption><span>{label}</span></caption>")]
            continue
        if kind == "th_open":
            empty = not tokens[i + 1].content
            token.tag = tokens[i + 2].tag = "td" if empty else "th"
            if not empty:
                token.attrSet("scope", "col")
        first = first or kind == "tr_open"
        if kind == "td_open":
            in_cell = True
            if first:
                token.tag = tokens[i + 2].tag = "th"
                token.attrSet("scope", "row")
        if kind in ("td_open", "th_open"):
            first = False
        if kind == "inline" and in_cell:
            for child in token.children or ():
                if child.type == "code_inline" and child.content.startswith(COMMANDS):
                    child.type = "html_inline"
                    code = f"<code>{escape(child.content)}</code>"
                    child.content = f"<details><summary>to be run</summary>{code}</details>"
        if kind == "td_close":
            in_cell = False
        done.append(token)
        if kind == "table_close":
            done.append(raw("</div>"))
    return done


def _grids(tokens: Sequence[Token]) -> list[Grid]:
    grids: list[Grid] = []
    rows: list[list[str]] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(tokens[i + 1].content)
        elif token.type == "table_close":
            grids.append(Grid(rows[0], rows[1:]))
    return grids
