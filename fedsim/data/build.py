"""From a corpus to a federation: central split, partition, each client's split."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim import seeds
from fedsim.data import split
from fedsim.data.check import check
from fedsim.data.corpus import Corpus
from fedsim.data.federation import Federation, Numbered, federate
from fedsim.data.partition import Pool, deal
from fedsim.errors import ScenarioError

_LOG = logging.getLogger(__name__)


def build(
    corpus: Corpus,
    seed: int,
    partition: Mapping[str, Any],
    *,
    central: float = 0.2,
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    min_rows: int = 5,
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
    return federate(corpus, held, split.clients(corpus, owned, names, seed, shares), names)


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
