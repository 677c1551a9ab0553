"""The page and the picture of benchmarks/applications.py."""

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

BEGIN, END = "<!-- results -->", "<!-- /results -->"
MARKS = {"federated": ("o", "C0"), "local": ("s", "C1"), "central": ("^", "C2"), "constant": ("x", "0.4")}


def write_page(page: Path, found: Sequence[Any], table: Sequence[str]) -> None:
    """Put table and picture between the page's two marks; what is around them stays."""
    seconds = "\n".join(
        f"| `fedsim run {each.name}` | {each.title} | {each.seconds:.0f} s |" for each in found if not each.missing
    )
    lines = "\n".join(["```", *table, "```"])
    text = f"""
Measured by `python benchmarks/applications.py` on {date.today()}: one seed, torch {version("torch")}, {os.cpu_count()}
cores of {platform.machine()} that other work may have shared, so take times as upper bounds.

| command | what | time, references included |
|---|---|---|
{seconds}

*central*: the global model on rows of the central test set; *clients*: the mean over clients on their own test rows, of
their own models where a star stands.

{lines}

![Every application: federated, local, central and constant](applications.svg)
"""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    picture(found, page.with_suffix(".svg"))


def picture(found: Sequence[Any], path: Path) -> None:
    """A panel for each application: every run's figure over clients' own test rows, else on central rows."""
    shown = [each for each in found if not each.missing]
    columns = 3
    rows = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(11, 1.3 * rows + 0.8), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, each in zip(axes.flat, shown, strict=False):
        _panel(axis, each)
    handles = [Line2D([], [], color=colour, marker=mark, ls="", label=run) for run, (mark, colour) in MARKS.items()]
    figure.legend(handles=handles, loc="upper center", ncols=len(MARKS), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(axis: Axes, each: Any) -> None:
    for run, (mark, colour) in MARKS.items():
        figures = each.runs.get(run)
        if figures is None:
            continue
        value = next((value for value in (figures.own, figures.clients, figures.central) if value is not None), None)
        if value is not None:
            axis.plot([value], [0], mark, color=colour, markersize=8, fillstyle="none" if run == "local" else "full")
    axis.set_yticks([])
    axis.margins(x=0.15)
    axis.set_title(f"{each.name}: {each.metric}{' (lower is better)' if each.lower else ''}", fontsize=9)
    axis.tick_params(labelsize=8)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
