"""Which rows are held out: centrally before partition, and from each client after it.

A row's part follows from SHA-256 of (seed, purpose, group), or its row number where the corpus has no
groups. It depends on nothing else, so all rows of a group lie in one part, at every client.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fedsim import seeds
from fedsim.data.corpus import Corpus
from fedsim.data.federation import CentralPart, Part
from fedsim.errors import DataError, ScenarioError


def central(corpus: Corpus, seed: int, share: float) -> tuple[dict[CentralPart, np.ndarray], np.ndarray]:
    """Hold out the central validation and test set.

    A corpus with a test set of its own has that set halved: its units where it names them, half of their number; else
    its groups or rows, each by its hash. Any other gives up a share of its rows or groups,
    halved alike.

    Args:
        corpus: the data set.
        seed: of the scenario.
        share: of rows or groups in [0, 1), not used where the corpus has a test set of its own.

    Returns:
        The two sets' row numbers, and the row numbers left for the clients; all sorted.

    Raises:
        DataError: a group lies both inside and outside the corpus' own test set.
        ScenarioError: no row is left for the clients.
    """
    if corpus.own_test is None:
        place = _fractions(units(corpus), seed, "central")
        validation, held = place < share / 2, place < share
    else:
        _check_groups(corpus, corpus.own_test)
        validation, held = corpus.own_test & _half(corpus, corpus.own_test, seed), corpus.own_test
    rest = np.flatnonzero(~held)
    if not len(rest):
        raise ScenarioError(f"data.split.central = {share}: none of the {len(corpus)} rows is left for clients")
    return {"validation": np.flatnonzero(validation), "test": np.flatnonzero(held & ~validation)}, rest


def clients(
    corpus: Corpus, owned: Sequence[np.ndarray], names: Sequence[str], seed: int, shares: tuple[float, float, float]
) -> list[dict[Part, np.ndarray]]:
    """Split every client's rows into train, validation and test.

    A client left without train rows takes its group (or row) of lowest hash that no other client holds.

    Args:
        corpus: the data set.
        owned: for every client its row numbers, sorted.
        names: of the clients, for messages.
        seed: of the scenario.
        shares: of train, validation and test, adding up to 1.

    Returns:
        For every client the sorted row numbers of its three parts.

    Raises:
        ScenarioError: a client has rows, but none that it could train on.
    """
    lengths = [len(rows) for rows in owned]
    owner = np.repeat(np.arange(len(owned)), lengths)
    unit = units(corpus)[np.concatenate(owned)]
    place = _fractions(unit, seed, "client")
    part = np.searchsorted(np.cumsum(shares)[:2], place, side="right")
    lacking = np.flatnonzero((np.bincount(owner[part == 0], minlength=len(owned)) == 0) & (np.array(lengths) > 0))
    for client, chosen in _rescued(lacking, owner, unit, place):
        if chosen is None:
            raise ScenarioError(
                f"client {names[client]!r}: none of its {lengths[client]} rows falls into train, and other clients "
                "hold all of its groups; raise data.split.train or change data.partition"
            )
        part[(owner == client) & (unit == chosen)] = 0
    ends = np.cumsum(lengths)[:-1]
    return [
        {"train": rows[mine == 0], "validation": rows[mine == 1], "test": rows[mine == 2]}
        for rows, mine in zip(owned, np.split(part, ends), strict=True)
    ]


def halves(keys: np.ndarray, seed: int) -> np.ndarray:
    """[n] bool: which of a test set's rows are for validation, by their keys; the others are for the test."""
    return _fractions(keys, seed, "central") < 0.5


def _half(corpus: Corpus, own_test: np.ndarray, seed: int) -> np.ndarray:
    """[N] bool: which rows of a corpus' own test set are for validation; what it says of other rows counts for nothing.

    Of few units chance might give one of the sets all, so half of their number is taken, those of lowest hash.
    """
    if corpus.test_units is None:
        return halves(units(corpus), seed)
    distinct = np.unique(corpus.test_units[own_test])
    order = np.argsort(_fractions(distinct, seed, "central"))
    return np.isin(corpus.test_units, distinct[order[: len(distinct) // 2]])


def units(corpus: Corpus) -> np.ndarray:
    """[N] what stays together: every row's group, or the row's own number."""
    return np.arange(len(corpus)) if corpus.groups is None else corpus.groups


def _fractions(keys: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """[n] the place in [0, 1) of every row's key."""
    distinct, position = np.unique(keys, return_inverse=True)
    places = np.array([seeds.fraction(seed, purpose, key) for key in distinct.tolist()])
    return places[position]


def _rescued(
    lacking: np.ndarray, owner: np.ndarray, unit: np.ndarray, place: np.ndarray
) -> Iterator[tuple[int, int | str | None]]:
    """For every client without train rows the unit that is to become its train part."""
    if not len(lacking):
        return
    _, position = np.unique(unit, return_inverse=True)
    lowest = np.full(position.max() + 1, len(owner))
    highest = np.zeros_like(lowest)
    np.minimum.at(lowest, position, owner)
    np.maximum.at(highest, position, owner)
    alone = (lowest == highest)[position]
    for client in lacking.tolist():
        candidates = np.flatnonzero((owner == client) & alone)
        yield client, unit[candidates[np.argmin(place[candidates])]].item() if len(candidates) else None


def _check_groups(corpus: Corpus, own_test: np.ndarray) -> None:
    if corpus.groups is None:
        return
    both = np.intersect1d(corpus.groups[own_test], corpus.groups[~own_test])
    if len(both):
        raise DataError(
            f"data set {corpus.name!r}: group {both[0].item()!r} has rows inside and outside the set's own test set; "
            "a group must stay in one part"
        )
