"""Laws of the splits: what is held out depends on (seed, row or group) alone, and nobody is left without train rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import seeds
from fedsim.data import split
from fedsim.data.corpus import Corpus
from fedsim.errors import DataError, ScenarioError

SHARES = (0.7, 0.15, 0.15)


def corpus(rows: int = 5000, **changes: Any) -> Corpus:
    plain = Corpus(
        name="toy",
        task="classification",
        x=np.zeros((rows, 1), dtype=np.float32),
        y=np.arange(rows) % 2,
        classes=("a", "b"),
    )
    return replace(plain, **changes)


def alternating(rows: int, clients: int) -> list[np.ndarray]:
    return [np.arange(start, rows, clients) for start in range(clients)]


def test_shares_are_kept() -> None:
    """Each part's size lies within five standard deviations of its share."""
    toy = corpus(20_000)
    held, rest = split.central(toy, seed=3, share=0.2)
    parts = split.clients(toy, [rest], ["0"], 3, SHARES)[0]
    assert sorted(np.concatenate([*held.values(), *parts.values()]).tolist()) == list(range(20_000))
    for rows, total, share in (
        (held["validation"], 20_000, 0.1),
        (held["test"], 20_000, 0.1),
        (parts["train"], len(rest), 0.7),
        (parts["validation"], len(rest), 0.15),
        (parts["test"], len(rest), 0.15),
    ):
        assert abs(len(rows) - total * share) < 5 * np.sqrt(total * share * (1 - share))


def test_a_place_is_the_published_hash() -> None:
    """The rule in the documentation, row by row."""
    toy = corpus(300)
    held, rest = split.central(toy, seed=9, share=0.4)
    places = [seeds.fraction(9, "central", row) for row in range(300)]
    assert held["validation"].tolist() == [row for row in range(300) if places[row] < 0.2]
    assert held["test"].tolist() == [row for row in range(300) if 0.2 <= places[row] < 0.4]
    parts = split.clients(toy, [rest], ["0"], 9, SHARES)[0]
    assert parts["train"].tolist() == [row for row in rest.tolist() if seeds.fraction(9, "client", row) < 0.7]


@given(st.lists(st.integers(0, 30), min_size=60, max_size=300), st.integers(0, 10**6))
def test_a_group_stays_together_everywhere(groups: list[int], seed: int) -> None:
    """Centrally and over all clients, whoever holds it: all rows of a person lie in one part."""
    toy = corpus(len(groups), groups=np.array(groups))
    held, rest = split.central(toy, seed, 0.2)
    assert not np.intersect1d(toy.groups[held["test"]], toy.groups[held["validation"]]).size  # type: ignore[index]
    assert not np.intersect1d(toy.groups[rest], toy.groups[np.concatenate(list(held.values()))]).size  # type: ignore[index]
    owned = [rest[start::3] for start in range(3)]
    try:
        parts = split.clients(toy, owned, "abc", seed, SHARES)
    except ScenarioError:
        return
    place: dict[int, set[str]] = {}
    for client in parts:
        assert len(client["train"]) or not sum(map(len, client.values()))
        for part, rows in client.items():
            for row in rows.tolist():
                place.setdefault(groups[row], set()).add(part)
    assert all(len(found) == 1 for found in place.values())


def test_texts_name_groups_too() -> None:
    toy = corpus(400, groups=np.array([f"person {row % 40}" for row in range(400)]))
    held, rest = split.central(toy, 1, 0.2)
    assert len(held["test"]) % 10 == 0
    assert len(rest) % 10 == 0


def test_own_test_set_is_halved_and_nothing_else_is_held_out() -> None:
    own = np.arange(4000) >= 3000
    held, rest = split.central(corpus(4000, own_test=own), 1, 0.2)
    assert rest.tolist() == list(range(3000))
    assert sorted([*held["validation"].tolist(), *held["test"].tolist()]) == list(range(3000, 4000))
    assert 400 < len(held["test"]) < 600


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(0, 10**6))
def test_a_person_who_never_trains_is_in_one_of_the_central_sets(people: list[int], seed: int) -> None:
    """Else a round would be chosen by rows of the persons whose figures it then has. Of n persons n // 2 validate."""
    own, named = np.arange(3 * len(people)) % 3 == 0, np.repeat(people, 3).astype(str)
    toy = corpus(len(own), own_test=own, test_units=np.where(own, named, "somebody"))
    held, rest = split.central(toy, seed, 0.2)
    validation, test = (set(named[held[part]].tolist()) for part in ("validation", "test"))
    assert rest.tolist() == np.flatnonzero(~own).tolist() and len(rest) + sum(map(len, held.values())) == len(own)
    assert not validation & test and len(validation) == len(set(people)) // 2
    assert validation | test == set(map(str, people))


def test_a_group_across_the_own_test_set_is_refused() -> None:
    toy = corpus(10, own_test=np.arange(10) >= 5, groups=np.arange(10) % 9)
    with pytest.raises(DataError, match="group 0 has rows inside and outside"):
        split.central(toy, 1, 0.2)


def test_nothing_central_when_the_share_is_zero() -> None:
    held, rest = split.central(corpus(100), 1, 0.0)
    assert [len(rows) for rows in held.values()] == [0, 0]
    assert len(rest) == 100


def test_nobody_is_left_without_train_rows() -> None:
    """With a train share near 0 everyone takes exactly the row of lowest hash."""
    toy = corpus(60)
    parts = split.clients(toy, alternating(60, 12), [str(k) for k in range(12)], 5, (1e-9, 0.5, 0.5))
    for client, owned in zip(parts, alternating(60, 12), strict=True):
        assert client["train"].tolist() == [min(owned.tolist(), key=lambda row: seeds.fraction(5, "client", row))]


def test_a_rescued_group_moves_whole_and_is_nobody_elses() -> None:
    groups = np.array([0, 0, 1, 1, 1, 0, 2, 2])  # client a holds 0 and 1, client b 0 and 2
    toy = corpus(8, groups=groups)
    a, b = split.clients(toy, [np.arange(5), np.arange(5, 8)], "ab", 1, (1e-9, 0.5, 0.5))
    assert a["train"].tolist() == [2, 3, 4]
    assert b["train"].tolist() == [6, 7]


def test_a_client_that_shares_all_its_groups_is_an_error_that_names_it() -> None:
    toy = corpus(4, groups=np.zeros(4, dtype=int))
    with pytest.raises(ScenarioError, match="client 'anna': none of its 2 rows"):
        split.clients(toy, alternating(4, 2), ["anna", "ben"], 1, (1e-9, 0.5, 0.5))


def test_an_empty_client_stays_empty() -> None:
    toy = corpus(4)
    parts = split.clients(toy, [np.arange(4), np.arange(0)], "ab", 1, SHARES)
    assert [len(rows) for rows in parts[1].values()] == [0, 0, 0]
