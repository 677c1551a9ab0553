"""A page's picture as matplotlib draws it, from the same value: {"data": traces, "layout": ...} in plotly's words.

So a figure in a paper and the one in the report cannot differ. Of plotly this knows what reports use: lines, markers,
bands, bars, boxes, heat maps, error bars, lines across, and axes. Colours, dashes and markers are those of `charts.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from fedsim.report.charts import BESIDE, SHADES, look

Values = Mapping[str, Any]
_ASPECT = 0.68
_LETTERS = 8.0  # points; captions of papers in two columns have 8 or 9
_LETTER, _LEGEND_ROW = 0.06, 0.16  # inches
_TURNED: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": _LETTERS,
    "text.parse_math": False,  # a dollar is a dollar
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.87",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
"""Of letters and lines; in force also while a figure is saved, which is when ticks get their letters."""
_LOOKS = [look(index) for index in range(6)]
_DASHES = {each.dash: each.line for each in _LOOKS}
_MARKERS = {each.symbol: each.marker for each in (*_LOOKS, BESIDE)}
_HATCHES = {"/": "////", ".": "...."}
_INK = "#000000"


def drawn(figure: Values, width: float) -> Figure:
    """Draw a picture.

    Args:
        figure: of plotly's.
        width: in inches.
    """
    layout = figure.get("layout", {})
    with rc_context(STYLE):
        still = Figure(figsize=(width, _ASPECT * width), layout="constrained")
        axes = still.subplots()
        for kind, draw in _KINDS.items():
            if chosen := [trace for trace in figure["data"] if trace["type"] == kind]:
                draw(axes, chosen, layout)
        _across(axes, layout)
        _set_axes(axes, layout)
        _add_legend(still, axes, width)
    return still


def _lines(axes: Axes, traces: Sequence[Values], layout: Values) -> None:
    """Lines, markers and bands; a band is the area between a trace and the one before it."""
    before: Values = {}
    for trace in traces:
        if trace.get("fill") == "tonexty":
            low, high = _numbers(before["y"]), _numbers(trace["y"])
            colour = _colour(trace["fillcolor"])
            axes.fill_between(_places(trace["x"]), low, high, color=colour, linewidth=0, label=_label(trace))
        elif trace.get("line", {}).get("width") != 0:
            _line(axes, trace)
        before = trace


def _line(axes: Axes, trace: Values) -> None:
    mode, stroke, marker = trace.get("mode", "lines"), trace.get("line", {}), trace.get("marker", {})
    colour, symbol = marker.get("color", stroke.get("color", _INK)), str(marker.get("symbol", "circle"))
    x, y = _places(trace["x"]), _places(trace["y"])
    shown = int(marker.get("maxdisplayed", 0)) or len(x) or 1
    if not isinstance(colour, str):  # a shade for every point
        axes.scatter(x, y, c=_numbers(colour), cmap=SHADES.lower(), s=14, label=_label(trace))
    else:
        axes.errorbar(
            x,
            y,
            xerr=_errors(trace.get("error_x")),
            yerr=_errors(trace.get("error_y")),
            color=_colour(colour),
            linestyle=_DASHES.get(stroke.get("dash", "solid"), "-") if "lines" in mode else "none",
            drawstyle="steps-post" if stroke.get("shape") == "hv" else "default",
            marker=_MARKERS.get(symbol.removesuffix("-open"), "o") if "markers" in mode else None,
            markerfacecolor="none" if symbol.endswith("-open") else _colour(colour),
            markevery=-(-len(x) // shown) or 1,
            elinewidth=0.8,
            capsize=2,
            label=_label(trace),
        )
    if "text" in mode:
        for place, height, words in zip(x, y, trace["text"], strict=True):
            axes.annotate(str(words), (place, height), xytext=(3, 3), textcoords="offset points", fontsize=_LETTERS - 1)


def _bars(axes: Axes, traces: Sequence[Values], layout: Values) -> None:
    """Bars beside each other, or with barmode "stack" on each other."""
    names = list(dict.fromkeys(str(name) for trace in traces for name in trace["x"]))
    stacked = layout.get("barmode") == "stack"
    wide = 0.8 if stacked else 0.8 / len(traces)
    bottom = np.zeros(len(names))
    for number, trace in enumerate(traces):
        places = np.array([names.index(str(name)) for name in trace["x"]], dtype=int)
        heights, marker = np.nan_to_num(_numbers(trace["y"])), trace.get("marker", {})
        axes.bar(
            places + (0.0 if stacked else (number - (len(traces) - 1) / 2) * wide),
            heights,
            wide,
            bottom=bottom[places],
            color=_colour(marker.get("color", _INK)),
            hatch=_HATCHES.get(marker.get("pattern", {}).get("shape", "")),
            edgecolor="white",
            linewidth=0,
            label=_label(trace),
        )
        if stacked:
            bottom[places] += heights
    _name_places(axes, names)


def _boxes(axes: Axes, traces: Sequence[Values], layout: Values) -> None:
    """Boxes of quartiles, one for every name on x."""
    boxes = [(name, trace, stats) for trace in traces for name, stats in _box_stats(trace)]
    parts = axes.bxp([stats for _, _, stats in boxes], positions=range(len(boxes)))
    for place, (_, trace, _) in enumerate(boxes):
        colour = _colour(trace.get("marker", {}).get("color", _INK))
        ends = slice(2 * place, 2 * place + 2)
        for line in (parts["boxes"][place], parts["medians"][place], *parts["whiskers"][ends], *parts["caps"][ends]):
            line.set_color(colour)
    _name_places(axes, [name for name, _, _ in boxes])


def _box_stats(trace: Values) -> list[tuple[str, dict[str, Any]]]:
    """For every box of a trace its name and what matplotlib draws it from."""
    keys = {"q1": "q1", "med": "median", "q3": "q3", "whislo": "lowerfence", "whishi": "upperfence"}
    columns = {ours: _numbers(trace[theirs]) for ours, theirs in keys.items()}
    return [
        (str(name), {**{key: values[place] for key, values in columns.items()}, "fliers": []})
        for place, name in enumerate(trace["x"])
    ]


def _heat_map(axes: Axes, traces: Sequence[Values], layout: Values) -> None:
    """A shade for every pair; grey where there is no value."""
    trace = traces[-1]
    z = np.array([_numbers(row) for row in trace["z"]])
    axes.grid(False)
    axes.set_facecolor("0.9")
    shown = axes.imshow(z, cmap=SHADES.lower(), aspect="auto", interpolation="nearest", origin="lower")
    for values, set_ticks in ((trace["x"], axes.set_xticks), (trace["y"], axes.set_yticks)):
        step = -(-len(values) // 12) or 1
        set_ticks(range(0, len(values), step), [str(value) for value in values[::step]])
    axes.get_figure(root=True).colorbar(shown, ax=axes, label=_title(trace.get("colorbar", {})), pad=0.02)  # type: ignore[union-attr]


_KINDS = {"heatmap": _heat_map, "box": _boxes, "bar": _bars, "scatter": _lines}


def _across(axes: Axes, layout: Values) -> None:
    """Lines over the whole width or height."""
    for shape in layout.get("shapes", ()):
        stroke = shape.get("line", {})
        colour, dash = _colour(stroke.get("color", "#767676")), _DASHES.get(stroke.get("dash", "solid"), "-")
        if shape.get("yref") == "paper":
            axes.axvline(shape["x0"], color=colour, linestyle=dash, linewidth=0.8)
        elif shape.get("xref") == "paper":
            axes.axhline(shape["y0"], color=colour, linestyle=dash, linewidth=0.8)


def _set_axes(axes: Axes, layout: Values) -> None:
    for wanted, axis, limits in (
        (layout.get("xaxis", {}), axes.xaxis, axes.set_xlim),
        (layout.get("yaxis", {}), axes.yaxis, axes.set_ylim),
    ):
        axis.set_label_text(_title(wanted))
        if wanted.get("rangemode") == "tozero":
            limits(min(0.0, axis.get_view_interval()[0]), max(0.0, axis.get_view_interval()[1]))
        if "tickvals" in wanted:
            axis.set_ticks(list(wanted["tickvals"]), [str(each) for each in wanted.get("ticktext", wanted["tickvals"])])
        if "range" in wanted:
            limits(*wanted["range"])
        if wanted.get("autorange") == "reversed":
            axis.set_inverted(True)


def _add_legend(still: Figure, axes: Axes, width: float) -> None:
    """Names above the axes, in as many columns as there is room for; one series alone needs none."""
    lines, names = axes.get_legend_handles_labels()
    if len(names) < 2:
        return
    column = 0.42 + _LETTER * max(map(len, names))  # a sample of the line, and letters
    columns = max(1, min(len(names), int(width / column)))
    rows = -(-len(names) // columns)
    still.set_size_inches(width, _ASPECT * width + _LEGEND_ROW * rows)
    still.legend(lines, names, loc="outside upper left", ncols=columns, columnspacing=1.0, borderpad=0.1)


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // 20) or 1
    shown = names[::step]
    room = 0.85 * axes.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    crowded = _LETTER * sum(len(name) + 2 for name in shown) > room
    axes.set_xticks(range(0, len(names), step), shown, **(_TURNED if crowded else {}))
    axes.grid(False, axis="x")


def _title(of: Values) -> str:
    title = of.get("title", "")
    return str(title.get("text", "") if isinstance(title, Mapping) else title)


def _label(trace: Values) -> str:
    """A name for the legend, which leaves out those that begin with an underscore."""
    name = str(trace.get("name", ""))
    if not name or not trace.get("showlegend", True):
        return "_"
    return f" {name}" if name.startswith("_") else name


def _places(values: Any) -> Any:
    """Numbers, or names as they are, which are places by their order."""
    return [str(value) for value in values] if any(isinstance(value, str) for value in values) else _numbers(values)


def _numbers(values: Any) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _errors(given: Values | None) -> np.ndarray | None:
    """[2, n] below and above."""
    if given is None:
        return None
    above = _numbers(given["array"])
    both: np.ndarray = np.nan_to_num(np.stack([_numbers(given.get("arrayminus", above)), above]))
    return both


def _colour(words: str) -> Any:
    """A colour in CSS' words, rgba(...) among them."""
    if words.startswith("rgba("):
        red, green, blue, alpha = (float(part) for part in words[5:-1].split(","))
        return red / 255, green / 255, blue / 255, alpha
    return to_rgba(words)
