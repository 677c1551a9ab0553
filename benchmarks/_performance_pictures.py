"""The pictures of docs/performance.md. Their ink is readable on a white page and on a black one."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _contenders import Case, Timing, cost
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7d858f"
COLOURS = ("#d9730d", "#3d7fd6", "#2f9e63", "#b04fc4", "#c93c4b", "#8a8f2a", "#1f9aa8")
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "fedsim",
    "svg.fonttype": "none",
}


def contenders(table: Mapping[Case, Mapping[str, Timing]], path: Path) -> None:
    """A line for each case with a dot for each contender, ms per client; thin lines span the rounds."""
    names = list(dict.fromkeys(name for timings in table.values() for name in timings))
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.45 * len(table)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            rows = [(row, timings[name]) for row, timings in enumerate(table.values()) if name in timings]
            measured = [(row + 0.05 * (place - len(names) / 2), timing) for row, timing in rows if timing.per_client]
            heights, colour = [height for height, _ in measured], COLOURS[place % len(COLOURS)]
            spans = [(min(timing.per_client), max(timing.per_client)) for _, timing in measured]
            axes.hlines(heights, *zip(*spans, strict=True), color=colour, linewidth=1)
            axes.plot([cost(timing) for _, timing in measured], heights, "o", color=colour, markersize=5, label=name)
        axes.set_xscale("log")
        axes.set_yticks(range(len(table)), [case.title for case in table])
        axes.invert_yaxis()
        _finish(axes, "ms per client; further left is faster")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        _save(figure, path)


def scale(costs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two panels: the driver's memory over the population, and time per client over the cohort."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        population = sorted((row["clients"], row["driver_memory"]) for row in costs if row["cohort"] == 1_000)
        left.plot(*zip(*population, strict=True), "o-", color=COLOURS[0])
        left.set_ylim(0, 1.15 * max(memory for _, memory in population))
        left.set_xscale("log")
        left.set_ylabel("peak memory of the driver, MB")
        _finish(left, "clients in all; 1,000 a round")
        by_cohort = sorted((row for row in costs if row["workers"] == 2), key=lambda row: row["cohort"])
        for colour, key, label in ((COLOURS[1], "per_client", "a round"), (COLOURS[0], "driver", "the driver's work")):
            points = [(row["cohort"], statistics.median(row[key])) for row in by_cohort]
            right.plot(*zip(*points, strict=True), "o", color=colour, label=label)
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_ylabel("ms per client")
        right.legend()
        _finish(right, "clients a round; 2 workers")
        _save(figure, path)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.grid(axis="both")
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None})
