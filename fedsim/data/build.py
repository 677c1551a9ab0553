"""From a corpus to a federation: central split, partition, each client's split."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedsim import seeds
from fedsim.data import preprocess, split
from fedsim.data.check import check
from fedsim.data.corpus import Corpus
from fedsim.data.federation import CentralPart, Federation, Numbered, Part, federate
from fedsim.data.partition import Pool, deal
from fedsim.data.preprocess import Fit, Preparation
from fedsim.errors import DataError, ScenarioError

_LOG = logging.getLogger(__name__)


def build(
    corpus: Corpus,
    seed: int,
    partition: Mapping[str, Any],
    *,
    central: float = 0.2,
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    min_rows: int = 5,
    fit: Fit | None = None,
    without: Sequence[int] = (),
) -> Federation:
    """Split a corpus over clients; the result depends on the arguments alone.

    Args:
        corpus: the data set.
        seed: of the scenario.
        partition: the scenario's table: `kind` and that kind's settings, see `partition.py`.
        central: share of rows or groups held out for the two central sets, where the corpus has no test set
            of its own; 0 leaves them empty.
        shares: of each client's rows in train, validation and test, adding up to 1.
        min_rows: of a client before its own split. Natural clients with fewer are left out, which is logged.
        fit: where a table's numbers get their scales from; "federated" by default.
        without: clients that are left out. They keep their numbers, so that the others draw what they drew with them.

    Raises:
        DataError: the corpus is not sound.
        ScenarioError: settings that these data cannot meet.
    """
    check(corpus)
    held, rows = split.central(corpus, seed, central)
    dealt = deal(partition, _pool(corpus, rows, seed, min_rows))
    names: Sequence[str] = Numbered(len(dealt))
    if partition["kind"] == "natural":
        dealt, names = _large_enough(corpus, dealt, min_rows)
    owned = [rows[positions] for positions in dealt]
    parts = _left(split.clients(corpus, owned, names, seed, shares), without)
    return federate(_ready(corpus, held, parts, names, fit), held, parts, names)


def _left(parts: Sequence[dict[Part, np.ndarray]], without: Sequence[int]) -> Sequence[dict[Part, np.ndarray]]:
    """Every client's rows, and none of those that are left out."""
    if unknown := [client for client in without if client >= len(parts)]:
        raise ScenarioError(f"data.without: there is no client {unknown[0]}; they are 0 to {len(parts) - 1}")
    if without and not any(len(each["train"]) for client, each in enumerate(parts) if client not in without):
        raise ScenarioError("data.without: nobody is left who has train rows; leave fewer clients out")
    none = np.zeros(0, dtype=np.int64)
    return [dict.fromkeys(each, none) if client in without else each for client, each in enumerate(parts)]


def _ready(
    corpus: Corpus,
    held: Mapping[CentralPart, np.ndarray],
    parts: Sequence[Mapping[Part, np.ndarray]],
    names: Sequence[str],
    fit: Fit | None,
) -> Corpus:
    """The corpus with features in place of a table's values."""
    if not corpus.columns:
        if fit is not None:
            raise ScenarioError(f"data.preprocess: data {corpus.name!r} are no table with columns; leave it out")
        return corpus
    known, train = bool(corpus.preprocessing.get("declared", True)), [corpus.x[each["train"]] for each in parts]
    try:
        if fit == "per-client":
            done = preprocess.per_client(corpus.columns, known, dict(zip(names, train, strict=True)))
            x = _each(corpus, held, parts, names, done)
        else:
            fitted = fit is None or fit == "federated"
            done = (
                preprocess.federated(corpus.columns, known, train)
                if fitted
                else preprocess.declared(corpus.columns, known)
            )
            x = done.apply(corpus.x)
    except DataError as error:
        raise DataError(f"data set {corpus.name!r}: {error}") from None
    return replace(corpus, x=x, columns={}, preprocessing={**corpus.preprocessing, **done.stored()})


def _each(
    corpus: Corpus,
    held: Mapping[CentralPart, np.ndarray],
    parts: Sequence[Mapping[Part, np.ndarray]],
    names: Sequence[str],
    done: Preparation,
) -> np.ndarray:
    """[N, F] features, every client's by its own scales."""
    if any(len(rows) for rows in held.values()):
        raise ScenarioError(
            'data.preprocess.kind = "per-client": central rows are no client\'s and have no scales; set '
            "data.split.central = 0, or fit federated ones"
        )
    x = np.zeros((len(corpus), len(done.features)), dtype=np.float32)
    for name, each in zip(names, parts, strict=True):
        rows = np.concatenate(list(each.values()))
        x[rows] = done.apply(corpus.x[rows], name)
    return x


def _pool(corpus: Corpus, rows: np.ndarray, seed: int, min_rows: int) -> Pool:
    return Pool(
        size=len(rows),
        labels=corpus.y[rows] if corpus.labelled else None,
        owners=corpus.clients[rows] if corpus.clients is not None else None,
        min_rows=min_rows,
        rng=seeds.numpy_generator(seed, "partition"),
    )


def _large_enough(corpus: Corpus, dealt: list[np.ndarray], min_rows: int) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Natural clients with at least `min_rows` rows (and one), and their names."""
    kept = [client for client, rows in enumerate(dealt) if len(rows) >= max(min_rows, 1)]
    if not kept:
        raise ScenarioError(f"data.min_rows = {min_rows}: no client of {corpus.name!r} has as many rows; lower it")
    left_out = len(corpus.client_names) - len(kept)
    if left_out:
        _LOG.warning(
            "data.partition: %d of %d natural clients have fewer than %d rows and are left out",
            left_out,
            len(corpus.client_names),
            max(min_rows, 1),
        )
    return [dealt[client] for client in kept], tuple(corpus.client_names[client] for client in kept)
