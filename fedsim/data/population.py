"""Clients whose rows are found when they are asked for: a million of them cost a few bytes each.

A data source that gives a `Population` instead of a corpus is already spread over clients. Nothing of the size of all
rows exists anywhere: a worker asks for the rows of the client that it trains.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fedsim import seeds
from fedsim.data.check import check
from fedsim.data.corpus import Corpus
from fedsim.data.federation import CentralPart, Federation, Numbered, Rows
from fedsim.data.preprocess import Fit, Preparation, declared, federated
from fedsim.data.schema import Columns
from fedsim.data.split import halves
from fedsim.errors import DataError, ScenarioError, one_line

_LOG = logging.getLogger(__name__)
_TOLD_APART_BY = 64
"""Clients whose rows the digest of a population reads."""


@dataclass(frozen=True)
class Population:
    """A data set as its clients hold it.

    Attributes:
        name: as in scenarios.
        task: what is learned from it.
        sizes: [K] int, rows of every client.
        rows: client number -> all its rows, as many as `sizes` says, with types and shapes as in `Corpus`. In every
            process and at every call the same.
        classes: names of the classes; for next-token tasks the 256 byte values.
        preprocessing: as in `Corpus`.
        test: rows of no client, for the two central sets; None where there are none.
        vocabulary, columns: as in `Corpus`. Where there are columns, x is raw float64 [n, C], see `prepared`.
    """

    name: str
    task: str
    sizes: np.ndarray
    rows: Callable[[int], Rows]
    classes: Sequence[str]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    test: Rows | None = None
    vocabulary: int | None = None
    columns: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        return int(np.sum(self.sizes))


class Source:
    """A federation's rows out of a population, which every process opens for itself.

    What is pickled is how to open it, not what it holds.
    """

    def __init__(self, opening: Callable[[], Population], seed: int) -> None:
        """Rows of the population that `opening` gives; `seed` is the scenario's."""
        self._opening, self._seed = opening, seed
        self._population: Population | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_population": None}

    @property
    def population(self) -> Population:
        """The population, opened once in this process."""
        if self._population is None:
            self._population = self._opening()
        return self._population

    def __call__(self, number: int, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of a client's, in an order that follows from seed and client; as in the set, sorted.

        Args:
            number: the client's, in the population.
            start, stop: of the places in that order.

        Raises:
            DataError: the population has no such rows to give, or they are not sound.
        """
        rows = sound(self.population, number)
        if (start, stop) == (0, len(rows.x)):
            return rows
        order = seeds.numpy_generator(self._seed, "parts", 0, number).permutation(len(rows.x))
        places = np.sort(order[start:stop])
        return Rows(rows.x[places], rows.y[places])


def spread(
    opening: Callable[[], Population], seed: int, *, central: float, shares: tuple[float, float, float], min_rows: int
) -> Federation:
    """The federation of a population.

    Each client's rows fall into train, validation and test by chance, as many as `shares` say: what is no whole number
    is rounded up or down by one draw per client, so that over many clients the shares are exact. A client with rows
    trains on one at least. The population's own test rows are halved into the central sets, each row by its hash.

    Args:
        opening: gives the population; called here and once in every worker.
        seed: of the scenario.
        central: must be 0, or the population has test rows of its own.
        shares: of each client's rows in train, validation and test, adding up to 1.
        min_rows: of a client; those with fewer (or none) are left out, which is logged.

    Raises:
        DataError: the population is not sound.
        ScenarioError: settings that it cannot meet.
    """
    source = Source(opening, seed)
    population = source.population
    cut = _cut(population, seed, shares, min_rows)
    clients, numbers = len(population.sizes), None
    if left_out := clients - len(cut.kept):
        least = max(min_rows, 1)
        _LOG.warning("data: %d of %d clients have fewer than %d rows and are left out", left_out, clients, least)
        numbers = cut.kept
    if population.test is None and central:
        raise ScenarioError(
            f"data.split.central = {central}: data {population.name!r} come client by client and have no test rows of "
            "their own; set it to 0"
        )
    first = sound(population, int(cut.kept[0]))
    offsets = np.concatenate([[0], np.cumsum(cut.sizes)])
    return Federation(
        x=first.x[:0],
        y=first.y[:0],
        offsets=offsets,
        train_ends=offsets[:-1] + cut.train,
        validation_ends=offsets[:-1] + cut.held_in,
        central=_central(population, first, seed),
        names=Numbered(len(cut.kept), numbers),
        corpus=population.name,
        task=population.task,
        classes=tuple(population.classes),
        preprocessing=population.preprocessing,
        source=source,
        numbers=numbers,
        known_digest=_digest(population, cut.kept),
        vocabulary=population.vocabulary,
    )


def preparation_of(
    population: Population, seed: int, fit: Fit | None, *, shares: tuple[float, float, float], min_rows: int
) -> Preparation:
    """How the columns of a population become features.

    Args:
        population: with columns.
        seed, shares, min_rows: as for `spread`.
        fit: where scales come from; "federated" by default, for which every client's train rows are read, twice at
            most, and nothing but sums is kept.

    Raises:
        ScenarioError: every client is to have scales of its own, which would be as many as there are clients.
        DataError: the population is not sound, or a column cannot be standardised.
    """
    known = bool(population.preprocessing.get("declared", True))
    if fit == "constants":
        return declared(population.columns, known)
    if fit == "per-client":
        raise ScenarioError(
            f'data.preprocess.kind = "per-client": data {population.name!r} come client by client, and the scales of '
            'all of them are not kept; take "constants" or "federated"'
        )
    rows = _TrainRows(Source(lambda: population, seed), _cut(population, seed, shares, min_rows))
    return federated(population.columns, known, rows)


def prepared(population: Population, preparation: Preparation) -> Population:
    """A population of features in place of a table's values."""

    def ready(rows: Rows, name: str) -> Rows:
        try:
            return Rows(preparation.apply(rows.x), rows.y)
        except DataError as error:
            raise DataError(f"data set {name!r}: {error}") from None

    test = population.test
    if test is not None:
        _check_rows(population, name := f"{population.name}, test rows", test)
        test = ready(test, name)
    return replace(
        population,
        rows=lambda client: ready(sound(population, client), f"{population.name}, client {client}"),
        test=test,
        columns={},
        preprocessing={**population.preprocessing, **preparation.stored()},
    )


class _Cut(NamedTuple):
    """Numbers of the clients that are not left out, and how many rows each has: all, train, train and validation."""

    kept: np.ndarray
    sizes: np.ndarray
    train: np.ndarray
    held_in: np.ndarray


class _TrainRows:
    """[n, C] every client's train rows, read anew each time that one goes through them."""

    def __init__(self, source: Source, cut: _Cut) -> None:
        self._source, self._cut = source, cut

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, stop in zip(self._cut.kept.tolist(), self._cut.train.tolist(), strict=True):
            yield self._source(number, 0, stop).x


def _cut(population: Population, seed: int, shares: tuple[float, float, float], min_rows: int) -> _Cut:
    """How a population's clients are split; raises as `spread`."""
    whole = _sizes(population)
    kept = np.flatnonzero(whole >= max(min_rows, 1))
    if not len(kept):
        raise ScenarioError(f"data.min_rows = {min_rows}: no client of {population.name!r} has as many rows; lower it")
    sizes = whole[kept]
    draws = seeds.numpy_generator(seed, "parts").random(len(whole))[kept]
    train = np.maximum(np.floor(shares[0] * sizes + draws).astype(np.int64), 1)
    held_in = np.maximum(np.floor((1 - shares[2]) * sizes + draws).astype(np.int64), train)
    return _Cut(kept, sizes, np.minimum(train, sizes), np.minimum(held_in, sizes))


def _sizes(population: Population) -> np.ndarray:
    sizes = np.asarray(population.sizes)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not len(sizes):
        raise DataError(f"data set {population.name!r} has sizes {sizes.dtype} {list(sizes.shape)}; give [K] integers")
    if int(sizes.min()) < 0:
        raise DataError(f"data set {population.name!r}: client {sizes.argmin()} has {sizes.min()} rows")
    return sizes.astype(np.int64, copy=False)


def sound(population: Population, number: int) -> Rows:
    """All rows of a client, checked.

    Raises:
        DataError: they are not what was declared.
    """
    name, size = f"{population.name}, client {number}", int(population.sizes[number])
    try:
        x, y = population.rows(number)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"data set {name!r}: its rows cannot be had: {one_line(error)}") from error
    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
        raise DataError(f"data set {name!r}: its rows are {type(x).__name__} and {type(y).__name__}; give NumPy arrays")
    if len(x) != size:
        raise DataError(f"data set {name!r} has {len(x)} rows, and {size} were declared")
    if size:
        _check_rows(population, name, Rows(x, y))
    return Rows(np.ascontiguousarray(x), np.ascontiguousarray(y))  # bits depend on how rows lie


def _check_rows(population: Population, name: str, rows: Rows) -> None:
    """Make sure that rows are what a corpus' would be."""
    vocabulary, columns = population.vocabulary, population.columns
    check(Corpus(name, population.task, *rows, population.classes, vocabulary=vocabulary, columns=columns))


def _central(population: Population, first: Rows, seed: int) -> dict[CentralPart, Rows]:
    test = population.test
    if test is None:
        return {"validation": Rows(first.x[:0], first.y[:0]), "test": Rows(first.x[:0], first.y[:0])}
    name = f"{population.name}, test rows"
    _check_rows(population, name, test)
    if test.x.shape[1:] != first.x.shape[1:]:
        raise DataError(f"data set {name!r} have shape {test.x.shape[1:]}, and those of clients {first.x.shape[1:]}")
    chosen = halves(np.arange(len(test.x)), seed)
    return {"validation": Rows(test.x[chosen], test.y[chosen]), "test": Rows(test.x[~chosen], test.y[~chosen])}


def _digest(population: Population, kept: np.ndarray) -> str:
    """SHA-256 over who is left, and the rows of some of them, evenly spread."""
    some = kept[np.unique(np.linspace(0, len(kept) - 1, _TOLD_APART_BY).astype(np.int64))]
    rows = [array for number in some.tolist() for array in sound(population, number)]
    total = hashlib.sha256(population.name.encode())
    for array in (kept, *rows):
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
