"""Sketches of updates: what they keep, when they are made, and that engines agree on them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.reading import Records
from fedsim.rounds import run
from fedsim.sketches import SIZE, Sketcher, count, due
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

SIZES = st.integers(1, 500)


@settings(deadline=None)
@given(SIZES, st.integers(0, 2**32), st.floats(-10, 10))
def test_a_sketch_is_linear_and_the_same_whenever_it_is_made(size: int, seed: int, factor: float) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, size)).astype(np.float32)
    sketch = Sketcher(seed, size)
    one, other = np.array(sketch(torch.tensor(first))), np.array(sketch(torch.tensor(second)))
    both = np.array(Sketcher(seed, size)(torch.tensor(first + np.float32(factor) * second)))
    assert len(one) == SIZE
    np.testing.assert_allclose(both, one + factor * other, atol=1e-3)


def test_inner_products_of_sketches_are_those_of_updates_in_expectation() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 100))
    first += 0.5 * second
    truth = float(first @ second)
    found = []
    for seed in range(2_000):
        sketch = Sketcher(seed, 100)
        found.append(np.dot(sketch(torch.tensor(first).float()), sketch(torch.tensor(second).float())))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - truth) < 4 * error < 0.1 * truth


@settings(deadline=None)
@given(st.integers(1, 12_000))
def test_rounds_are_counted_as_they_are_due(rounds: int) -> None:
    chosen = [number for number in range(1, rounds + 1) if due(number)]
    assert chosen[0] == 1
    assert len(chosen) == count(rounds) <= 20 * len(str(rounds))


def sketches(folder: Path) -> dict[tuple[int, int], list[float]]:
    rows = Records(folder / "run.db").select("SELECT round, client, vector FROM sketches")
    return {(round, client): json.loads(vector) for round, client, vector in rows}


def changed(keys: dict[str, object]) -> dict[str, object]:
    return {
        "title": "sketched",
        "seed": 3,
        "rounds": 6,
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32, "epochs": 1},
        "strategy": {"name": "fedavg"},
        "engine": {"kind": "inline"},
        **keys,
    }


def test_a_run_records_them_of_every_client_that_trained_and_its_rows_say_how_far(tmp_path: Path) -> None:
    run(changed({}), out=tmp_path / "run")
    found = sketches(tmp_path / "run")
    assert sorted(found) == [(round, client) for round in (1, 5) for client in range(4)]
    rows = Records(tmp_path / "run" / "run.db").clients(round=5)
    for row in (row for row in rows if row.phase == "train"):
        assert row.norm is not None
        assert np.linalg.norm(found[5, row.client]) == pytest.approx(row.norm, rel=0.6)


@pytest.mark.parametrize("keys", [{"strategy": {"name": "local"}}, {"strategy": {"name": "flower:FedAvg"}}])
def test_nothing_is_sketched_where_nothing_is_sent_or_a_strategy_might_trip(
    keys: dict[str, object], tmp_path: Path
) -> None:
    run(changed(keys), out=tmp_path / "run")
    assert not sketches(tmp_path / "run")


def test_records_that_leave_clients_out_leave_their_sketches_out(tmp_path: Path) -> None:
    run(changed({"records": {"clients": "failed"}}), out=tmp_path / "run")
    assert not sketches(tmp_path / "run")


def test_workers_make_the_same_sketches(ray_engine: "RayEngine", tmp_path: Path) -> None:
    for name, engine in {"inline": None, "ray": small.with_workers(ray_engine, 2)}.items():
        small.run(small.job({"rounds": 5}), tmp_path / name, engine)
    assert sketches(tmp_path / "inline") == sketches(tmp_path / "ray") != {}
