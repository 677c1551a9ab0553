"""A page: one HTML file that works offline, made of sections with text, tables and pictures.

plotly.js is written into it once, compressed: with all its kinds of pictures 4.6 MB become 1.9, where its basic bundle
is 1.1 MB and knows no heat maps. A content security policy forbids the page every request, so that opening a report
tells nobody. `page.css` has light, dark, print and narrow screens, `page.js` draws, follows and keeps one's place.
"""

import base64
import gzip
import html
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from fedsim.errors import RunFolderError
from fedsim.overview import figure

Row = TypeVar("Row")
Cell = str | float | None
"""Of a table: text, or a number, which stands to the right; None or nan is a dash."""
MOST_ROWS = 200
"""Of a table; of more every n-th is shown, with the first and the last."""


class Section(NamedTuple):
    """A part of a page, to which its contents link.

    Attributes:
        heading: plain text.
        body: HTML.
    """

    heading: str
    body: str


class Table(NamedTuple):
    """Columns by name, and rows of as many cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def page(title: str, sections: Sequence[Section], *, lead: str = "", reload_seconds: float | None = None) -> str:
    """A whole page.

    Args:
        title: plain text.
        sections: in order; empty ones are left out.
        lead: HTML between title and contents.
        reload_seconds: after which the page reads its file again, while that is being rewritten; None when it is done.
    """
    kept = [section for section in sections if section.body]
    body = "".join(map(_section, kept))
    links = "".join(f'<li><a href="#{slug(each.heading)}">{text(each.heading)}</a></li>' for each in kept)
    packed = f'<script type="text/plain" id="plotly">{_plotly()}</script>' if 'class="chart"' in body else ""
    again = ""
    if reload_seconds is not None:
        again = f'<meta name="reload" content="{reload_seconds:g}">'
        again += f'<noscript><meta http-equiv="refresh" content="{max(30, math.ceil(reload_seconds))}"></noscript>'
    return _PAGE.format(
        policy=_POLICY,
        reload=again,
        title=text(title),
        css=_asset("page.css"),
        following=_FOLLOWING if reload_seconds is not None else "",
        lead=lead,
        links=links,
        body=body,
        packed=packed,
        script=_asset("page.js"),
    )


def write(path: Path, content: str) -> None:
    """Write a page so that whoever opens it meanwhile sees the old one or the new one, whole.

    Raises:
        RunFolderError: it cannot be written.
    """
    unfinished = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            unfinished = Path(file.name)
            file.write(content)
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(path)
    except OSError as error:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        reason = error.strerror or error
        raise RunFolderError(f"{path} cannot be written: {reason}; choose another place with --out") from error


def text(value: object) -> str:
    """Plain text as HTML."""
    return html.escape(str(value))


def paragraph(value: str) -> str:
    """Plain text as an HTML paragraph; nothing of nothing."""
    return f"<p>{text(value)}</p>" if value else ""


def slug(heading: str) -> str:
    """What a link to a section names."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"


def table(shown: Table, caption: str) -> str:
    """A table that scrolls sideways by itself where the page is narrow.

    Args:
        shown: at most `MOST_ROWS` of its rows are written, evenly spread.
        caption: plain text, for those who do not see what stands around it.
    """
    kept = thinned(shown.rows)
    told = caption if len(kept) == len(shown.rows) else f"{caption} ({len(kept)} of {len(shown.rows)} rows)"
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in shown.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in kept)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(told)}">'
        f"<table><caption>{text(told)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def thinned(rows: Sequence[Row], most: int = MOST_ROWS) -> Sequence[Row]:
    """Rows, or of too many at most so many, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def figures(pairs: Sequence[tuple[str, str, str]]) -> str:
    """The few numbers that a person wants first, each as (name, value, note)."""
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}{f'<small>{text(note)}</small>' if note else ''}</dd></div>"
        for name, value, note in pairs
    )
    return f'<dl class="figures">{cells}</dl>'


def folded(summary: str, body: str) -> str:
    """What is shown when asked for."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def preformatted(content: str, label: str) -> str:
    """Text whose lines and columns count."""
    return f'<pre tabindex="0" role="region" aria-label="{text(label)}">{text(content)}</pre>'


def amount(count: float) -> str:
    """Bytes with their unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


def lasting(seconds: float) -> str:
    """A time with its unit."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.3g} min" if minutes < 120 else f"{hours:.3g} h"


def _section(section: Section) -> str:
    name = slug(section.heading)
    title = f'<h2 id="{name}-h">{text(section.heading)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-h">{title}{section.body}</section>'


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f"<td>{text(value)}</td>"
    if value is None or math.isnan(value):
        return '<td class="n">–</td>'
    return f'<td class="n">{value if isinstance(value, int) else figure(float(value))}</td>'


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js as its package for Python brings it, compressed, in letters."""
    found = importlib.util.find_spec("plotly")  # not imported: only its file is needed
    if found is None or found.origin is None:
        raise RunFolderError("a report needs plotly, which is not installed: pip install plotly")
    script = (Path(found.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, compresslevel=6, mtime=0)).decode("ascii")


def _umask() -> int:
    """The process' own, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_FOLLOWING = (
    '<p class="following"><label><input type="checkbox" id="following" checked> follow: this page reads its file again '
    "while the run goes on</label></p>"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{reload}
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<a class="skip" href="#content">to the content</a>
<header>
<h1>{title}</h1>
{following}
{lead}
<nav aria-label="contents"><ul>{links}</ul></nav>
</header>
<noscript><p>Pictures need JavaScript; the numbers behind each of them are in the table below its place.</p></noscript>
<p id="trouble" role="alert" hidden></p>
<main id="content" tabindex="-1">{body}</main>
{packed}
<script>
{script}
</script>
</body>
</html>
"""
