"""The shell of reports: texts stay texts, tables and pictures keep their numbers, files are whole."""

import base64
import gzip
import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import RunFolderError
from fedsim.report import charts
from fedsim.report.charts import chart, look
from fedsim.report.page import Section, Table, amount, figures, folded, page, preformatted, slug, table, thinned, write

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
EMPTY = {"meta", "input", "br", "link", "img"}


class Read(HTMLParser):
    """What a parser of another make sees: that tags close, the texts of cells, the values of pictures."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if named.get("href"):
            self.links.append(str(named["href"]))
        if tag in EMPTY:
            return
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "script":
            self.scripts.append((named.get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open[-1] == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = kind, before + data


def shown(sections: list[Section]) -> Read:
    return Read(page("Title", sections))


@given(names=st.lists(TEXTS, min_size=1, max_size=4), title=TEXTS)
def test_texts_stay_texts(names: list[str], title: str) -> None:
    """Whatever a title, a heading or a name says, a parser reads back that text and no tag of it."""
    body = (
        table(Table(names, [names]), title)
        + figures([(title, title, title)])
        + folded(title, preformatted(title, title))
    )
    seen = Read(page(title, [Section(title, body)]))
    assert seen.cells == [*names, *names]
    assert ("h1", title) in seen.texts and ("h2", title) in seen.texts and ("pre", title) in seen.texts
    assert len(seen.scripts) == 1, "without a picture nothing but the page's own script"


@given(name=TEXTS, values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=20))
def test_a_picture_keeps_its_numbers(name: str, values: list[float]) -> None:
    """To six digits, with gaps for what is not finite; and no text ends the script that holds them."""
    x = list(range(len(values)))
    figure = {"data": [charts.line(x, values, name + "</script><b>", look(0))], "layout": charts.axes("x", name)}
    seen = Read(chart(figure, name, Table(["x", name], list(zip(x, values, strict=True)))))
    ((kind, content),) = seen.scripts
    trace = json.loads(content)["data"][0]
    assert kind == "application/json" and trace["name"] == name + "</script><b>"
    for value, written in zip(values, trace["y"], strict=True):
        assert written == pytest.approx(value, rel=1e-5) if math.isfinite(value) else written is None
    assert len(seen.cells) == 2 + 2 * len(values), "the table beneath it has a row for each"


def test_there_is_no_round_and_a_half() -> None:
    def ticks(x: list[Any]) -> Any:
        seen = Read(chart({"data": [charts.line(x, x, "a", look(0))]}, "a", Table(["x"], [])))
        return json.loads(seen.scripts[0][1])["layout"]["xaxis"].get("dtick")

    assert (ticks([1, 2, 3]), ticks([1, 100]), ticks([0.5, 1.0]), ticks(["a", "b"])) == (1, None, None, None)


def test_links_lead_to_sections_and_empty_ones_are_left_out() -> None:
    seen = shown(
        [Section("How it went", "<p>well</p>"), Section("Nothing", ""), Section("What it cost", "<p>little</p>")]
    )
    assert [link for link in seen.links if link != "#content"] == ["#how-it-went", "#what-it-cost"]
    assert {link[1:] for link in seen.links} <= set(seen.ids) and "nothing" not in seen.ids


def test_plotly_is_inside_once_and_whole() -> None:
    plotly = pytest.importorskip("plotly")
    picture = chart({"data": [charts.line([1], [2], "a", look(0))]}, "a", Table(["x"], [[1]]))
    seen = shown([Section("A", picture), Section("B", picture)])
    packed = [content for kind, content in seen.scripts if kind == "text/plain"]
    script = gzip.decompress(base64.b64decode(packed[0]))
    assert len(packed) == 1
    assert script == (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()


@given(count=st.integers(0, 500), most=st.integers(2, 60))
def test_thinned_rows_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    kept = thinned(range(count), most)
    assert len(kept) == min(count, most)
    if count > 1:
        assert (kept[0], kept[-1]) == (0, count - 1)
        steps = np.diff(list(kept))
        assert steps.min() > 0 and steps.max() - steps.min() <= 1


def test_a_long_table_says_how_much_of_it_is_shown() -> None:
    seen = table(Table(["round"], [[round] for round in range(1000)]), "Rounds")
    assert "Rounds (200 of 1000 rows)" in seen and len(Read(seen).cells) == 1 + 200


def test_series_differ_without_any_colour() -> None:
    """In print, and for eyes that see none: the first six by dash and marker, the first 36 by colour or dash."""
    first = [look(index) for index in range(6)]
    assert all(a.dash != b.dash and a.symbol != b.symbol and a.marker != b.marker for a, b in combinations(first, 2))
    assert len({(each.colour, each.dash) for each in map(look, range(36))}) == 36


def luminance(colour: str) -> float:
    """Relative, of WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_letters_and_lines_stand_out_from_the_page() -> None:
    """WCAG 2.2: letters 4.5 to 1; the first four series 3 to 1, in light and in dark."""
    style = (Path(charts.__file__).parent / "page.css").read_text()
    light, dark, printed = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    for colours in (light, dark, printed):
        for name in ("ink", "soft", "link"):
            assert min(contrast(colours[name], colours[back]) for back in ("paper", "tint")) >= 4.5, (name, colours)
    for index in range(4):
        assert min(contrast(look(index).colour, colours["paper"]) for colours in (light, dark)) >= 3, index


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (4e12, "4 TB")]
)
def test_bytes_have_units(count: float, words: str) -> None:
    assert amount(count) == words


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Who opened it before the write still reads the old page; nothing else is left behind."""
    path = tmp_path / "report.html"
    write(path, "old")
    with path.open(encoding="utf-8") as before:
        write(path, "new page")
        assert before.read() == "old"
    assert path.read_text() == "new page" and [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_mode & 0o400


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"none/report\.html cannot be written: .*--out"):
        write(tmp_path / "none" / "report.html", "page")


def test_slugs_are_plain() -> None:
    assert [slug(words) for words in ("Repeat it", "Worst 10 %", "—")] == ["repeat-it", "worst-10", "section"]
