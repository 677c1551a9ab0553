"""What must hold of every corpus, whoever wrote its source."""

import numpy as np

from fedsim.data.corpus import Corpus
from fedsim.errors import DataError


def check(corpus: Corpus) -> None:
    """Make sure that a corpus is what `Corpus` says.

    Raises:
        DataError: lengths differ, a type is wrong, a number is not finite or out of range.
    """
    rows = len(corpus)
    if not rows:
        _fail(corpus, "has no rows")
    for name in ("y", "clients", "groups", "own_test", "test_units"):
        column = getattr(corpus, name)
        if column is not None and len(column) != rows:
            _fail(corpus, f"has {rows} rows in x but {len(column)} in {name}")
        if column is not None and name != "y" and column.ndim != 1:
            _fail(corpus, f"has {name} of shape {column.shape}; give one value per row")
    if corpus.columns:
        _check_columns(corpus)
    else:
        _check_values(corpus, "x", corpus.x)
    _check_values(corpus, "y", corpus.y)
    if corpus.labelled:
        _check_classes(corpus)
    if corpus.vocabulary is not None:
        _check_tokens(corpus, corpus.vocabulary)
    _check_units(corpus)
    if corpus.own_test is not None and corpus.own_test.dtype != np.bool_:
        _fail(corpus, f"has own_test of type {corpus.own_test.dtype}; give booleans")
    if corpus.clients is not None:
        _check_clients(corpus, corpus.clients)


def _check_values(corpus: Corpus, name: str, values: np.ndarray) -> None:
    """Numbers are float32 and finite, or whole."""
    if values.dtype.kind in "iu":
        return
    if values.dtype != np.float32:
        _fail(corpus, f"has {name} of type {values.dtype}; give float32, or integers")
    finite = np.isfinite(values.reshape(len(corpus), -1).sum(axis=1, dtype=np.float64))
    if not finite.all():
        row = int(np.argmin(finite))
        _fail(corpus, f"has a value in row {row} of {name} that is not finite{_owner(corpus, row)}")


def _check_columns(corpus: Corpus) -> None:
    """Raw values of a table, nan where one is missing; categories by their places."""
    if corpus.x.dtype != np.float64 or corpus.x.shape[1:] != (len(corpus.columns),):
        wanted = f"float64 [rows, {len(corpus.columns)}], raw values of its columns"
        _fail(corpus, f"has x of type {corpus.x.dtype} and shape {list(corpus.x.shape)}; give {wanted}")
    for place, (name, column) in enumerate(corpus.columns.items()):
        values = corpus.x[:, place]
        odd = np.isinf(values)
        if column.categories is not None:
            with np.errstate(invalid="ignore"):
                odd |= (values < 0) | (values >= len(column.categories)) | (values % 1 != 0) & ~np.isnan(values)
        if odd.any():
            row = int(np.argmax(odd))
            what = "the place of no category" if column.categories is not None else "no finite number"
            _fail(corpus, f"has {values[row]:g} in row {row} of column {name!r}, {what}{_owner(corpus, row)}")


def _check_classes(corpus: Corpus) -> None:
    if corpus.y.dtype != np.int64:
        _fail(corpus, f"has y of type {corpus.y.dtype}; give one int64 class per row")
    odd = (corpus.y < 0) | (corpus.y >= len(corpus.classes))
    if odd.any():
        row, text = int(np.argmax(odd)), f"has classes {corpus.y.min()} to {corpus.y.max()} in y but names "
        where = f"; the first beyond is in row {row}{_owner(corpus, row)}"
        _fail(corpus, f"{text}{len(corpus.classes)}{where}")


def _check_units(corpus: Corpus) -> None:
    """What stays together."""
    for name, units in {"groups": corpus.groups, "test_units": corpus.test_units}.items():
        if units is not None and units.dtype.kind not in "iuU":
            _fail(corpus, f"has {name} of type {units.dtype}; give integers or texts")
    if corpus.groups is None and corpus.group_name:
        _fail(corpus, f"names its groups {corpus.group_name!r} but has none; give groups, one per row")
    if corpus.own_test is None and corpus.test_units is not None:
        _fail(corpus, "has test_units but no own_test; say which rows are its test set")


def _check_tokens(corpus: Corpus, vocabulary: int) -> None:
    flat = corpus.x.reshape(len(corpus), -1)
    if corpus.x.dtype.kind not in "iu":
        _fail(corpus, f"has a vocabulary and x of type {corpus.x.dtype}; give integers")
    if flat.size and (flat.min() < 0 or flat.max() >= vocabulary):
        row = int(np.argmax(((flat < 0) | (flat >= vocabulary)).any(axis=1)))
        text = f"has tokens {flat.min()} to {flat.max()} and a vocabulary of {vocabulary}"
        _fail(corpus, f"{text}; the first beyond is in row {row}{_owner(corpus, row)}")


def _owner(corpus: Corpus, row: int) -> str:
    """Whose a row is, where it is known."""
    if corpus.clients is None or not 0 <= corpus.clients[row] < len(corpus.client_names):
        return ""
    return f", of client {corpus.client_names[corpus.clients[row]]!r}"


def _check_clients(corpus: Corpus, clients: np.ndarray) -> None:
    if clients.dtype.kind not in "iu":
        _fail(corpus, f"has clients of type {clients.dtype}; give integers into client_names")
    dealt = clients if corpus.own_test is None else clients[~corpus.own_test]
    if len(dealt) and (dealt.min() < 0 or dealt.max() >= len(corpus.client_names)):
        _fail(corpus, f"has clients {dealt.min()} to {dealt.max()} but names {len(corpus.client_names)}")


def _fail(corpus: Corpus, reason: str) -> None:
    raise DataError(f"data set {corpus.name!r} {reason}")
