"""Laws of partitions: every row has one owner, nobody has too few, and each kind keeps its own promise."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.partition import KINDS, Pool, deal
from fedsim.errors import ScenarioError


def pool(labels: np.ndarray | None, min_rows: int = 0, owners: np.ndarray | None = None, seed: int = 0) -> Pool:
    sized = labels if labels is not None else owners
    return Pool(1000 if sized is None else len(sized), labels, owners, min_rows, np.random.default_rng(seed))


def balanced(rows: int = 1000, classes: int = 10) -> np.ndarray:
    return np.arange(rows) % classes


label_arrays = st.lists(st.integers(0, 6), min_size=40, max_size=200).map(np.array)


@st.composite
def settings_of_a_kind(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(set(KINDS) - {"natural"})))
    settings: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
        "shards": {"shards": st.integers(1, 3)},
        "dirichlet": {"alpha": st.floats(1e-3, 1e3)},
        "labels": {"labels_per_client": st.integers(1, 7)},
        "quantity": {"alpha": st.floats(0, 5)},
        "iid": {},
    }
    return {"kind": kind, "clients": draw(st.integers(1, 12))} | {
        key: draw(value) for key, value in settings[kind].items()
    }


@given(settings_of_a_kind(), label_arrays, st.integers(0, 3), st.integers(0, 2**32))
def test_every_row_has_one_owner_and_everyone_enough(
    settings: Mapping[str, Any], labels: np.ndarray, min_rows: int, seed: int
) -> None:
    """A partition either says why it is impossible or is a permutation that keeps min_rows."""
    try:
        owned = deal(settings, pool(labels, min_rows, seed=seed))
    except ScenarioError as error:
        assert str(error).startswith("data.partition")
        return
    assert len(owned) == settings["clients"]
    assert sorted(np.concatenate(owned).tolist()) == list(range(len(labels)))
    assert all((np.diff(rows) > 0).all() for rows in owned)
    assert min(map(len, owned)) >= min_rows


@given(label_arrays, st.integers(1, 10), st.integers(1, 4))
def test_shards_hold_few_labels(labels: np.ndarray, clients: int, shards: int) -> None:
    """A shard of a sorted list is contiguous, so the borders between labels can only cut so many shards in two."""
    owned = deal({"kind": "shards", "clients": clients, "shards": shards}, pool(labels))
    held = sum(len(set(labels[rows].tolist())) for rows in owned)
    assert held <= clients * shards + len(set(labels.tolist())) - 1


def test_two_shards_of_balanced_labels_are_at_most_two_labels() -> None:
    """McMahan 2017: 100 clients with two shards of 300 of MNIST's sorted rows; equal labels cut no shard."""
    labels = balanced(6000)
    owned = deal({"kind": "shards", "clients": 100}, pool(labels))
    assert {len(rows) for rows in owned} == {60}
    assert max(len(set(labels[rows].tolist())) for rows in owned) == 2


@pytest.mark.parametrize(("clients", "per_client"), [(5, 2), (10, 1), (10, 2), (7, 3), (30, 10)])
def test_labels_kind_gives_exactly_k_labels_and_shares_them_evenly(clients: int, per_client: int) -> None:
    labels = balanced()
    owned = deal({"kind": "labels", "clients": clients, "labels_per_client": per_client}, pool(labels))
    counts = np.array([np.bincount(labels[rows], minlength=10) for rows in owned])
    assert ((counts > 0).sum(axis=1) == per_client).all()
    owners = (counts > 0).sum(axis=0)
    assert owners.max() - owners.min() <= 1
    for label in range(10):
        held = counts[counts[:, label] > 0, label]
        assert held.max() - held.min() <= 1


def test_dirichlet_goes_from_one_owner_per_label_to_iid() -> None:
    """alpha -> 0 gives a label to one client, alpha -> infinity the same share to all."""
    labels = balanced()

    def largest_share(alpha: float) -> float:
        owned = deal({"kind": "dirichlet", "clients": 5, "alpha": alpha}, pool(labels))
        return float(np.mean(np.max([np.bincount(labels[rows], minlength=10) / 100 for rows in owned], axis=0)))

    assert largest_share(1e-9) == 1.0
    assert largest_share(1e-3) > 0.95
    assert largest_share(1e-3) > largest_share(0.3) > largest_share(1e6)
    assert largest_share(1e6) == pytest.approx(0.2, abs=0.011)


def test_dirichlet_shares_have_the_dirichlet_variance() -> None:
    """A share of Dirichlet(alpha, K) has variance (1/K)(1 - 1/K) / (K alpha + 1)."""
    labels, clients, alpha = balanced(40_000, 400), 4, 0.7
    owned = deal({"kind": "dirichlet", "clients": clients, "alpha": alpha}, pool(labels))
    shares = np.array([np.bincount(labels[rows], minlength=400) for rows in owned]) / 100
    assert shares.var() == pytest.approx(0.25 * 0.75 / (clients * alpha + 1), rel=0.1)


def test_quantity_follows_the_power_law_beyond_min_rows() -> None:
    owned = deal({"kind": "quantity", "clients": 4, "alpha": 1.0}, pool(balanced(2500 + 40), min_rows=10))
    assert [len(rows) for rows in owned] == [1210, 610, 410, 310]


def test_natural_is_the_given_key() -> None:
    owners = np.array([2, 0, 2, 2, 0])
    owned = deal({"kind": "natural"}, pool(None, owners=owners))
    assert [rows.tolist() for rows in owned] == [[1, 4], [], [0, 2, 3]]


def test_no_rows_only_when_asked() -> None:
    settings = {"kind": "iid", "clients": 7}
    assert sum(not len(rows) for rows in deal(settings, pool(balanced(5, 2)))) == 2
    with pytest.raises(ScenarioError, match=r"clients = 7: 5 rows cannot .*min_rows = 1"):
        deal(settings, pool(balanced(5, 2), min_rows=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 3}, r"data\.partition\.kind must be given. Known: dirichlet, iid"),
        ({"kind": "dirichlett"}, "there is no 'dirichlett'. Did you mean dirichlet"),
        (
            {"kind": "dirichlet", "clients": 3, "alhpa": 1},
            r"data\.partition\.alhpa is not known. Did you mean alpha\?",
        ),
        ({"kind": "dirichlet", "clients": 3}, r"data\.partition\.alpha is missing"),
        ({"kind": "dirichlet", "clients": 3, "alpha": 0}, "alpha = 0.0: give a number above 0"),
        ({"kind": "dirichlet", "clients": 3, "alpha": float("nan")}, "alpha = nan: give"),
        ({"kind": "dirichlet", "clients": 200, "alpha": 1e-3}, "after 1000 draws with alpha = 0.001"),
        ({"kind": "iid", "clients": 0}, "clients = 0: give at least 1"),
        ({"kind": "iid", "clients": "ten"}, r"data\.partition\.clients = 'ten': "),
        ({"kind": "iid", "clients": 3, "pool": 1}, r"data\.partition\.pool is not known"),
        ({"kind": "shards", "clients": 100, "shards": 11}, "are 1100 shards, more than the 1000 rows"),
        ({"kind": "shards", "clients": 10, "shards": 0}, "shards = 0: give at least 1"),
        ({"kind": "labels", "clients": 4, "labels_per_client": 2}, "cannot own all 10 labels"),
        ({"kind": "labels", "clients": 4, "labels_per_client": 11}, "there are only 10 labels"),
        ({"kind": "quantity", "clients": 4, "alpha": -1}, "alpha = -1.0: give"),
        ({"kind": "natural"}, "needs a corpus with clients of its own"),
    ],
)
def test_errors_name_the_setting(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        deal(settings, pool(balanced(), min_rows=1))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "shards", "clients": 4},
        {"kind": "dirichlet", "clients": 4, "alpha": 1},
        {"kind": "labels", "clients": 4, "labels_per_client": 1},
    ],
)
def test_label_kinds_need_labels(settings: Mapping[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="needs a class for every row"):
        deal(settings, pool(None))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_the_generator_alone_decides(kind: str) -> None:
    settings = {"kind": kind, "clients": 5} | ({"alpha": 0.5} if kind == "dirichlet" else {})
    first, again, other = (deal(settings, pool(balanced(), seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
