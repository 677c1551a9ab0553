"""Arrays that a Python caller gives, as a corpus: (x, y, client)."""

import logging

import numpy as np

from fedsim.data.corpus import Corpus
from fedsim.errors import DataError

_LOG = logging.getLogger(__name__)
NAME = "arrays"
"""What such data are called."""


def corpus_of(
    x: np.ndarray, y: np.ndarray, clients: np.ndarray | None = None, *, name: str = NAME, where: str = NAME
) -> Corpus:
    """A corpus of arrays; what y holds says what is learned.

    * y [N] integers, booleans or texts: classes, in sorted order of their values. That is logged, since it takes names
      from clients' rows.
    * y [N] or [N, T] floats: numbers to be predicted.
    * y [N, C] booleans: any number of C labels for every row.
    * x and y [N, L] of uint8: windows of bytes and their next bytes.

    Args:
        x: [N, ...] numbers, which become float32.
        y: as above.
        clients: [N] whose row each is, by name or number; natural clients then are there.
        name: of the corpus.
        where: at the beginning of messages.

    Raises:
        DataError: an array is of another kind, or their lengths differ.
    """
    x, y = _array("x", x, where), _array("y", y, where)
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise DataError(f"{where}: array x has type {x.dtype} and shape {list(x.shape)}; give numbers [rows, ...]")
    owners = _array("client", clients, where) if clients is not None else None
    for key, values in {"y": y, "client": owners}.items():
        if values is not None and (not values.ndim or len(values) != len(x)):
            raise DataError(f"{where}: x has {len(x)} rows and {key} has shape {list(values.shape)}; give one for each")
    if owners is not None and (owners.ndim != 1 or owners.dtype.kind not in "iuU"):
        raise DataError(f"{where}: array client has type {owners.dtype}; give one integer or text per row")
    task, targets, classes = _targets(x, y, where)
    if task != "next-token":
        with np.errstate(over="ignore"):  # which is told with the row
            x = x.astype(np.float32)
    client_names, numbers = np.unique(owners, return_inverse=True) if owners is not None else ((), None)
    return Corpus(
        name=name,
        task=task,
        x=x,
        y=targets,
        classes=classes,
        preprocessing={"kind": "none"},
        clients=numbers,
        client_names=tuple(map(str, client_names)),
    )


def _array(key: str, values: object, where: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: {key} is no array, its rows differ in length; give rows of one shape") from error


def _targets(x: np.ndarray, y: np.ndarray, where: str) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """What is learned, its targets, and the names of classes."""
    if x.dtype == y.dtype == np.uint8 and x.ndim == 2 and x.shape == y.shape:
        return "next-token", y, tuple(map(str, range(256)))
    if y.dtype.kind == "f" and y.ndim in (1, 2):
        return "regression", y.astype(np.float32), ()
    if y.dtype.kind == "b" and y.ndim == 2:
        return "multi-label", y.astype(np.float32), tuple(map(str, range(y.shape[1])))
    if y.ndim == 1 and y.dtype.kind in "iubU":
        values, classes = np.unique(y, return_inverse=True)
        _LOG.warning("%s: its classes were taken from the rows of all clients", where)
        return "classification", classes.astype(np.int64), tuple(map(str, values))
    raise DataError(
        f"{where}: array y has type {y.dtype} and shape {list(y.shape)}; give one integer or text per row, or floats "
        "to be predicted, or booleans [rows, labels]"
    )
