"""Stills: what a paper's figure shows is what the report shows, with its numbers beside it and its fonts inside."""

import csv
import math
import re
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import FedsimError, RunFolderError
from fedsim.report import charts
from fedsim.report.charts import look
from fedsim.report.chronicle import chronicle
from fedsim.report.contrasts import pictures
from fedsim.report.drawing import drawn
from fedsim.report.page import Table
from fedsim.report.picture import Picture
from fedsim.report.run import pictures as run_pictures
from fedsim.report.still import FORMATS, Asked, asked, write
from fedsim.stored import open_run
from tests import small
from tests.report import compared

NARROW = Asked("pdf", 3.3)


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of a comparison as PDF, a few in the other formats."""
    folder = tmp_path_factory.mktemp("stills")
    for format in FORMATS:
        write(chosen(format), folder / format, Asked(format, 3.3))
    return folder


def chosen(format: str) -> list[Picture]:
    every = pictures(compared.findings())
    return every if format == "pdf" else every[:2]


def test_every_picture_has_a_still_and_its_numbers(stills: Path) -> None:
    for format in FORMATS:
        wanted = [picture.name for picture in chosen(format)]
        assert len(set(wanted)) == len(wanted) > (7 if format == "pdf" else 1)
        files = {path.name for path in (stills / format).iterdir()}
        assert files == {f"{name}.{ending}" for name in wanted for ending in (format, "csv")}


def test_the_csv_has_the_numbers_of_the_picture(stills: Path) -> None:
    for picture in pictures(compared.findings()):
        head, *rows = csv.reader((stills / "pdf" / f"{picture.name}.csv").open(encoding="utf-8", newline=""))
        assert head == list(picture.shown.columns) and len(rows) == len(picture.shown.rows)
        for row, cells in zip(rows, picture.shown.rows, strict=True):
            assert [_read(cell, like) for cell, like in zip(row, cells, strict=True)] == [_told(cell) for cell in cells]


def _read(cell: str, like: object) -> object:
    return None if cell == "" else cell if isinstance(like, str) else float(cell)


def _told(cell: object) -> object:
    empty = cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))
    return None if empty else cell if isinstance(cell, str) else float(cell)  # type: ignore[arg-type]


def test_fonts_are_embedded_and_the_width_is_the_one_asked_for(stills: Path) -> None:
    """Publishers refuse Type 3 fonts; 3.3 inches are 237.6 points."""
    for path in (stills / "pdf").glob("*.pdf"):
        content = path.read_bytes()
        assert b"/Type3" not in content and b"/CIDFontType2" in content and b"/FontFile2" in content
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", content)
        assert box is not None and float(box[1]) == pytest.approx(237.6, abs=0.1)
    for path in (stills / "svg").glob("*.svg"):
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        assert root.get("width") == "237.6pt" and not root.findall(".//{http://www.w3.org/2000/svg}text")


def test_the_same_figure_gives_the_same_bytes(stills: Path, tmp_path: Path) -> None:
    for format in FORMATS:
        for path in write(chosen(format)[:2], tmp_path / format, Asked(format, 3.3)):
            assert path.read_bytes() == (stills / format / path.name).read_bytes()


def box(middles: list[float]) -> dict[str, Any]:
    names = ("lowerfence", "q1", "median", "q3", "upperfence")
    columns = {name: [middle + 0.1 * place for middle in middles] for place, name in enumerate(names, -2)}
    return {"type": "box", "x": [f"b{place}" for place in range(len(middles))], "name": "box", **columns}


def traces() -> dict[str, Any]:
    """One trace of every kind that reports use, by its name."""
    x, y = [1, 2, 3], [0.1, 0.4, math.nan]
    return {
        "line": charts.line(x, y, "line", look(1)),
        "points": charts.points(
            x, [1.0, 2.0, 3.0], "points", look(2), error_y={"type": "data", "array": [0.1, 0.2, 0.3]}
        ),
        "level": charts.level(x, 0.5, "level"),
        "bars": charts.bars(["a", "b"], [1.0, 2.0], "bars", look(0)),
        "box": box([1.5, 3.0]),
        "heat": charts.heat_map(["r1", "r2"], ["k1", "k2"], np.array([[1.0, 2.0], [math.nan, 4.0]]), "unit"),
    }


@pytest.mark.parametrize("kind", traces())
def test_every_kind_of_trace_is_drawn(kind: str) -> None:
    """Something with the trace's own numbers is on the axes."""
    trace = traces()[kind]
    axes = drawn({"data": [trace], "layout": charts.axes("across", "up")}, 3.3).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("across", "up")
    if kind == "heat":
        shown = axes.get_images()[0].get_array()
        assert shown is not None and np.ma.filled(np.ma.masked_invalid(shown), -1).tolist() == [[1, 2], [-1, 4]]
    elif kind == "bars":
        assert [patch.get_height() for patch in axes.patches] == [1.0, 2.0]  # type: ignore[attr-defined]
    elif kind == "box":
        heights = [np.unique(np.asarray(line.get_ydata(), float)) for line in axes.lines]
        middles = [float(height[0]) for height in heights if len(height) == 1]
        assert {1.5, 3.0} <= {*middles}
    else:
        line = next(line for line in axes.lines if len(line.get_xdata()) == len(trace["x"]))  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.asarray(line.get_ydata(), float), np.asarray(trace["y"], float))


def test_looks_are_those_of_the_page() -> None:
    """Colour, dash and marker of every series, so that text about one figure holds for the other."""
    lines = [charts.line([1, 2], [1, 2], str(place), look(place)) for place in range(12)]
    axes = drawn({"data": lines, "layout": {}}, 3.3).axes[0]
    for place, line in enumerate(axes.lines[:12]):
        assert line.get_color() == pytest.approx(_rgb(look(place).colour)) and line.get_marker() == look(place).marker
    assert len({(str(line.get_color()), line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 12


def _rgb(colour: str) -> tuple[float, ...]:
    return (*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)), 1.0)


def test_a_band_is_between_its_edges() -> None:
    axes = drawn({"data": charts.band([1, 2], [0.0, 1.0], [2.0, 5.0], "band", look(0)), "layout": {}}, 3.3).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    assert {(1.0, 0.0), (1.0, 2.0), (2.0, 1.0), (2.0, 5.0)} <= {
        tuple(corner) for corner in np.asarray(corners).tolist()
    }


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """A dollar begins no mathematics, and a name with an underscore at its front is in the legend too."""
    names = ["$\\no$ such_thing", "_mine"]
    bars = [charts.bars([name], [1.0], name, look(place)) for place, name in enumerate(names)]
    (path, _) = write([Picture("odd", {"data": bars, "layout": {}}, "odd", Table([], []))], tmp_path, NARROW)
    assert path.stat().st_size > 0
    legend = drawn({"data": bars, "layout": {}}, 3.3).legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()] == names


def test_stacked_bars_stand_on_each_other() -> None:
    both = [charts.bars(["a", "b"], [1.0, 2.0], "low", look(0)), charts.bars(["a", "b"], [3.0, 4.0], "high", look(1))]
    axes = drawn({"data": both, "layout": {"barmode": "stack"}}, 3.3).axes[0]
    assert [patch.get_y() for patch in axes.patches] == [0, 0, 1, 2]  # type: ignore[attr-defined]


@given(st.sampled_from(["in", "cm", "mm", "pt"]), st.floats(1.1, 39))
def test_widths(unit: str, inches: float) -> None:
    per_inch = {"in": 1, "cm": 2.54, "mm": 25.4, "pt": 72.27}[unit]
    assert asked("svg", f"{inches * per_inch:.6f}{unit}").width == pytest.approx(inches, rel=1e-4)


@pytest.mark.parametrize(
    ("format", "width"), [("gif", "3in"), ("pdf", "3"), ("pdf", "0.2in"), ("pdf", "900in"), ("pdf", "wide")]
)
def test_what_cannot_be_drawn_is_one_line(format: str, width: str) -> None:
    with pytest.raises(FedsimError) as refused:
        asked(format, width)
    assert "\n" not in str(refused.value) and "give" in str(refused.value)


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    picture = Picture("x", {"data": [], "layout": {}}, "x", Table(["x"], [[1.0]]))
    with pytest.raises(RunFolderError, match="another folder"):
        write([picture], tmp_path / "file", NARROW)


def test_a_run_has_its_stills(tmp_path: Path) -> None:
    """Every picture of a run's page, by a name of its own, with the same numbers as CSV."""
    small.run(small.job({**small.PRIVATE, "evaluate.clients_every": 1}), tmp_path / "run")
    shown = run_pictures(chronicle(tmp_path / "run"))
    names = [picture.name for picture in shown]
    assert {"learning", "loss", "seconds", "bytes", "epsilon", "by-client"} <= {*names} and len({*names}) == len(names)
    files = write(shown, tmp_path / "stills", Asked("svg", 3.3))
    assert [path.stem for path in files[::2]] == names and all(path.stat().st_size > 0 for path in files)
    with (tmp_path / "stills" / "bytes.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    with closing(open_run(tmp_path / "run")) as records:
        query = "SELECT sum(bytes_up) FROM clients WHERE phase = 'train' AND round <= 2"
        assert int(rows[1]["from clients"]) == next(iter(records.select(query)))[0]
