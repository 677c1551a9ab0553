"""Still pictures for papers: a report's pictures drawn by matplotlib, and the numbers of each as CSV.

Fonts are embedded as TrueType (PDF) or drawn as outlines (SVG), which is what publishers ask for, and the same picture
gives the same bytes.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib import rc_context

from fedsim.errors import FedsimError, RunFolderError
from fedsim.report.drawing import STYLE, drawn
from fedsim.report.picture import Picture

Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = ("pdf", "svg", "png")
_PER_INCH = {"in": 1.0, "cm": 2.54, "mm": 25.4, "pt": 72.27}  # TeX's points, as \the\columnwidth prints them
_WIDTHS = (1.0, 40.0)
_DPI = 300
_EMBEDDED: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "fedsim"}
_UNDATED: Mapping[Format, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


class Asked(NamedTuple):
    """How stills are wanted; `width` is in inches."""

    format: Format
    width: float


def asked(format: str, width: str) -> Asked:
    """What a person asks for.

    Args:
        format: pdf, svg or png.
        width: a number with its unit: 3.3in, 84mm, 8.4cm or 240pt (TeX's points).

    Raises:
        FedsimError: anything else.
    """
    if format not in FORMATS:
        raise FedsimError(f"--format {format}: give pdf, svg or png")
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt)\s*", width)
    inches = float(found[1]) / _PER_INCH[found[2]] if found else math.nan
    if not _WIDTHS[0] <= inches <= _WIDTHS[1]:
        raise FedsimError(f"--width {width}: give 1 to 40 inches and the unit, such as 3.3in, 84mm, 8.4cm or 240pt")
    return Asked(format, inches)


def write(pictures: Sequence[Picture], folder: Path, how: Asked) -> list[Path]:
    """Draw pictures into a folder: NAME.FORMAT and NAME.csv of each; those that are there are written anew.

    Returns:
        The files.

    Raises:
        RunFolderError: they cannot be written.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            still, numbers = folder / f"{picture.name}.{how.format}", folder / f"{picture.name}.csv"
            with rc_context({**STYLE, **_EMBEDDED}):
                drawn(picture.figure, how.width).savefig(still, dpi=_DPI, metadata=_UNDATED[how.format])
            _write_numbers(picture, numbers)
            files += [still, numbers]
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(f"{folder}: pictures cannot be written there ({reason}); choose another folder") from error
    return files


def _write_numbers(picture: Picture, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(picture.shown.columns)
        rows.writerows([_cell(cell) for cell in row] for row in picture.shown.rows)


def _cell(cell: str | float | None) -> str | float:
    return "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell
