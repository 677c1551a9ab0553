"""Cohorts: who may be drawn, and how often anybody is."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.cohorts import CohortRule, Cohorts, expected_size, participation_limit, sample
from fedsim.errors import ScenarioError

rules = st.one_of(
    st.builds(CohortRule, size=st.integers(1, 60)),
    st.builds(CohortRule, fraction=st.floats(0.01, 1.0)),
    st.builds(CohortRule, poisson=st.floats(0.01, 1.0)),
)
counts = st.lists(st.integers(0, 6), min_size=1, max_size=50).map(np.array)


@settings(deadline=None)
@given(rules, st.integers(0, 2**31), st.integers(1, 100), counts, st.none() | st.integers(1, 6))
def test_a_cohort_is_sorted_unique_and_below_its_limit(
    rule: CohortRule, seed: int, round: int, participations: np.ndarray, limit: int | None
) -> None:
    cohort = sample(rule, seed, round, participations, limit)
    assert cohort == sorted(set(cohort))
    assert all(0 <= client < len(participations) for client in cohort)
    assert limit is None or all(participations[client] < limit for client in cohort)
    remaining = len(participations) if limit is None else int((participations < limit).sum())
    if rule.poisson is None:
        assert len(cohort) == min(int(expected_size(rule, len(participations))), remaining)


@settings(deadline=None)
@given(rules, st.integers(0, 2**31), st.integers(1, 100), counts, st.integers(1, 6))
def test_a_cohort_depends_on_who_is_at_the_limit_and_on_nothing_else_of_the_past(
    rule: CohortRule, seed: int, round: int, participations: np.ndarray, limit: int
) -> None:
    """A resumed run redraws the same cohorts; how often a client below its limit took part does not matter."""
    first = sample(rule, seed, round, participations, limit)
    np.random.seed(seed % 1000)
    below = np.where(participations < limit, 0, limit)
    assert first == sample(rule, seed, round, participations.copy(), limit) == sample(rule, seed, round, below, limit)


@pytest.mark.parametrize("rule", [CohortRule(size=5), CohortRule(fraction=0.1), CohortRule(poisson=0.1)])
def test_every_client_is_as_likely_as_any_other(rule: CohortRule) -> None:
    """Permuting clients changes no probability: over 2,000 rounds each count is within 5 standard deviations."""
    rounds, population = 2000, 50
    drawn = np.zeros(population)
    for round in range(rounds):
        drawn[sample(rule, 3, round, np.zeros(population, dtype=int), None)] += 1
    assert np.abs(drawn - rounds * 0.1).max() < 5 * np.sqrt(rounds * 0.1 * 0.9)


@settings(deadline=None, max_examples=30)
@given(rules, st.integers(1, 30), st.integers(1, 4), st.integers(0, 1000))
def test_no_client_ever_exceeds_its_limit(rule: CohortRule, population: int, limit: int, seed: int) -> None:
    participations = np.zeros(population, dtype=int)
    for round in range(20):
        participations[sample(rule, seed, round, participations, limit)] += 1
    assert participations.max() <= limit


def test_a_poisson_cohort_may_be_empty() -> None:
    sizes = [len(sample(CohortRule(poisson=0.05), 1, round, np.zeros(10, dtype=int), None)) for round in range(200)]
    assert 0 in sizes


@pytest.mark.parametrize("rule", [CohortRule(size=3), CohortRule(fraction=0.3), CohortRule(poisson=0.3)])
def test_at_most_one_percent_exceed_the_participation_limit_and_one_less_would_be_too_few(rule: CohortRule) -> None:
    """The oracle counts participations of many simulated clients."""
    rounds = 40
    limit = participation_limit(rule, 10, rounds)
    taken = np.random.default_rng(0).binomial(rounds, 0.3, 400_000)
    assert (taken > limit).mean() <= 0.01 < (taken > limit - 1).mean()


def test_everybody_in_every_round_is_limited_by_the_rounds() -> None:
    assert participation_limit(CohortRule(fraction=1.0), 10, 40) == 40
    assert participation_limit(CohortRule(size=1), 100_000, 3) == 1


def test_a_million_clients_are_drawn_at_once() -> None:
    participations = np.zeros(1_000_000, dtype=int)
    assert len(sample(CohortRule(size=100), 1, 1, participations, 5)) == 100
    assert 900 < len(sample(CohortRule(poisson=0.001), 1, 1, participations, 5)) < 1100


@pytest.mark.parametrize(
    "keys", [{}, {"size": 2, "poisson": 0.1}, {"size": 0}, {"fraction": 0.0}, {"fraction": 1.5}, {"poisson": -0.1}]
)
def test_an_impossible_rule_is_refused_by_its_key(keys: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="cohort"):
        CohortRule(**keys)


@settings(deadline=None)
@given(rules, st.integers(0, 1000), counts, st.data())
def test_a_client_that_is_not_able_is_never_drawn(
    rule: CohortRule, seed: int, participations: np.ndarray, data: st.DataObject
) -> None:
    """The size stays that of the population, as far as able clients below the limit go."""
    size = len(participations)
    able = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    cohort = sample(rule, seed, 1, participations, 4, able=able)
    remaining = able & (participations < 4)
    assert all(remaining[client] for client in cohort)
    if rule.poisson is None:
        assert len(cohort) == min(int(expected_size(rule, size)), int(remaining.sum()))
    assert sample(rule, seed, 1, participations, 4, able=np.ones(size, bool)) == sample(
        rule, seed, 1, participations, 4
    )


def test_clients_that_are_not_able_leave_their_places_to_the_others() -> None:
    """3 of 10, of whom 6 are able: each of them takes part with 1/2, not 3/10."""
    taken = np.random.default_rng(0).binomial(40, 0.5, 400_000)
    limit = participation_limit(CohortRule(size=3), 10, 40, able=6)
    assert (taken > limit).mean() <= 0.01 < (taken > limit - 1).mean()
    assert participation_limit(CohortRule(size=8), 10, 40, able=6) == 40


limits = st.none() | st.integers(1, 4)
separations = st.integers(1, 5)
masks = st.lists(st.booleans(), min_size=1, max_size=30).map(np.array)


def drawn(cohorts: Cohorts, first: int, last: int) -> list[list[int]]:
    return [cohorts.draw(round) for round in range(first, last + 1)]


@settings(deadline=None, max_examples=60)
@given(rules, st.integers(0, 2**31), masks, limits, separations, st.booleans())
def test_nobody_is_drawn_beyond_its_limit_or_before_it_has_rested(
    rule: CohortRule, seed: int, able: np.ndarray, limit: int | None, separation: int, registered: bool
) -> None:
    """So a client is at most once in any `separation` rounds in a row, hence at most once in a tree of so many."""
    cohorts = Cohorts(rule, seed, able, limit, separation, registered=registered)
    taken: dict[int, list[int]] = {}
    for round, cohort in enumerate(drawn(cohorts, 1, 15), 1):
        assert cohort == sorted(set(cohort)) and all(able[client] for client in cohort)
        for client in cohort:
            taken.setdefault(client, []).append(round)
    for client, rounds in taken.items():
        assert limit is None or len(rounds) <= limit
        assert all(later - earlier >= separation for earlier, later in pairwise(rounds))
        trees = [(round - 1) // separation for round in rounds]
        assert len(set(trees)) == len(trees)
        assert (int(cohorts.participations[client]), int(cohorts.last[client])) == (len(rounds), rounds[-1])


@settings(deadline=None, max_examples=60)
@given(rules, st.integers(0, 2**31), masks, limits, separations, st.integers(0, 12), st.booleans())
def test_restored_cohorts_draw_what_they_would_have_drawn(
    rule: CohortRule, seed: int, able: np.ndarray, limit: int | None, separation: int, done: int, registered: bool
) -> None:
    whole, part, resumed = (Cohorts(rule, seed, able, limit, separation, registered=registered) for _ in range(3))
    expected = drawn(whole, 1, 12)
    drawn(part, 1, done)
    resumed.restore(part.participations, part.last if separation > 1 else None)
    assert drawn(resumed, done + 1, 12) == expected[done:]


@settings(deadline=None, max_examples=60)
@given(rules, st.integers(0, 2**31), masks, limits, separations)
def test_who_is_drawn_beside_a_registered_client_tells_nothing_of_its_rows(
    rule: CohortRule, seed: int, able: np.ndarray, limit: int | None, separation: int
) -> None:
    """A client with rows and one without take the same place, use up the same limit and rest as long."""
    some = Cohorts(rule, seed, able, limit, separation, registered=True)
    everybody = Cohorts(rule, seed, np.ones_like(able), limit, separation, registered=True)
    for found, expected in zip(drawn(some, 1, 15), drawn(everybody, 1, 15), strict=True):
        assert found == [client for client in expected if able[client]]


def test_clients_that_are_not_registered_leave_their_places_to_the_others() -> None:
    able = np.arange(10) < 6
    assert [len(cohort) for cohort in drawn(Cohorts(CohortRule(size=3), 1, able), 1, 20)] == [3] * 20
    sizes = [len(cohort) for cohort in drawn(Cohorts(CohortRule(size=3), 1, able, registered=True), 1, 20)]
    assert min(sizes) < 3


def test_a_draw_leaves_what_it_was_restored_from_as_it_was() -> None:
    """It is part of a snapshot that may still be on its way to the disk."""
    cohorts, counts, last = Cohorts(CohortRule(size=3), 1, np.ones(5, dtype=bool)), np.arange(5), np.arange(5)
    cohorts.restore(counts, last)
    cohorts.draw(9)
    assert counts.tolist() == last.tolist() == [0, 1, 2, 3, 4]
