"""Canaries: fair coins, the same declared data whatever they say, and vectors that do not meet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.audit.canaries import Directions, audited_rows, canary_rows, coins, with_clients, with_those
from fedsim.data.federation import Federation, Rows
from fedsim.errors import ScenarioError
from tests import small

TEXT: small.Changes = {
    "data": {"name": "python-source", "partition": {"kind": "natural"}, "min_rows": 20, "max_bytes": 200_000},
    "model": {"name": "lstm", "layers": 1, "width": 8, "embedding": 4},
}


@pytest.fixture(scope="module")
def federation() -> Federation:
    return small.job().federation


def test_coins_are_fair_and_follow_the_seed() -> None:
    tossed = coins(1, 10_000)
    assert stats.binomtest(int(tossed.sum()), 10_000).pvalue > 1e-3
    assert (coins(1, 10_000) == tossed).all() and (coins(2, 10_000) != tossed).any()
    assert (coins(1, 100) == tossed[:100]).all()


def drawn(federation: Federation, count: int) -> Rows:
    """Canaries under a first model that holds class 3 for least likely."""
    size = len(federation.classes)
    return canary_rows(federation, count, 1, lambda x: np.tile(np.arange(size) != 3, (len(x), 1)).astype(float))


def test_a_canary_that_is_out_is_in_no_array(federation: Federation) -> None:
    """What is declared counts all canaries; what is trained on lacks those that are out, and nothing else."""
    canaries, inside = drawn(federation, 200), coins(1, 200)
    audited = audited_rows(federation, canaries)
    trained = with_those(audited, inside)
    assert int(audited.federation.train_rows[0]) == audited.others + 200
    assert int(trained.train_rows[0]) == audited.others + int(inside.sum())
    assert np.array_equal(trained.x[: audited.others], audited.federation.x[: audited.others])
    assert np.array_equal(trained.x[audited.others :], canaries.x[inside])
    assert np.array_equal(trained.y[audited.others :], canaries.y[inside])


def test_rows_without_a_class_have_no_canaries(federation: Federation) -> None:
    """There is no least likely number; an attack that is no such row would promise too much."""
    numbers = replace(federation, task="regression", classes=(), y=federation.y.astype(np.float32))
    with pytest.raises(ScenarioError, match="an audit makes rows of numbers with a class, or bytes; 'digits' has oth"):
        drawn(numbers, 5)


def test_the_largest_client_is_taken_where_it_is_large_enough(federation: Federation) -> None:
    """Else all train rows are pooled; with too few of them the audit says how many there are."""
    largest = int(federation.train_rows.argmax())
    alone = audited_rows(federation, drawn(federation, 1000))
    assert alone.others == federation.train_rows[largest]
    assert np.array_equal(alone.federation.x[: alone.others], federation.rows(largest, "train").x)
    pooled = audited_rows(federation, drawn(federation, 100))
    assert pooled.others == federation.train_rows.sum() and pooled.federation.clients == 1
    with pytest.raises(ScenarioError, match=rf"1,000 train rows.*all together {federation.train_rows.sum()}"):
        audited_rows(federation, drawn(federation, 10))


def test_canaries_lie_outside_the_data(federation: Federation) -> None:
    """Images far beyond the data's range under an unlikely class, windows of drawn bytes with their own targets."""
    canaries = drawn(federation, 100)
    assert canaries.x.dtype == federation.x.dtype and canaries.x.shape[1:] == federation.x.shape[1:]
    assert np.linalg.norm(canaries.x[0]) > 2 * np.linalg.norm(federation.x.reshape(len(federation.x), -1), axis=1).max()
    assert canaries.y.dtype == federation.y.dtype and (canaries.y == 3).all()
    windows = drawn(small.job(TEXT).federation, 1000)
    assert windows.x.dtype == np.uint8 and np.array_equal(windows.x[:, 1:], windows.y[:, :-1])
    assert len(np.unique(windows.x)) == 256


def test_registered_clients_are_as_many_in_both_worlds(federation: Federation) -> None:
    """One that is out can never take part; the others keep their rows."""
    inside = coins(3, 50)
    more = with_clients(federation, inside)
    assert more.clients == federation.clients + 50
    assert np.array_equal(more.train_rows[federation.clients :] > 0, inside)
    assert len(more.names) == more.clients
    for client in range(federation.clients):
        assert np.array_equal(more.rows(client, "test").x, federation.rows(client, "test").x)


def test_directions_share_no_coordinate_and_change_signs() -> None:
    shared = torch.ones(1000, dtype=torch.bool)
    shared[:100] = False
    directions = Directions(shared, 48, seed=1)
    first = torch.stack([directions.of(canary, 1) for canary in range(48)])
    assert torch.allclose(first @ first.T, torch.eye(48, dtype=torch.float64))
    assert not first[:, :100].any() and (first[:, 100:] != 0).any(0).all()
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=1000))
    assert torch.allclose(directions.projections(vector, 1), first @ vector)
    second = directions.of(0, 2)
    assert torch.equal(second.abs(), first[0].abs()) and abs(float(first[0] @ second)) < 0.9
