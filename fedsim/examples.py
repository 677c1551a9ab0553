"""A few of a client's rows to look at: images as thumbnails, text as lines, features as numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsim.data.federation import Federation, Part
from fedsim.errors import DataError
from fedsim.progress import WIDTH

Kind = Literal["image", "text", "features"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
_SHADES = " ░▒▓█"
_NARROW = 16  # pixels up to which one is two columns wide, so that it is about square
_COLUMNS = 28  # of a wider image's thumbnail
_GAP = 2
_SHOWN = {"image": 4, "text": 3, "features": 3}
_DRAWN = 8  # images of a part in a picture


class Example(NamedTuple):
    """One row.

    Attributes:
        part, row: where it is: the number of a row within the client's part.
        label: the name of its class; None for text.
        values: [...] as the model takes them.
    """

    part: Part
    row: int
    label: str | None
    values: np.ndarray


def kind_of(federation: Federation) -> Kind:
    """What the rows are: float arrays with height and width are images."""
    if federation.task == "next-token":
        return "text"
    return "image" if federation.x.ndim == 4 else "features"


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
    if kind == "image":
        return [f"{part}: numbers and classes of some rows", *_thumbnails(shown)]
    lines = [_text(each) if kind == "text" else _features(each) for each in shown]
    what = "beginnings of some windows" if kind == "text" else "class and features of some rows"
    return [f"{part}: {what}", *(f"  {line}" for line in lines)]


def example_data(federation: Federation, shown: Sequence[Example]) -> list[dict[str, Any]]:
    """For programs: text as text, features as numbers, an image as where it is and its shape."""
    kind = kind_of(federation)
    return [
        {"part": each.part, "row": each.row, "label": each.label, kind: _plain(kind, each.values)} for each in shown
    ]


def picture(federation: Federation, client: int, path: Path) -> None:
    """Draw some of a client's images, a line of them for each part.

    Raises:
        DataError: the rows are no images, another suffix than .svg, .png or .pdf, or the file cannot be written.
    """
    if (kind := kind_of(federation)) != "image":
        raise DataError(f"--picture draws images, and the rows of {federation.corpus} are {kind}; leave it out")
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
        for panel, image, each in zip(line, _scaled([each.values for each in found]), found, strict=False):
            panel.imshow(image if image.ndim == 3 else 1 - image, cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{each.part} {each.row}: {each.label}", fontsize=7)
    save(figure, path)


def _of_part(federation: Federation, client: int, part: Part, count: int) -> list[Example]:
    """Rows of one part: the first of every class, then others, in order."""
    rows = federation.rows(client, part)
    if federation.task == "next-token":
        return [Example(part, row, None, rows.x[row]) for row in range(min(count, len(rows.x)))]
    _, first = np.unique(rows.y, return_index=True)
    others = np.setdiff1d(np.arange(len(rows.y)), first)
    chosen = sorted([*np.sort(first), *others][:count])
    return [Example(part, int(row), str(federation.classes[rows.y[row]]), rows.x[row]) for row in chosen]


def _scaled(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """[C, H, W] images as [H, W], or [H, W, 3] in colour, from 0 to 1 over all of them together."""
    stacked = np.stack(images).astype(np.float64)
    low, high = float(stacked.min()), float(stacked.max())
    unit = (stacked - low) / (high - low) if high > low else np.zeros_like(stacked)
    return [image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0) for image in unit]


def _thumbnails(shown: Sequence[Example]) -> list[str]:
    """Thumbnails side by side with their class under them, as many as fit."""
    grey = [image.mean(axis=2) if image.ndim == 3 else image for image in _scaled([each.values for each in shown])]
    drawn = [blocks(image) for image in grey]
    width = len(drawn[0][0])
    abreast = max(1, (WIDTH - 2 + _GAP) // (width + _GAP))
    lines: list[str] = []
    for start in range(0, len(drawn), abreast):
        some = drawn[start : start + abreast]
        labels = [f"{each.row}: {each.label}"[:width].ljust(width) for each in shown[start : start + abreast]]
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
    if kind == "image":
        return {"shape": list(values.shape)}
    return _decoded(values) if kind == "text" else values.tolist()


def _text(example: Example) -> str:
    text = _decoded(example.values).replace("\n", "⏎")
    return "".join(sign if sign.isprintable() else "·" for sign in text)[: WIDTH - 2]


def _decoded(values: np.ndarray) -> str:
    return values.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def _features(example: Example) -> str:
    numbers = " ".join(f"{value:.4g}" for value in example.values.ravel()[:40])
    text = f"{example.label}: {numbers}"
    return text if len(text) <= WIDTH - 2 else f"{text[: WIDTH - 6]} ..."
