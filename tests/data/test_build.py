"""From a corpus to a federation: same arguments, same bits; unsound corpora are refused."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.build import build
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation
from fedsim.data.sources.digits import digits
from fedsim.errors import DataError, ScenarioError

DIRICHLET = {"kind": "dirichlet", "clients": 10, "alpha": 0.3}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return digits(Folders((), Path()))


def all_rows(federation: Federation) -> np.ndarray:
    central = [federation.central[part].x for part in federation.central]
    return np.concatenate([federation.x, *central]).reshape(-1, *federation.x.shape[1:])


def test_every_row_is_somewhere_once(corpus: Corpus) -> None:
    federation = build(corpus, 1, DIRICHLET)
    flat = all_rows(federation).reshape(len(corpus), -1)
    expected = corpus.x.reshape(len(corpus), -1)
    assert np.array_equal(flat[np.lexsort(flat.T)], expected[np.lexsort(expected.T)])


def test_rows_lie_in_memory_as_they_do_in_a_worker(corpus: Corpus) -> None:
    """Pickling lays them out anew, and a convolution of rows that lie otherwise has other bits."""
    across = replace(corpus, x=np.ascontiguousarray(corpus.x.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1))
    assert not across.x.flags.c_contiguous
    federation = build(across, 1, DIRICHLET)
    usual = build(corpus, 1, DIRICHLET)
    for ours, expected in [
        (federation.x, usual.x),
        *((federation.central[part].x, usual.central[part].x) for part in usual.central),
    ]:
        assert np.array_equal(ours, expected) and ours.strides == expected.strides


def test_parts_of_a_client_follow_the_shares(corpus: Corpus) -> None:
    federation = build(corpus, 1, {"kind": "iid", "clients": 2}, central=0.5, shares=(0.2, 0.4, 0.4))
    assert 0.4 < len(federation.central["validation"].x) / len(federation.central["test"].x) < 2.5
    assert 0.1 < federation.train_rows.sum() / len(federation.x) < 0.3


def test_same_seed_same_bits_other_seed_others(corpus: Corpus) -> None:
    assert build(corpus, 1, DIRICHLET).digest == build(corpus, 1, DIRICHLET).digest
    assert build(corpus, 1, DIRICHLET).digest != build(corpus, 2, DIRICHLET).digest


def test_a_row_is_held_out_whatever_the_partition(corpus: Corpus) -> None:
    """Central sets do not depend on the partition, so that partitions can be compared."""
    one, other = build(corpus, 1, DIRICHLET), build(corpus, 1, {"kind": "iid", "clients": 50})
    assert np.array_equal(one.central["test"].x, other.central["test"].x)


def test_no_central_sets(corpus: Corpus) -> None:
    federation = build(corpus, 1, DIRICHLET, central=0.0)
    assert [len(federation.central[part].x) for part in federation.central] == [0, 0]
    assert len(federation.x) == len(corpus)


def test_small_natural_clients_are_left_out_and_counted(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    owners = np.zeros(len(corpus), dtype=int)
    owners[:3], owners[3:300] = 1, 2
    natural = replace(corpus, clients=owners, client_names=("ann", "bob", "cem", "dua"))
    with caplog.at_level(logging.WARNING):
        federation = build(natural, 1, {"kind": "natural"}, central=0.0)
    assert federation.names == ("ann", "cem")
    assert federation.clients == 2
    assert len(federation.x) == len(corpus) - 3
    assert "2 of 4 natural clients have fewer than 5 rows" in caplog.text
    with pytest.raises(ScenarioError, match=r"data\.min_rows = 5000: no client"):
        build(natural, 1, {"kind": "natural"}, min_rows=5000)


OWNED: dict[str, Any] = {"clients": np.ones(1797, dtype=int), "client_names": ("a", "b")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(3, dtype=np.int64)}, "has 1797 rows in x but 3 in y"),
        ({"y": np.zeros(1797, dtype=np.int32)}, "y of type int32"),
        ({"y": np.full(1797, 10)}, "has classes 10 to 10 in y but names 10; the first beyond is in row 0"),
        ({"vocabulary": 7}, "a vocabulary and x of type float32"),
        (
            {"x": np.full((1797, 2), 7), "vocabulary": 7, **OWNED},
            "has tokens 7 to 7 and a vocabulary of 7; the first beyond is in row 0, of client 'b'",
        ),
        ({"x": np.zeros((1797, 4))}, "x of type float64"),
        ({"x": np.zeros((0, 4), dtype=np.float32)}, "has no rows"),
        (
            {"x": np.where(np.arange(1797) < 1790, 0, np.nan).astype(np.float32)[:, None]},
            "row 1790 of x that is not finite",
        ),
        ({"clients": np.zeros(1797, dtype=int)}, "has clients 0 to 0 but names 0"),
        ({"clients": np.zeros(1797), "client_names": ("a",)}, "clients of type float64"),
        ({"groups": np.zeros((1797, 2), dtype=int)}, r"groups of shape \(1797, 2\)"),
        ({"groups": np.zeros(1797)}, "groups of type float64"),
        ({"group_name": "person"}, "names its groups 'person' but has none"),
        ({"own_test": np.zeros(1797, dtype=int)}, "own_test of type int64"),
        ({"test_units": np.zeros(1797, dtype=int)}, "has test_units but no own_test; say which rows"),
        ({"test_units": np.zeros(1797)}, "has test_units of type float64"),
    ],
)
def test_an_unsound_corpus_is_refused(corpus: Corpus, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(replace(corpus, **changes), 1, DIRICHLET)


def test_all_rows_in_the_own_test_set_leave_none_for_clients(corpus: Corpus) -> None:
    with pytest.raises(ScenarioError, match="none of the 1797 rows is left"):
        build(replace(corpus, own_test=np.ones(1797, dtype=bool)), 1, DIRICHLET)


def grouped(corpus: Corpus, name: str = "") -> Federation:
    """Digits by 100 writers, each row's number in its first pixel."""
    x = corpus.x.copy()
    x[:, 0, 0, 0] = np.arange(len(corpus))
    writers = np.array([f"writer {row * row % 100}" for row in range(len(corpus))])
    return build(replace(corpus, x=x, groups=writers, group_name=name), 1, DIRICHLET)


def test_groups_follow_their_rows(corpus: Corpus) -> None:
    """Two rows have the same number where they have the same writer, at all clients."""
    federation = grouped(corpus)
    assert federation.groups is not None
    writers = federation.x[:, 0, 0, 0].astype(int) ** 2 % 100
    pairs = set(zip(federation.groups.tolist(), writers.tolist(), strict=True))
    assert len(pairs) == len(set(federation.groups.tolist())) == len(set(writers.tolist()))
    pooled = federation.pooled()
    assert pooled.groups is not None
    assert pairs == set(
        zip(pooled.groups.tolist(), (pooled.x[:, 0, 0, 0].astype(int) ** 2 % 100).tolist(), strict=True)
    )


def test_units_are_the_groups_of_a_clients_train_rows(corpus: Corpus) -> None:
    for federation in (grouped(corpus), grouped(corpus).pooled()):
        for client, count in enumerate(federation.train_units().tolist()):
            writers = federation.rows(client, "train").x[:, 0, 0, 0].astype(int) ** 2 % 100
            assert count == len(set(writers.tolist()))
            pairs = set(zip(federation.units(client).tolist(), writers.tolist(), strict=True))
            assert sorted(unit for unit, _ in pairs) == list(range(count))


def test_without_groups_every_row_is_a_unit(corpus: Corpus) -> None:
    federation = build(corpus, 1, DIRICHLET)
    assert (federation.groups, federation.group_name) == (None, "")
    assert np.array_equal(federation.train_units(), federation.train_rows)
    assert federation.units(0).tolist() == list(range(federation.train_rows[0]))


def test_groups_have_a_name_and_are_part_of_the_digest(corpus: Corpus) -> None:
    assert (grouped(corpus).group_name, grouped(corpus, "writer").group_name) == ("group", "writer")
    federation = grouped(corpus)
    assert federation.groups is not None
    assert federation.digest != replace(federation, groups=federation.groups // 2).digest
    assert federation.digest != replace(federation, groups=None).digest
