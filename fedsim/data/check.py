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
    columns = {"y": corpus.y, "clients": corpus.clients, "groups": corpus.groups, "own_test": corpus.own_test}
    for name, column in columns.items():
        if column is not None and len(column) != rows:
            _fail(corpus, f"has {rows} rows in x but {len(column)} in {name}")
        if column is not None and name != "y" and column.ndim != 1:
            _fail(corpus, f"has {name} of shape {column.shape}; give one value per row")
    if corpus.task == "classification":
        _check_classes(corpus)
    elif corpus.x.dtype != np.uint8 or corpus.y.dtype != np.uint8 or corpus.x.shape != corpus.y.shape:
        _fail(corpus, f"has x of {corpus.x.dtype} and y of {corpus.y.dtype}; next-token needs two uint8 [N, L]")
    if corpus.groups is not None and corpus.groups.dtype.kind not in "iuU":
        _fail(corpus, f"has groups of type {corpus.groups.dtype}; give integers or texts")
    if corpus.groups is None and corpus.group_name:
        _fail(corpus, f"names its groups {corpus.group_name!r} but has none; give groups, one per row")
    if corpus.own_test is not None and corpus.own_test.dtype != np.bool_:
        _fail(corpus, f"has own_test of type {corpus.own_test.dtype}; give booleans")
    if corpus.clients is not None:
        _check_clients(corpus, corpus.clients)


def _check_classes(corpus: Corpus) -> None:
    if corpus.x.dtype != np.float32:
        _fail(corpus, f"has x of type {corpus.x.dtype}; give float32")
    if corpus.y.dtype != np.int64 or corpus.y.ndim != 1:
        _fail(corpus, f"has y of type {corpus.y.dtype} and shape {corpus.y.shape}; give one int64 class per row")
    if corpus.y.min() < 0 or corpus.y.max() >= len(corpus.classes):
        _fail(corpus, f"has classes {corpus.y.min()} to {corpus.y.max()} in y but names {len(corpus.classes)}")
    finite = np.isfinite(corpus.x.reshape(len(corpus), -1).sum(axis=1, dtype=np.float64))
    if not finite.all():
        _fail(corpus, f"has a value in row {int(np.argmin(finite))} of x that is not finite")


def _check_clients(corpus: Corpus, clients: np.ndarray) -> None:
    if clients.dtype.kind not in "iu":
        _fail(corpus, f"has clients of type {clients.dtype}; give integers into client_names")
    dealt = clients if corpus.own_test is None else clients[~corpus.own_test]
    if len(dealt) and (dealt.min() < 0 or dealt.max() >= len(corpus.client_names)):
        _fail(corpus, f"has clients {dealt.min()} to {dealt.max()} but names {len(corpus.client_names)}")


def _fail(corpus: Corpus, reason: str) -> None:
    raise DataError(f"data set {corpus.name!r} {reason}")
