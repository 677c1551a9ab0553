"""LaTeX tables: what is read in the paper is what was written, and LaTeX finds nothing to complain of."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedsim.comparison.findings import Asked as Comparing
from fedsim.comparison.findings import conclude
from fedsim.errors import RunFolderError
from fedsim.report import courses
from fedsim.report.latex import Column, Tabular, escape, latex, number, write
from fedsim.report.papers import comparison_table, runs_table
from fedsim.report.still import Asked
from fedsim.report.still import write as write_stills
from tests.comparison import made
from tests.report import compared

FIXTURE = Path("tests/fixtures/run-v1")
_SETS = {
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textendash": "–",
    "textemdash": "—",
    "ldots": "…",
}
_MATH = {"pm": "±", "times": "×", "cdot": "·", "leq": "≤", "geq": "≥", "neq": "≠", "approx": "≈", "infty": "∞"}
_MATH |= {"rightarrow": "→", "-": "−", "varepsilon": "ε"}


def read(source: str) -> str:
    """What LaTeX sets of a line of text; it fails at all that would be an error or mean something."""
    token = re.compile(
        r"\\([A-Za-z]+)\{\}|\\([{}$&%#_])|\$(?:\\([A-Za-z]+)|(-))\$|\{([\[\]*`]?)\}|('')|([^\\{}$&%#_~^<>|\"\[\]*`])"
    )
    out, at = [], 0
    while at < len(source):
        found = token.match(source, at)
        assert found is not None, source[at:]
        word, escaped, maths, minus, guarded, quotes, plain = found.groups()
        if word is not None:
            out.append(_SETS[word])
        elif maths is not None or minus is not None:
            name = maths or minus
            out.append(_MATH.get(name) or greek(name))
        else:
            out.append(escaped or guarded or ('"' if quotes else None) or plain or "")
        at = found.end()
    return "".join(out)


def shown(text: str) -> str:
    """What there is to see: no control characters, and white space as single spaces between words."""
    return re.sub(r"\s+", " ", "".join(letter for letter in text if letter.isprintable() or letter.isspace())).strip()


def greek(name: str) -> str:
    kind = "CAPITAL" if name[0].isupper() else "SMALL"
    return unicodedata.lookup(f"GREEK {kind} LETTER {'LAMDA' if name.lower() == 'lambda' else name.upper()}")


@given(st.text(st.characters(exclude_characters="'"), max_size=30))
def test_any_text_is_set_as_it_reads(text: str) -> None:
    """Names come from users: none may break a table or read otherwise. Two hyphens are no dash."""
    source = escape(text)
    assert read(source) == shown(text)
    assert "--" not in source


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), min_size=1, max_size=4))
@example([["", "\"'", "'\""]])
def test_a_table_has_its_cells_in_their_places(rows: list[list[str]]) -> None:
    source = latex(
        Tabular([Column("a", "l"), Column("b"), Column("100 %")], [rows, [["x", "y", "z"]]], "It & that", "tab:x")
    )
    assert source.splitlines()[0].startswith("% needs \\usepackage{booktabs,graphicx}")
    assert cells(source)[0] == ["a", "b", "100 %"]
    quotes = [[shown(cell).replace("''", '"') for cell in row] for row in rows]
    assert [[cell.replace("''", '"') for cell in row] for row in cells(source)[1:]] == [*quotes, ["x", "y", "z"]]


def cells(source: str) -> list[list[str]]:
    """A strict reader of tables: environments are closed in order, rules stand between rows, columns are as many."""
    body = [line for line in source.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{table}" and body[-1] == r"\end{table}" and body[1] == r"\centering"
    assert body[4].startswith(r"\resizebox{") and body[4].endswith("{%")
    begin = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", body[5])
    assert begin is not None
    end = next(place for place, line in enumerate(body) if line == r"\end{tabular}}")
    assert (body[6], body[end - 1]) == (r"\toprule", r"\bottomrule")
    found = []
    for line in body[7 : end - 1]:
        if line == r"\midrule":
            continue
        assert line.endswith(r" \\"), line
        row = [read(cell.strip()) for cell in re.split(r"(?<!\\)&", line[:-3])]
        assert len(row) == len(begin[1])
        found.append(row)
    return found


def test_a_comparison_as_a_table_has_its_figures() -> None:
    """Every candidate and reference a row, and in it the mean, the difference and the verdict that were found."""
    found = compared.findings()
    head, *rows = cells(comparison_table(found))
    assert head[:3] == ["", "accuracy", "less fedavg"]
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert set(by_name) == {*compared.CANDIDATES, "reference: local*", "reference: constant"}
    pair, mine = found.family["", "mine_2 & 50 %"], by_name["mine_2 & 50 %"]
    assert mine["less fedavg"] == f"{pair.mean:.4f}" and mine["verdict"] == "better" == pair.verdict
    assert mine["ε"] == "8.00" and mine["MB"] == "60"
    assert mine["accuracy"].startswith(f"{found.standings['', 'mine_2 & 50 %'].mean:.4f} ± ")


def test_conditions_are_groups_and_empty_columns_are_left_out() -> None:
    head, *rows = cells(comparison_table(compared.findings(("even", "uneven"))))
    assert head[0] == "condition" and [row[0] for row in rows if row[0]] == ["even", "uneven"]
    plain = runs_table([FIXTURE])
    assert cells(plain)[0][:3] == ["run", "metric", "test"]


def test_no_table_of_nothing() -> None:
    runs = [made.facts("fedavg", 1, 0.5, status="unfinished", last={}, headline=None)]
    with pytest.raises(RunFolderError, match="no run has finished"):
        comparison_table(conclude(Comparing("Early", None, None, ("fedavg",), ("",), "fedavg", (), (1,)), runs))


def test_numbers() -> None:
    assert [number(value) for value in (None, float("nan"), -0.5, float("inf"))] == ["–", "–", "−0.5000", "∞"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="another place"):
        write(tmp_path / "no" / "such" / "table.tex", "x")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here: apt-get install texlive-latex-recommended")
def test_latex_compiles_tables_and_figures(tmp_path: Path) -> None:
    """As they stand, with nothing but what their first line asks for; every letter of Latin and Greek, every sign."""
    found = compared.findings(("even", "uneven"))
    latin = [chr(code) for code in range(0x21, 0x180) if chr(code).isprintable()]
    names = [letter for letter in latin if "LuaLaTeX" not in latex(Tabular([Column(letter)], [], "", "tab:x"))]
    assert len(latin) - len(names) == 9
    names += "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
    rows = [["".join(names[place : place + 40])] for place in range(0, len(names), 40)]
    signs = latex(Tabular([Column("signs", "l")], [rows, [["±×·≤≥≠≈∞−→–—…"]]], "_all_ & \\more", "tab:signs"))
    (picture,) = courses.learning(found, "even")
    write_stills([picture], tmp_path, Asked("pdf", 3.3))
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        f"{comparison_table(found)}{signs}\\includegraphics{{{picture.name}.pdf}}\\end{{document}}\n",
        encoding="utf-8",
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-1500:].decode(errors="replace")
    assert comparison_table(found).count(" & ") > 8 and b"Overfull" not in done.stdout, "a wide table fits the text"
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
