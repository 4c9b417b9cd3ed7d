"""Write tables in markdown, and render markdown as HTML for the report."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from html import escape

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


def render(text: str) -> tuple[str, str]:
    """Return the title of a page that begins with it, and the rest as HTML without links.

    Second-level headings become fourth-level ones; tables get captions, row heads and a scrolling
    frame. Raises ValueError if there is no title.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    if not tokens or tokens[0].tag != "h1":
        raise ValueError("it does not begin with a title")
    title = caption = tokens[1].content
    del tokens[:3]
    starts_row = False
    for i, token in enumerate(tokens):
        kind, inside = token.type, tokens[i + 1].content if token.nesting == 1 else ""
        if kind.startswith("heading_"):
            token.tag = f"h{int(token.tag[1]) + 2}"
            caption = f"{title}: {inside}" if inside else caption
        elif kind in ("table_open", "table_close"):
            token.type, token.content = "html_block", "</table></div>\n"
            if kind == "table_open":
                label = escape(caption)
                frame = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
                token.content = f"{frame}<table><caption><span>{label}</span></caption>\n"
        elif kind in ("th_open", "td_open"):
            is_head = bool(inside) if kind == "th_open" else starts_row
            token.tag = tokens[i + 2].tag = "th" if is_head else "td"
            if is_head:
                token.attrSet("scope", "col" if kind == "th_open" else "row")
            elif " " not in inside:
                token.attrSet("class", "word")
        elif kind == "inline":
            hidden = ("image", "link_open", "link_close")
            token.children = [child for child in token.children or [] if child.type not in hidden]
            for child in token.children if tokens[i - 1].type == "td_open" else ():
                if child.type == "code_inline" and child.content.startswith(COMMANDS):
                    code = f"<code>{escape(child.content)}</code>"
                    child.type = "html_inline"
                    child.content = f"<details><summary>to be run</summary>{code}</details>"
        starts_row = kind == "tr_open"
    return title, parser.renderer.render(tokens, parser.options, {})
