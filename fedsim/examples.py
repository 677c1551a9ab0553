"""A few of a client's rows: images and spectrograms as thumbnails, text and series as lines, features as numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsim.data.federation import Federation, Part
from fedsim.errors import DataError
from fedsim.progress import WIDTH

Kind = Literal["image", "spectrogram", "series", "text", "features"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
_SHADES = " ░▒▓█"
_LEVELS = "▁▂▃▄▅▆▇█"
_NARROW = 16  # pixels up to which one is two columns wide, so that it is about square
_COLUMNS = 28  # of a wider image's thumbnail
_GAP = 2
_STEPS = 48  # columns of a series
_SHOWN = {"image": 4, "spectrogram": 2, "series": 4, "text": 3, "features": 3}
_MOST_TARGETS = 4  # numbers of a row that are still worth a look
_DRAWN = 8  # images of a part in a picture


class Example(NamedTuple):
    """One row.

    Attributes:
        part, row: where it is: the number of a row within the client's part.
        label: the name of its class, or its target where that is a few numbers; else None.
        values: [...] as the model takes them.
    """

    part: Part
    row: int
    label: str | None
    values: np.ndarray


def kind_of(federation: Federation) -> Kind:
    """What the rows are: float arrays with height and width are images, those with steps are series."""
    x = federation.x
    if x.dtype == np.uint8 and x.ndim == 2 and federation.vocabulary is None:
        return "text"
    if x.ndim == 4:
        return "spectrogram" if federation.preprocessing.get("kind") == "spectrogram" else "image"
    return "series" if x.ndim == 3 and x.dtype.kind == "f" else "features"


def examples(federation: Federation, client: int) -> list[Example]:
    """A few train rows, of different classes while there are; of another part where the client trains on none."""
    for part in PARTS:
        if found := _of_part(federation, client, part, _SHOWN[kind_of(federation)]):
            return found
    return []


def example_lines(federation: Federation, shown: Sequence[Example]) -> list[str]:
    """For people, at most 80 columns."""
    if not shown:
        return []
    kind, part = kind_of(federation), shown[0].part
    what = "classes" if federation.labelled else "targets"
    if kind in ("image", "spectrogram"):
        return [f"{part}: numbers and {what} of some rows", *_thumbnails(kind, shown)]
    if kind == "series":
        name, column = next(iter(federation.preprocessing.get("columns", {}).items()), ("the first value", {}))
        title, lines = f"{name} over {len(shown[0].values)} steps", [_series(each, column) for each in shown]
    elif kind == "text":
        title, lines = "beginnings", [_text(each) for each in shown]
    else:
        title, lines = "features", [_features(each) for each in shown]
    told = f"{'class' if federation.labelled else 'target'} and " if shown[0].label is not None else ""
    rows = "windows" if kind == "text" and not federation.labelled else "rows"
    return [f"{part}: {told}{title} of some {rows}", *(f"  {line}" for line in lines)]


def example_data(federation: Federation, shown: Sequence[Example]) -> list[dict[str, Any]]:
    """For programs: text as text, numbers as numbers, an image or spectrogram as where it is and its shape."""
    kind = kind_of(federation)
    return [
        {"part": each.part, "row": each.row, "label": each.label, kind: _plain(kind, each.values)} for each in shown
    ]


def picture(federation: Federation, client: int, path: Path) -> None:
    """Draw some of a client's images, spectrograms or series, a line of them for each part.

    Raises:
        DataError: the rows are nothing to draw, another suffix than .svg, .png or .pdf, or the file cannot be written.
    """
    if (kind := kind_of(federation)) not in ("image", "spectrogram", "series"):
        drawn = "--picture draws images, spectrograms and series"
        raise DataError(f"{drawn}, and the rows of {federation.corpus} are {kind}; leave it out")
    from fedsim.data.picture import check_suffix, save

    check_suffix(path)
    from matplotlib.figure import Figure

    parts = [found for part in PARTS if (found := _of_part(federation, client, part, _DRAWN))]
    figure = Figure(figsize=(1.1 * _DRAWN, 1.5 * max(1, len(parts)) + 0.4), layout="constrained")
    figure.suptitle(f"{federation.corpus}, client {client}: {federation.names[client]}")
    panels = figure.subplots(max(1, len(parts)), _DRAWN, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for line, found in zip(panels, parts, strict=False):
        for panel, each, image in zip(line, found, _drawn(kind, found), strict=False):
            if kind == "series":
                panel.plot(each.values[:, 0], color="0.25", linewidth=1)
            else:
                panel.imshow(image if image.ndim == 3 else 1 - image, cmap="gray", vmin=0, vmax=1)
            told = "" if each.label is None else f": {each.label}"
            panel.set_title(f"{each.part} {each.row}{told}", fontsize=7)
    save(figure, path)


def _of_part(federation: Federation, client: int, part: Part, count: int) -> list[Example]:
    """Rows of one part: the first of every class where there are classes, then others, in order."""
    rows = federation.rows(client, part)
    chosen = list(range(min(count, len(rows.x))))
    if federation.labelled:
        _, first = np.unique(rows.y, return_index=True)
        others = np.setdiff1d(np.arange(len(rows.y)), first)
        chosen = sorted([*np.sort(first), *others][:count])
    return [Example(part, int(row), _label(federation, rows.y[row]), rows.x[row]) for row in chosen]


def _label(federation: Federation, target: np.ndarray) -> str | None:
    if federation.labelled:
        return str(federation.classes[int(target)])
    numbers = np.atleast_1d(target)
    if numbers.ndim > 1 or len(numbers) > _MOST_TARGETS or numbers.dtype == np.uint8:  # bytes are no numbers
        return None
    return " ".join(f"{number:.4g}" for number in numbers)


def _drawn(kind: Kind, shown: Sequence[Example]) -> list[np.ndarray]:
    """Rows as `_scaled` images; a spectrogram [1, frames, bands] with its time to the right and high tones on top."""
    if kind == "spectrogram":
        return _scaled([each.values.transpose(0, 2, 1)[:, ::-1] for each in shown])
    return _scaled([each.values for each in shown])


def _scaled(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """[C, H, W] images as [H, W], or [H, W, 3] in colour, from 0 to 1 over all of them together; others alike."""
    stacked = np.stack(images).astype(np.float64)
    low, high = float(stacked.min()), float(stacked.max())
    unit = (stacked - low) / (high - low) if high > low else np.zeros_like(stacked)
    return [image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0) for image in unit]


def _thumbnails(kind: Kind, shown: Sequence[Example]) -> list[str]:
    """Thumbnails side by side with their class under them, as many as fit."""
    grey = [image.mean(axis=2) if image.ndim == 3 else image for image in _drawn(kind, shown)]
    drawn = [blocks(image) for image in grey]
    width = len(drawn[0][0])
    abreast = max(1, (WIDTH - 2 + _GAP) // (width + _GAP))
    lines: list[str] = []
    for start in range(0, len(drawn), abreast):
        some = drawn[start : start + abreast]
        labels = [f"{each.row}: {each.label or ''}"[:width].ljust(width) for each in shown[start : start + abreast]]
        rows = [*zip(*some, strict=True), tuple(labels)]
        lines += [("  " + (" " * _GAP).join(row)).rstrip() for row in rows]
    return lines


def blocks(image: np.ndarray) -> list[str]:
    """An image [H, W] from 0 to 1 as lines of block characters, two columns to a line's height."""
    height, width = image.shape
    columns = 2 * width if width <= _NARROW else min(width, _COLUMNS)
    lines = height if width <= _NARROW else max(1, round(columns * height / width / 2))
    lines = min(lines, 2 * _COLUMNS)
    small = _resized(_resized(image, lines).T, columns).T
    shades = np.minimum((small * len(_SHADES)).astype(int), len(_SHADES) - 1)
    return ["".join(_SHADES[shade] for shade in row) for row in shades]


def _resized(image: np.ndarray, lines: int) -> np.ndarray:
    """[lines, W]: means over lines of the image where it has more, repeated ones where it has fewer."""
    edges = np.linspace(0, len(image), lines + 1)
    starts = np.floor(edges[:-1]).astype(int)
    stops = np.maximum(np.floor(edges[1:]).astype(int), starts + 1)
    return np.stack([image[start:stop].mean(axis=0) for start, stop in zip(starts, stops, strict=True)])


def _plain(kind: Kind, values: np.ndarray) -> Any:
    if kind in ("image", "spectrogram"):
        return {"shape": list(values.shape)}
    return _decoded(values) if kind == "text" else values.tolist()


def _text(example: Example) -> str:
    text = _told(example) + _decoded(example.values).replace("\n", "⏎")
    return "".join(sign if sign.isprintable() else "·" for sign in text)[: WIDTH - 2]


def _decoded(values: np.ndarray) -> str:
    return values.astype(np.uint8).tobytes().rstrip(b"\0").decode("utf-8", errors="replace")  # zeros fill up a row


def _series(example: Example, column: Mapping[str, Any]) -> str:
    """The first value of every step, in units of its column, as a line of blocks from its lowest to its highest."""
    values = example.values[:, :1] * float(column.get("std", 1)) + float(column.get("mean", 0))
    values = np.expm1(values.astype(np.float64)) if column.get("log") else values
    values = _resized(values, min(len(values), _STEPS))[:, 0]
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    levels = np.minimum((unit * len(_LEVELS)).astype(int), len(_LEVELS) - 1)
    return f"{_told(example)}{''.join(_LEVELS[level] for level in levels)} {low:.3g} to {high:.3g}"[: WIDTH - 2]


def _told(example: Example) -> str:
    return "" if example.label is None else f"{example.label}: "


def _features(example: Example) -> str:
    numbers = " ".join(f"{value:.4g}" for value in example.values.ravel()[:40])
    text = f"{_told(example)}{numbers}"
    return text if len(text) <= WIDTH - 2 else f"{text[: WIDTH - 6]} ..."
