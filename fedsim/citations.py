"""The works that a docstring names, so that they can be listed and cited.

What has a source names it at the beginning of its docstring's second paragraph, and data their licence in a line:

    Authors, "Title", Where Year, ...
    Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

import re

_PAPER = re.compile(r'[^"]+ "[^"]+", .*?\b(?:18|19|20)\d\d\b(?!\.\d)')  # 2003.13461 of arXiv is no year
_TITLE = re.compile(r'"([^"]+)"')
_LICENCE = re.compile(r"^Licence: (.+?)\.?$", re.MULTILINE)


def paper(docstring: str) -> str:
    """Where something comes from: its docstring's second paragraph up to the year, or "-"."""
    found = _PAPER.match(_source(docstring))
    return found[0] if found else "-"


def titles(docstring: str) -> list[str]:
    """Titles that the second paragraph quotes, in their order, if it names a paper at all."""
    return _TITLE.findall(_source(docstring)) if paper(docstring) != "-" else []


def licence(docstring: str) -> str | None:
    """Under which data may be used, without the full stop; None where the docstring does not say."""
    found = _LICENCE.search(docstring)
    return found[1] if found else None


def _source(docstring: str) -> str:
    paragraph = docstring.partition("\n\n")[2].partition("\n\n")[0]
    return " ".join(paragraph.split())
