"""Which runs are one candidate, and which may be paired."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.comparison.facts import RunFacts
from fedsim.comparison.pairing import differing, differing_lines, grouped, obstacle, own_ways, surroundings
from tests.comparison.made import facts

KEYS = (
    "strategy.name",
    "strategy.mu",
    "train.learning_rate",
    "rounds",
    "data.partition.alpha",
    "seed",
    "engine.workers",
)
VALUES = st.sampled_from([None, 0, 1, "1", 0.1, 0.10000000000000002, "fedavg", True])


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        if value is not None:
            table[last] = value
    return tables


def with_scenario(scenario: dict[str, Any]) -> RunFacts:
    return facts("", 1, 0.5, scenario=scenario)


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(KEYS, VALUES)), min_size=1, max_size=6))
def test_runs_are_one_candidate_when_only_seed_and_engine_differ(drawn: list[dict[str, Any]]) -> None:
    runs = grouped([with_scenario(nested(flat)) for flat in drawn])
    for (one, first), (other, second) in combinations(zip(drawn, runs, strict=True), 2):
        same = {key: repr(one[key]) == repr(other[key]) for key in KEYS}
        assert (first.condition == second.condition) == same["data.partition.alpha"]
        alike = all(same[key] for key in ("strategy.name", "strategy.mu", "train.learning_rate", "rounds"))
        assert (first.candidate == second.candidate) == alike


def test_candidates_are_called_by_what_tells_them_apart() -> None:
    """A key that follows from another one says nothing more: mu is FedProx's alone."""
    scenarios = [
        {"strategy": {"name": "fedavg"}, "train": {"learning_rate": 0.1}},
        {"strategy": {"name": "fedprox", "mu": 0.01}, "train": {"learning_rate": 0.1}},
        {"strategy": {"name": "fedprox", "mu": 0.01}, "train": {"learning_rate": 0.5}},
    ]
    runs = [with_scenario(scenario) for scenario in scenarios]
    assert [run.candidate for run in grouped(runs[:2])] == ["fedavg", "fedprox"]
    assert [run.candidate for run in grouped(runs)] == [
        "fedavg, learning_rate=0.1",
        "fedprox, learning_rate=0.1",
        "fedprox, learning_rate=0.5",
    ]
    assert {run.candidate for run in grouped(runs[:1] * 2)} == {"all runs"}
    assert differing(runs)["strategy.mu"] == [None, 0.01, 0.01]
    assert differing_lines(runs) == [
        "strategy.name: fedavg (1), fedprox (2)",
        "strategy.mu: 0.01 (2)",
        "train.learning_rate: 0.1 (2), 0.5 (1)",
    ]


def test_own_files_make_candidates() -> None:
    """The scenario names a file; what is in it is told by its hash alone."""
    first, second = (facts("mine.py:net", 1, 0.5, environment={"sources": {"mine.py": digest}}) for digest in "ab")
    assert len({run.candidate for run in grouped([first, second])}) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run, None),
        (lambda run: replace(run, federation="other rows"), "data or the partition"),
        (lambda run: replace(run, initial="another"), "models before training differ"),
        (lambda run: replace(run, initial=""), "model before training was not recorded"),
        (
            lambda run: replace(run, cohorts=(run.cohorts[0], "others", run.cohorts[2])),
            "cohorts differ from round 2 on",
        ),
        (lambda run: replace(run, cohorts=("", "", "")), "cohorts were not recorded"),
        (lambda run: replace(run, cohorts=run.cohorts[:2]), None),  # it ended earlier
    ],
)
def test_only_what_agrees_is_paired(change: Callable[[RunFacts], RunFacts], reason: str | None) -> None:
    one, other = facts("fedavg", 1, 0.5), change(facts("fedprox", 1, 0.6))
    for found in (obstacle(one, other), obstacle(other, one)):
        assert found is None if reason is None else found is not None and reason in found


def test_what_candidates_themselves_change_is_no_obstacle() -> None:
    one = facts("fedavg", 1, 0.5)
    wider = replace(one, initial="a wider one", scenario={**one.scenario, "model": {"name": "mlp", "hidden": [64]}})
    assert obstacle(one, wider) is None and own_ways(one, wider) == ["initial models"]
    fewer = replace(one, cohorts=("few",) * 3, scenario={**one.scenario, "cohort": {"size": 2}})
    assert obstacle(one, fewer) is None and own_ways(one, fewer) == ["cohorts"]
    assert "cohorts differ" in str(obstacle(one, replace(wider, cohorts=("few",) * 3)))
    assert own_ways(one, one) == []


def test_other_versions_are_told_with_how_many_have_them() -> None:
    runs = [
        facts("fedavg", seed, 0.5, environment={"packages": {"torch": "2.8" if seed < 3 else "2.9"}})
        for seed in (1, 2, 3)
    ]
    assert surroundings(runs) == ["torch: 2.8 (2), 2.9 (1)"]
    assert surroundings(runs[:2]) == []
