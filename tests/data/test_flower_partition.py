"""Partitioners of flwr-datasets as kinds of partition."""

import logging
from typing import Any

import numpy as np
import pytest

from fedsim.data.partition import Pool, deal
from fedsim.errors import ScenarioError

ROWS, LABELS, OWNERS = 400, 4, 10


def pool(seed: int = 0, *, labelled: bool = True, min_rows: int = 1) -> Pool:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, LABELS, ROWS) if labelled else None
    return Pool(ROWS, labels, rng.integers(0, OWNERS, ROWS), min_rows, np.random.default_rng(seed))


KINDS: dict[str, dict[str, Any]] = {
    "IidPartitioner": {"num_partitions": 7},
    "LinearPartitioner": {"num_partitions": 7},
    "SquarePartitioner": {"num_partitions": 7},
    "ExponentialPartitioner": {"num_partitions": 4},
    "SizePartitioner": {"partition_sizes": [100, 250, 50]},
    "DirichletPartitioner": {"num_partitions": 6, "partition_by": "label", "alpha": 0.5},
    "PathologicalPartitioner": {"num_partitions": 6, "partition_by": "label", "num_classes_per_partition": 2},
    "ShardPartitioner": {"num_partitions": 5, "partition_by": "label", "num_shards_per_partition": 2},
    "NaturalIdPartitioner": {"partition_by": "client"},
    "GroupedNaturalIdPartitioner": {"partition_by": "client", "group_size": 2},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_row_is_dealt_once_and_always_alike(name: str) -> None:
    table = {"kind": f"flwr:{name}", **KINDS[name]}
    dealt, again = deal(table, pool()), deal(table, pool())
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(ROWS))
    assert all(np.array_equal(mine, same) for mine, same in zip(dealt, again, strict=True))
    assert all((np.diff(rows) > 0).all() for rows in dealt)
    if not name.endswith("NaturalIdPartitioner"):  # whose clients are given, not drawn
        other = deal(table, pool(seed=1))
        assert any(not np.array_equal(mine, theirs) for mine, theirs in zip(dealt, other, strict=True))


def test_labels_and_clients_are_those_of_the_rows() -> None:
    """What a partitioner is told of a row is that row's, after the shuffle too."""
    rows = pool()
    assert rows.labels is not None
    assert rows.owners is not None
    two = deal({"kind": "flwr:PathologicalPartitioner", **KINDS["PathologicalPartitioner"]}, rows)
    assert all(len(set(rows.labels[mine])) == 2 for mine in two)
    natural = deal({"kind": "flwr:NaturalIdPartitioner", "partition_by": "client"}, pool())
    assert sorted(set(rows.owners[mine]).pop() for mine in natural) == list(range(OWNERS))
    assert all(len(set(rows.owners[mine])) == 1 for mine in natural)


def test_rows_that_are_left_out_are_told(caplog: pytest.LogCaptureFixture) -> None:
    table = {"kind": "flwr:ShardPartitioner", "num_partitions": 3, "partition_by": "label", "shard_size": 30}
    with caplog.at_level(logging.WARNING):
        dealt = deal({**table, "num_shards_per_partition": 2}, pool())
    left = ROWS - sum(map(len, dealt))
    assert left > 0
    assert f"{left} of {ROWS} rows are left out" in caplog.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a typo": ({"kind": "flwr:DirichletPartitoner"}, "Did you mean flwr:DirichletPartitioner"),
    "columns": ({"kind": "flwr:VerticalEvenPartitioner"}, "there is no"),
    "an unknown key": ({"kind": "flwr:IidPartitioner", "clients": 3}, "data.partition.clients is not known"),
    "a missing key": ({"kind": "flwr:IidPartitioner"}, "num_partitions is missing"),
    "a wrong type": ({"kind": "flwr:IidPartitioner", "num_partitions": "three"}, "num_partitions = 'three'"),
    "a seed": ({"kind": "flwr:ContinuousPartitioner", "seed": 1}, "data.partition.seed is not known"),
    "another column": (
        {"kind": "flwr:DirichletPartitioner", "num_partitions": 3, "partition_by": "writer", "alpha": 1.0},
        "rows are known by label or client",
    ),
    "no clients": ({"kind": "flwr:IidPartitioner", "num_partitions": 0}, "data.partition: .*greater than zero"),
    "too few rows": ({"kind": "flwr:SizePartitioner", "partition_sizes": [398, 2]}, "client 1 gets 2 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(case: str) -> None:
    table, reason = REFUSED[case]
    with pytest.raises(ScenarioError, match=reason):
        deal(table, pool(min_rows=5))


def test_without_labels_none_is_asked_for() -> None:
    table = {"kind": "flwr:DirichletPartitioner", **KINDS["DirichletPartitioner"]}
    with pytest.raises(ScenarioError, match="known by client"):
        deal(table, pool(labelled=False))
