"""Pictures: looks that every eye can tell apart, and plotly's figures as plain values with the table behind each.

Colours are those of Okabe and Ito ("Color Universal Design", 2008) that stand out from white and from black; dashes and
markers tell series apart without any. A figure is {"data": traces, "layout": ...} as plotly.js knows it; `chart` adds
what all have in common, and `page.css` gives its letters the page's colour.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim.report.page import Table, folded, table, text

Trace = dict[str, Any]
Values = Sequence[float] | Sequence[int] | Sequence[str] | np.ndarray


class Look(NamedTuple):
    """How a series is drawn.

    Attributes:
        colour: of line and marker.
        dash, symbol: in plotly's words.
        line, marker: the same in matplotlib's, for stills.
    """

    colour: str
    dash: str
    symbol: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str

    def faint(self, share: float = 0.18) -> str:
        """Its colour for a band, through which others are seen."""
        red, green, blue = (int(self.colour[place : place + 2], 16) for place in (1, 3, 5))
        return f"rgba({red},{green},{blue},{share:g})"


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[tuple[str, str | tuple[int, tuple[int, ...]]], ...] = (
    ("solid", "-"),
    ("dash", "--"),
    ("dot", ":"),
    ("dashdot", "-."),
    ("longdash", (0, (9, 3))),
    ("longdashdot", (0, (9, 3, 2, 3))),
)
_MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("diamond", "D"),
    ("triangle-down", "v"),
    ("cross", "P"),
)
BESIDE = Look("#767676", "dot", "x", ":", "x")
"""Of what a picture is compared with: grey, readable on white and on black."""
SHADES = "Cividis"
"""Of heat maps: from dark to light for every eye; matplotlib knows it as "cividis"."""


def look(index: int) -> Look:
    """The look of the series of a number from 0 on; the first 36 differ in colour or dash."""
    around, place = divmod(index, len(_COLOURS))
    dash, symbol = _DASHES[(place + around) % len(_DASHES)], _MARKERS[(place + around) % len(_MARKERS)]
    return Look(_COLOURS[place], dash[0], symbol[0], dash[1], symbol[1])


def chart(figure: Mapping[str, Any], caption: str, shown: Table, *, height: int = 340) -> str:
    """A picture with its caption and, folded away below it, the numbers that it shows.

    Args:
        figure: {"data": traces, "layout": ...}; numbers are written with six digits, those that are not finite as gaps.
        caption: plain text that says what is seen; the picture's name for those who do not see it.
        shown: its numbers.
        height: in pixels; kept free before it is drawn, so that nothing jumps.
    """
    layout = _merged(_merged(_LAYOUT, _ticks(figure["data"])), figure.get("layout", {}))
    values = json.dumps(
        {"data": _plain(figure["data"]), "layout": _plain(layout)}, separators=(",", ":"), allow_nan=False
    )
    values = values.replace("<", "\\u003c")  # no text may end the script in which it stands
    return (
        f'<figure><div class="chart" role="img" aria-label="{text(caption)}" style="height:{height}px">'
        f'<script type="application/json">{values}</script><div class="plot"></div></div>'
        f"<figcaption>{text(caption)}</figcaption>"
        f"{folded('the numbers of this picture', table(shown, caption))}</figure>"
    )


def line(x: Values, y: Values, name: str, style: Look, **more: Any) -> Trace:
    """A line, with a few markers."""
    marker = {"color": style.colour, "symbol": style.symbol, "size": 7, "maxdisplayed": 12}
    stroke = {"color": style.colour, "dash": style.dash, "width": 2}
    mode = "lines+markers" if len(x) > 1 else "markers"
    return {"type": "scatter", "mode": mode, "x": x, "y": y, "name": name, "line": stroke, "marker": marker, **more}


def points(x: Values, y: Values, name: str, style: Look, **more: Any) -> Trace:
    """Markers without a line."""
    marker = {"color": style.colour, "symbol": style.symbol, "size": 9, **more.pop("marker", {})}
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "name": name, "marker": marker, **more}


def band(x: Values, low: Values, high: Values, name: str, style: Look, share: float = 0.18) -> list[Trace]:
    """The area between two lines; it takes two traces, of which the legend names one."""
    edge: Trace = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "legendgroup": name}
    lower = {**edge, "y": low, "showlegend": False, "hoverinfo": "skip"}
    upper = {**edge, "y": high, "name": name, "fill": "tonexty", "fillcolor": style.faint(share), "hoverinfo": "skip"}
    return [lower, upper]


def level(x: Values, value: float, name: str, style: Look = BESIDE, **more: Any) -> Trace:
    """A line at one height, such as a reference's last figure."""
    ends = [x[0], x[-1]]
    stroke = {"color": style.colour, "dash": style.dash, "width": 2}
    return {"type": "scatter", "mode": "lines", "x": ends, "y": [value, value], "name": name, "line": stroke, **more}


def bars(x: Values, y: Values, name: str, style: Look, **more: Any) -> Trace:
    """Bars from zero."""
    return {"type": "bar", "x": x, "y": y, "name": name, "marker": {"color": style.colour}, **more}


def heat_map(x: Values, y: Values, z: np.ndarray, unit: str, **more: Any) -> Trace:
    """A value [Y, X] for every pair as a shade; pairs without one stay empty.

    Args:
        x, y: what columns and rows are called.
        z: the values, nan where there is none.
        unit: beside the scale of shades.
    """
    scale = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    return {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": z,
        "colorscale": SHADES,
        "colorbar": scale,
        "hoverongaps": False,
        **more,
    }


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A layout that names both axes; `more` as plotly knows it, and merged into it."""
    return _merged({"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}, more)


_FEW = 12
_GREY = "rgba(128,128,128,0.25)"
_AXIS = {"gridcolor": _GREY, "zerolinecolor": _GREY, "linecolor": "rgba(128,128,128,0.7)", "automargin": True}
_LAYOUT: dict[str, Any] = {
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "hovermode": "closest",
    "hoverlabel": {"bgcolor": "#20252b", "bordercolor": "#20252b", "font": {"color": "#ffffff"}},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "xaxis": _AXIS,
    "yaxis": _AXIS,
}


def _ticks(traces: Sequence[Trace]) -> dict[str, Any]:
    """Few rounds or clients are marked at whole numbers: there is no round 1.5."""
    places = [place for trace in traces for place in trace.get("x", ())]
    whole = bool(places) and all(isinstance(place, int | np.integer) for place in places)
    return {"xaxis": {"dtick": 1}} if whole and max(places) - min(places) <= _FEW else {}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, the second's where both have one."""
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _plain(value: Any) -> Any:
    """Values as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
