"""The attack's figures against scikit-learn and sums written out; and what it finds on runs that do and do not learn
their rows by heart."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from fedsim.audit.membership import (
    LEAST_OF_CLIENT,
    Membership,
    infer_members,
    losses,
    membership_data,
    membership_lines,
)
from fedsim.audit.scores import area, at_rate, curve, thinned
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.local import Work
from fedsim.progress import WIDTH, Silent
from tests import small

SCORES = st.lists(st.integers(0, 8).map(float), min_size=2, max_size=30).map(np.array)


@given(SCORES, SCORES)
@settings(max_examples=60, deadline=None)
def test_area_and_curve_are_those_of_scikit_learn(members: np.ndarray, others: np.ndarray) -> None:
    """Ties and all."""
    truth, scores = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
    value, (low, high) = area(members, others)
    assert value == pytest.approx(roc_auc_score(truth, scores)) and low <= value <= high
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    found = curve(members, others)
    assert np.allclose(found[0], false) and np.allclose(found[1], true)


def test_the_limits_of_the_area_hold_as_often_as_they_say() -> None:
    """Normal scores, whose area is known; of 400 intervals about 20 miss it."""
    rng, shift = np.random.default_rng(4), 0.7
    truth = stats.norm.cdf(shift / np.sqrt(2))
    limits = [area(rng.normal(shift, 1, 80), rng.normal(0, 1, 60))[1] for _ in range(400)]
    missed = sum(not low <= truth <= high for low, high in limits)
    assert stats.binomtest(missed, 400, 0.05).pvalue > 1e-3


@given(SCORES, SCORES, st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_rate_of_false_positives_is_kept(members: np.ndarray, others: np.ndarray, rate: float) -> None:
    """Of all thresholds that keep it the one is taken that finds most."""
    found = at_rate(members, others, rate)
    kept = [t for t in (-1.0, *np.unique(others)) if (others > t).sum() <= rate * len(others) + 1e-9]
    if found.found is None:
        assert rate * len(others) < 1
    else:
        assert found.found == max((members > t).mean() for t in kept)
        assert found.limits.low <= found.found <= found.limits.high


def test_a_drawn_curve_is_part_of_the_curve() -> None:
    rng = np.random.default_rng(0)
    false, true = curve(rng.normal(1, 1, 3000), rng.normal(0, 1, 5000))
    some = thinned(false, true)
    assert len(some[0]) <= 402 and set(zip(*some, strict=True)) <= set(zip(false, true, strict=True))
    assert some[0][0] == 0 and some[0][-1] == some[1][-1] == 1


LEARNED: small.Changes = {
    **small.POINTS,
    "rounds": 20,
    "model.hidden": [256],
    "train.epochs": 20,
    "train.learning_rate": 0.5,
    "data.split.test": 0.5,
    "data.split.train": 0.4,
    "data.split.validation": 0.1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Membership]:
    """A model that has learned labels which nothing but the rows tells, and one that hardly moved."""
    place = tmp_path_factory.mktemp("runs")
    (place / "coins.py").write_text(COINS)
    found = {}
    for name, changes in {"learned": LEARNED, "hardly": {**LEARNED, "train.learning_rate": 1e-6}}.items():
        small.run(small.job({**changes, "data.name": "coins.py:corpus"}, place), place / name)
        found[name] = infer_members(place / name, (), None, Silent())
    return found


COINS = """
import numpy as np
from fedsim.data.corpus import Corpus


def corpus(folders):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(320, 20)).astype(np.float32), rng.integers(0, 2, 320)
    clients = np.repeat(np.arange(4), 80)
    return Corpus("coins", "classification", x, y, ("no", "yes"), clients=clients, client_names=tuple("abcd"))
"""


def test_rows_learned_by_heart_are_recognised(runs: dict[str, Membership]) -> None:
    found = runs["learned"]
    value, (low, high) = found.auc
    assert low > 0.6 and value > 0.7 and high <= 1
    assert found.advantage > 2 * found.advantage_by_chance
    assert found.round == 20
    assert found.worst is not None and found.worst.chance < 0.01
    assert found.worst.auc == max(each.auc for each in found.clients)


def test_rows_that_left_no_trace_are_not(runs: dict[str, Membership]) -> None:
    found = runs["hardly"]
    _, (low, high) = area(-found.members, -found.others, confidence=0.999)
    assert low < 0.5 < high
    assert found.advantage < 1.5 * found.advantage_by_chance
    assert found.worst is not None and found.worst.chance > 0.01


def test_members_are_train_rows_and_others_test_rows(runs: dict[str, Membership], tmp_path: Path) -> None:
    """By their losses under the run's last model, computed from its own card of weights."""
    (tmp_path / "coins.py").write_text(COINS)
    changes = {**LEARNED, "data.name": "coins.py:corpus"}
    job = small.job(changes, tmp_path)
    assert len(runs["learned"].members) == job.federation.train_rows.sum()
    assert len(runs["learned"].others) == job.federation.sizes("test").sum()
    assert {each.members for each in runs["learned"].clients} <= set(job.federation.train_rows.tolist())
    work = Work(job)
    rows = job.federation.rows(0, "train")
    first = losses(work, work.initial, rows)
    logits = work.plain.module(work.problem.inputs(rows.x)).detach().double().log_softmax(1).numpy()
    assert np.allclose(first, -logits[np.arange(len(rows.y)), rows.y], atol=1e-5)


def test_what_it_says(runs: dict[str, Membership]) -> None:
    for found in runs.values():
        lines = membership_lines(found)
        assert max(map(len, lines)) <= WIDTH
        assert f"AUC          {found.auc[0]:.3f}" in "\n".join(lines)
        data = json.loads(json.dumps(membership_data(found)))
        assert data["members"] == len(found.members) and len(data["clients"]) == 4
        assert [each["found"] is None for each in data["true_positives"]] == [False, True]


def test_clients_with_few_rows_are_not_looked_at(tmp_path: Path) -> None:
    small.run(small.job({"rounds": 1, "data.partition.clients": 60, "data.min_rows": 1}), tmp_path / "run")
    found = infer_members(tmp_path / "run", (), None, Silent())
    assert all(min(each.members, each.others) >= LEAST_OF_CLIENT for each in found.clients)
    assert len(found.clients) < 60


def test_what_cannot_be_attacked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        infer_members(tmp_path, (), None, Silent())
    changes = {"rounds": 1, "data.split.central": 0.0, "data.split.test": 0.0, "data.split.train": 0.85}
    small.run(small.job(changes), tmp_path / "run")
    with pytest.raises(ScenarioError, match="train and 0 test rows"):
        infer_members(tmp_path / "run", (), None, Silent())
