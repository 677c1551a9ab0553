"""Tables for papers: a comparison, or a run, as a LaTeX table in the style of booktabs.

The file needs booktabs, and graphicx, by which a table that is wider than the text is made to fit. Whatever a name
holds is set as it is read: letters with a meaning to LaTeX are escaped, signs that pdfLaTeX's standard fonts lack stand
in mathematics.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fedsim.errors import RunFolderError

Side = Literal["l", "r"]
_MEANT = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{}''",  # apart from an apostrophe before it
    "[": "{[}",  # behind \\ a bracket would be a length
    "]": "{]}",
    "*": "{*}",  # behind \\ a star would be its own
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "`": "{`}",
    "…": r"\ldots{}",
}
_GREEK = (
    "αalpha βbeta γgamma δdelta εvarepsilon ζzeta ηeta θtheta ιiota κkappa λlambda μmu νnu ξxi πpi ρrho σsigma τtau "
    "υupsilon φphi χchi ψpsi ωomega ΓGamma ΔDelta ΘTheta ΛLambda ΞXi ΠPi ΣSigma ΦPhi ΨPsi ΩOmega"
)
_MEANT |= {word[0]: f"$\\{word[1:]}$" for word in _GREEK.split()}
_KNOWN_UP_TO, _UNKNOWN = 0x17F, "ĦħĸĿŀŉŦŧſ"  # Latin letters with accents, and those among them that pdfLaTeX lacks


class Column(NamedTuple):
    """Its heading, plain text, and the side on which its cells stand."""

    heading: str
    side: Side = "r"


class Tabular(NamedTuple):
    """A table as text.

    Attributes:
        columns: of it.
        groups: rows of as many cells, plain text, in groups that are kept apart by a rule.
        caption, label: of the table.
        notes: sentences below it.
    """

    columns: Sequence[Column]
    groups: Sequence[Sequence[Sequence[str]]]
    caption: str
    label: str
    notes: Sequence[str] = ()


def latex(table: Tabular) -> str:
    """The source of a table."""
    heads = " & ".join(escape(column.heading) for column in table.columns)
    groups = ["\n".join(_row(row) for row in group) for group in table.groups if group]
    notes = [f"\n\\par\\medskip\n\\footnotesize {' '.join(map(escape, table.notes))}"] if table.notes else []
    source = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escape(table.caption)}}}",
        f"\\label{{{table.label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{{''.join(column.side for column in table.columns)}}}",
        r"\toprule",
        f"{heads} \\\\",
        r"\midrule",
        "\n\\midrule\n".join(groups),
        r"\bottomrule",
        f"\\end{{tabular}}}}{''.join(notes)}",
        r"\end{table}",
    ]
    text = "\n".join(source) + "\n"
    return f"{_needed(text)}\n{text}"


def _needed(text: str) -> str:
    """What a document has to load for a table."""
    letters = sorted({letter for letter in text if ord(letter) > 0x7F})
    strange = "".join(letter for letter in letters if ord(letter) > _KNOWN_UP_TO or letter in _UNKNOWN)
    needed = "% needs \\usepackage{booktabs,graphicx}"
    if strange:
        return f"{needed}; compile with LuaLaTeX or XeLaTeX and a font that has {strange}"
    return f"{needed} and \\usepackage[T1]{{fontenc}}" if letters else needed


def escape(text: str) -> str:
    """Plain text as LaTeX sets it; white space of any kind is a space."""
    plain = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    words = "".join(_MEANT.get(letter, letter) for letter in " ".join(plain.split()))
    return re.sub(r"-(?=-)", "-{}", words)  # two hyphens would be a dash


def write(path: Path, source: str) -> None:
    """Write a table.

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        path.write_text(source, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error


def number(value: float | None, digits: int = 4) -> str:
    """A number of so many digits behind the point, a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(escape, cells))} \\\\"
