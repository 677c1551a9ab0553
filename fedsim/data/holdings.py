"""What every client of a federation holds: rows of each part and class, or how its targets are spread.

A run keeps this as `partition.json`, so that its report can draw the partition where the data are not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.data.federation import Federation, Part

PARTS: tuple[Part, ...] = ("train", "validation", "test")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a client's targets."""
MOST_CLIENTS, MOST_CELLS = 1000, 100_000
"""Of which a record names rows: clients, and clients times classes."""


def sizes(federation: Federation) -> np.ndarray:
    """[K, 3] rows of every client's parts."""
    return np.stack([federation.sizes(part) for part in PARTS], axis=1)


def label_counts(federation: Federation) -> np.ndarray | None:
    """[K, classes] rows of every client and class, None where rows have no class.

    Raises:
        DataError: there are too many rows to be had at once.
    """
    if not federation.labelled:
        return None
    owner = np.repeat(np.arange(federation.clients), np.diff(federation.offsets))
    shape = federation.clients, len(federation.classes)
    labels = federation.at_once("a table of labels").y
    return np.bincount(owner * shape[1] + labels, minlength=shape[0] * shape[1]).reshape(shape)


def targets(federation: Federation) -> list[np.ndarray] | None:
    """Every client's targets [n], None where they are not one number a row.

    Raises:
        DataError: there are too many rows to be had at once.
    """
    if federation.y.dtype.kind != "f" or federation.y.ndim != 1:
        return None
    y = federation.at_once("a table of targets").y
    return np.split(y, federation.offsets[1:-1])


def record(federation: Federation) -> dict[str, Any]:
    """What a run keeps of its partition.

    Returns:
        corpus; clients and rows in all; `central`, rows of the central sets; `shown`, the numbers of the clients that
        follow, of very many evenly spread ones, with `names`; `parts`, their rows by part; and as far as rows have
        them, and can be had at once, `classes` with `labels` [shown][classes], or `targets`: quantiles, None of no row.
    """
    at_once = federation.source is None
    counts, values = (label_counts(federation), targets(federation)) if at_once else (None, None)
    most = min(MOST_CLIENTS, MOST_CELLS // max(1, len(federation.classes) if counts is not None else 1))
    shown = _spread(federation.clients, max(1, most))
    rows = sizes(federation)
    kept: dict[str, Any] = {
        "corpus": federation.corpus,
        "clients": federation.clients,
        "rows": int(rows.sum()),
        "central": {part: len(both.x) for part, both in federation.central.items()},
        "shown": shown,
        "names": [federation.names[client] for client in shown],
        "parts": {part: rows[shown, place].tolist() for place, part in enumerate(PARTS)},
    }
    if counts is not None:
        kept |= {"classes": list(federation.classes), "labels": counts[shown].tolist()}
    if values is not None:
        kept["targets"] = [_quantiles(values[client]) for client in shown]
    return kept


def _spread(clients: int, most: int) -> list[int]:
    """All clients, or so many evenly spread ones, the first and the last among them."""
    shown: list[int] = np.unique(np.linspace(0, clients - 1, min(clients, most)).round().astype(int)).tolist()
    return shown


def _quantiles(own: np.ndarray) -> Sequence[float] | None:
    return np.quantile(own, QUANTILES).tolist() if len(own) else None
