"""A federation to look at: a row per client, figures for the whole, and a still picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.data import holdings
from fedsim.data.federation import Federation
from fedsim.data.holdings import PARTS
from fedsim.errors import DataError

_SHADES = ("0.25", "0.6", "0.85")  # grey, so that print and every eye can tell them apart
_MOST_BUBBLES = 40
_WIDTH = 80
_FORMATS = (".svg", ".png", ".pdf")


def table(federation: Federation) -> list[dict[str, Any]]:
    """For every client its name, rows in all and of each part, and rows of each class or its mean target."""
    sizes, counts, targets = holdings.sizes(federation), holdings.label_counts(federation), holdings.targets(federation)
    rows: list[dict[str, Any]] = []
    for client, name in enumerate(federation.names):
        row = {"client": name, "rows": int(sizes[client].sum())}
        row |= {part: int(size) for part, size in zip(PARTS, sizes[client], strict=True)}
        if counts is not None:
            row["labels"] = {label: int(n) for label, n in zip(federation.classes, counts[client], strict=True)}
        if targets is not None:
            row["target"] = float(targets[client].mean()) if len(targets[client]) else None
        rows.append(row)
    return rows


def summary(federation: Federation) -> dict[str, Any]:
    """Figures of the whole federation.

    Returns:
        clients; rows, in all and of each part and central set; smallest, median and largest client; and for
        classification `labels_per_client` (mean number of classes a client has) and `label_skew`: the mean
        total variation distance, from 0 (all alike) to 1, between a client's labels and those of all clients.
        For a number to be predicted `target` (its mean over rows) and `target_between`: the share, from 0 to 1, of its
        variance that lies between clients' means.
    """
    sizes, counts, targets = holdings.sizes(federation), holdings.label_counts(federation), holdings.targets(federation)
    rows = sizes.sum(axis=1)
    figures: dict[str, Any] = {"clients": federation.clients, "rows": int(rows.sum())}
    figures |= {part: int(total) for part, total in zip(PARTS, sizes.sum(axis=0), strict=True)}
    figures |= {f"central_{part}": len(federation.central[part].x) for part in federation.central}
    figures |= {"smallest": int(rows.min()), "median": float(np.median(rows)), "largest": int(rows.max())}
    if counts is not None:
        held = counts[rows > 0]
        mixes = held / held.sum(axis=1, keepdims=True)
        overall = held.sum(axis=0) / held.sum()
        figures["labels_per_client"] = float((held > 0).sum(axis=1).mean())
        figures["label_skew"] = float(np.abs(mixes - overall).sum(axis=1).mean() / 2)
    if targets is not None:
        values = np.concatenate(targets).astype(np.float64)
        means = np.repeat([own.mean(dtype=np.float64) if len(own) else 0.0 for own in targets], rows)
        figures["target"] = float(values.mean())
        figures["target_between"] = float(means.var() / values.var()) if values.var() else 0.0
    return figures


def table_lines(federation: Federation) -> list[str]:
    """The table and the summary as text of at most 80 columns; label counts where they fit."""
    sizes, counts = holdings.sizes(federation), holdings.label_counts(federation)
    head = ["client", *PARTS]
    rows = [[name[:20], *map(str, row)] for name, row in zip(federation.names, sizes, strict=True)]
    lines = _aligned([head, *rows])
    if counts is not None:
        labelled = _aligned(
            [[*head, *federation.classes], *([*row, *map(str, c)] for row, c in zip(rows, counts, strict=True))]
        )
        lines = labelled if len(labelled[0]) <= _WIDTH else lines
    if (targets := holdings.targets(federation)) is not None:
        means = [f"{own.mean():.4g}" if len(own) else "-" for own in targets]
        lines = _aligned([[*head, "target"], *([*row, mean] for row, mean in zip(rows, means, strict=True))])
    figures = summary(federation)
    return [*lines, "", *(f"{name.replace('_', ' ')}: {_shown(figure)}" for name, figure in figures.items())]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]


def picture(federation: Federation, path: Path) -> None:
    """Draw sizes of every client, and its labels or targets.

    Args:
        federation: bubbles for few clients, a heat map for many; of a number to be predicted the middle and most of
            its values at every client; sizes alone for other rows.
        path: of the file to write; its suffix says the format: .svg, .png or .pdf.

    Raises:
        DataError: another suffix, or the file cannot be written.
    """
    check_suffix(path)
    save(_draw(federation), path)


def check_suffix(path: Path) -> None:
    """Refuse, before anything is drawn, a file that `save` could not write by its suffix."""
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"{path}: pictures are written as {', '.join(_FORMATS)}; change the suffix")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same one to the same bytes.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        # Without a date, and with names that are not random, the same figure gives the same SVG.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with rc_context({"svg.hashsalt": "fedsim"}):
            figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _shown(figure: float) -> str:
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.2f}"


def _draw(federation: Federation) -> Figure:
    counts, targets = holdings.label_counts(federation), holdings.targets(federation)
    width = float(np.clip(3 + 0.3 * federation.clients, 7, 14))
    if targets is not None:
        figure = Figure(figsize=(width, 6), layout="constrained")
        sizes, lowest = figure.subplots(2, sharex=True)
        _draw_targets(lowest, targets)
    elif counts is None:
        figure = Figure(figsize=(width, 3.5), layout="constrained")
        lowest = sizes = figure.subplots()
    else:
        height = float(np.clip(1.5 + 0.3 * len(federation.classes), 3, 9))
        figure = Figure(figsize=(width, 2.5 + height), layout="constrained")
        sizes, lowest = figure.subplots(2, sharex=True, height_ratios=(2, height))
        _draw_labels(figure, lowest, counts, federation.classes)
    _draw_sizes(sizes, holdings.sizes(federation))
    figures = summary(federation)
    figure.suptitle(f"{federation.corpus}: {figures['clients']} clients, {figures['rows']:,} rows")
    lowest.set_xlabel("client")
    lowest.set_xlim(-0.6, federation.clients - 0.4)
    lowest.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    return figure


def _draw_sizes(axes: Axes, sizes: np.ndarray) -> None:
    bottom = np.zeros(len(sizes))
    for part, size, shade in zip(PARTS, sizes.T, _SHADES, strict=True):
        # Bars touch when there are many: gaps narrower than a pixel would draw a pattern that is not there.
        bar = 0.8 if len(sizes) <= _MOST_BUBBLES else 1.0
        axes.bar(np.arange(len(sizes)), size, width=bar, bottom=bottom, color=shade, label=part)
        bottom = bottom + size
    axes.set_ylabel("rows")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(PARTS), frameon=False)


def _draw_labels(figure: Figure, axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    if max(counts.shape) <= _MOST_BUBBLES:
        client, label = np.nonzero(counts)
        rows = counts[client, label]
        area = 200 / counts.max()
        axes.scatter(client, label, s=np.maximum(area * rows, 3), color="0.25")  # a single row stays visible
        for size in sorted({1, -(-int(counts.max()) // 4), int(counts.max())}):
            axes.scatter([], [], s=max(area * size, 3), color="0.25", label=f"{size}")
        axes.legend(title="rows", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelspacing=1.2)
    else:
        shown = axes.imshow(counts.T, aspect="auto", cmap="Greys", interpolation="nearest", vmin=0)
        figure.colorbar(shown, ax=axes, label="rows", pad=0.01)
    axes.set_ylim(-0.6, len(classes) - 0.4)
    axes.set_ylabel("class")
    step = -(-len(classes) // _MOST_BUBBLES)
    axes.set_yticks(range(0, len(classes), step), classes[::step])


def _draw_targets(axes: Axes, targets: Sequence[np.ndarray]) -> None:
    held = [client for client, own in enumerate(targets) if len(own)]
    low, first, middle, third, high = np.array([np.quantile(targets[k], (0.05, 0.25, 0.5, 0.75, 0.95)) for k in held]).T
    wide = 5.0 if len(targets) <= _MOST_BUBBLES else 1.0
    axes.vlines(held, low, high, color=_SHADES[2], linewidth=wide, label="90 % of rows")
    axes.vlines(held, first, third, color=_SHADES[1], linewidth=wide, label="50 %")
    axes.plot(held, middle, ".", color=_SHADES[0], label="median")
    axes.set_ylabel("target")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
