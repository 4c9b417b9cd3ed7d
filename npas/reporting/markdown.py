"""Write tables in markdown, and render markdown as HTML for the report.

The HTML has no external links: a link becomes one within the page, or plain text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markdown_it.token import Token

COMMANDS = ("npas-", "make ", "python ")  # prefixes of code in cells that is a command


def grid(
    heads: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """Return the lines of a table; its columns except `left` are aligned to the right."""
    sides = ["---" if i in left else "---:" for i in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, sides, *rows)]


def plain(text: str) -> str:
    """Escape a text, so that it has no markup."""
    return re.sub(r"([\\`*_\[\]<>&|])", r"\\\1", text)


def slug(text: str) -> str:
    """Return the text in a form for HTML ids."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Page(NamedTuple):
    """A rendered page without its title, and the rows of its tables as texts by column."""

    title: str
    html: str
    grids: list[list[dict[str, str]]]


def read(text: str, name: str, links: Mapping[str, str] | None = None) -> Page:
    """Render a page that begins with its title; ids of its headings start with `name`.

    Second-level headings become fourth-level ones; tables get captions, row heads and a scrolling
    frame. `links` maps targets of the page's links to ids within the report. Raises ValueError if
    there is no title.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    if not tokens or tokens[0].tag != "h1":
        raise ValueError("it does not begin with a title")
    title = caption = tokens[1].content
    del tokens[:3]
    done: list[Token] = []
    rows: list[list[str]] = []
    grids = []
    for i, token in enumerate(tokens):
        kind, inside = token.type, tokens[i + 1].content if token.nesting == 1 else ""
        before, after = "", ""
        if kind.startswith("heading_"):
            token.tag = f"h{int(token.tag[1]) + 2}"
        if kind == "heading_open":
            caption = f"{title}: {inside}"
            token.attrSet("id", f"{name}-{slug(inside)}")
        elif kind == "table_open":
            rows, label = [], escape(caption, quote=True)
            before = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
            after = f"<caption><span>{label}</span></caption>"
        elif kind == "table_close":
            grids.append([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
            after = "</div>"
        elif kind == "tr_open":
            rows.append([])
        elif kind in ("th_open", "td_open"):
            is_head = bool(inside) if kind == "th_open" else not rows[-1]
            token.tag = tokens[i + 2].tag = "th" if is_head else "td"
            if is_head:
                token.attrSet("scope", "col" if kind == "th_open" else "row")
            elif " " not in inside:
                token.attrSet("class", "word")
            rows[-1].append(inside)
        elif kind == "inline":
            token.children = _local(token.children or [], links or {})
            for child in token.children if tokens[i - 1].type == "td_open" else ():
                if child.type == "code_inline" and child.content.startswith(COMMANDS):
                    code = f"<code>{escape(child.content)}</code>"
                    child.type = "html_inline"
                    child.content = f"<details><summary>to be run</summary>{code}</details>"
        done += [*_raw(before), token, *_raw(after)]
    return Page(title, parser.renderer.render(done, parser.options, {}), grids)


def _raw(html: str) -> list[Token]:
    from markdown_it.token import Token

    return [Token("html_block", "", 0, content=html)] if html else []


def _local(children: Sequence[Token], links: Mapping[str, str]) -> list[Token]:
    """Point links to ids in the report; reduce other links to their text, and drop images."""
    kept, target = [], None
    for child in children:
        if child.type == "link_open":
            target = links.get(str(child.attrGet("href")))
            child.attrSet("href", f"#{target}")
        if child.type != "image" and (target or not child.type.startswith("link_")):
            kept.append(child)
    return kept
