"""Lower bounds: the published figures, the theorem taken word for word, and how often they are wrong."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.audit.bounds import (
    CONFIDENCE,
    chance_of,
    interval,
    one_run_bound,
    perfect_guesses,
)
from fedsim.privacy.gaussian import gaussian_epsilon
from tests.audit.worlds import repeated_bound, split_bound

FALSE_ALARMS = 1 - CONFIDENCE


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "epsilon"),
    [
        (100, 100, 100, 0.0, 3.49),  # every guess right
        (24, 24, 24, 0.0, 2.02),
        (8932, 8932, 8932, 0.0, 8.00),
        (1000, 100, 75, 1e-4, 0.673),  # Steinke, Nasr and Jagielski 2023, appendix D
        (100_000, 1510, 1439, 1e-5, 2.676),  # section 7
        (10_000, 100, 100, 1e-3, 0.0),  # delta alone explains so few guesses on so many canaries
    ],
)
def test_published_figures(canaries: int, guesses: int, right: int, delta: float, epsilon: float) -> None:
    assert one_run_bound(canaries, guesses, right, delta) == pytest.approx(epsilon, abs=0.005)


def test_how_many_perfect_guesses_refute_a_claim() -> None:
    """One fewer leaves the claim standing; above delta 0 no number refutes a large one."""
    assert perfect_guesses(8.0, 0.0) == 8932
    for epsilon, delta in ((0.5, 0.0), (3.49, 0.0), (8.0, 0.0), (3.49, 1e-5), (7.0, 1e-5)):
        needed = perfect_guesses(epsilon, delta)
        assert needed is not None
        assert (
            one_run_bound(needed, needed, needed, delta) >= epsilon > one_run_bound(needed, needed, needed - 1, delta)
        )
        assert one_run_bound(needed - 1, needed - 1, needed - 1, delta) < epsilon
    for beyond in (8.5, 60.0, 3268.4, math.inf):
        assert perfect_guesses(beyond, 1e-5) is None


@given(st.integers(1, 30), st.data(), st.floats(0, 4), st.floats(0, 0.01))
@settings(max_examples=50, deadline=None)
def test_the_chance_is_the_theorem(guesses: int, data: st.DataObject, epsilon: float, delta: float) -> None:
    """Theorem 5.2 in whole numbers: every sum written out."""
    right = data.draw(st.integers(0, guesses))
    canaries = data.draw(st.integers(guesses, 100))
    p = Fraction(1 / (1 + math.exp(-epsilon)))
    mass = [comb(guesses, w) * p**w * (1 - p) ** (guesses - w) for w in range(guesses + 1)]
    tail = sum(mass[right:], Fraction(0))
    slopes = [Fraction(2, i) * sum(mass[max(0, right - i) : right], Fraction(0)) for i in range(1, canaries + 1)]
    exact = min(Fraction(1), tail + max(slopes) * canaries * Fraction(delta))
    assert chance_of(canaries, guesses, right, epsilon, delta) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0, 3.4])
def test_randomised_response_is_seldom_refuted(epsilon: float) -> None:
    """It guesses as well as epsilon allows; the bound is above epsilon as often as announced, and not much less."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    wrong = sum(
        float(stats.binom.pmf(right, 100, accuracy))
        for right in range(101)
        if one_run_bound(100, 100, right, 0.0) > epsilon
    )
    assert FALSE_ALARMS / 3 < wrong <= FALSE_ALARMS


def test_more_right_guesses_refute_more_and_delta_excuses() -> None:
    bounds = [one_run_bound(100, 100, right, 1e-5) for right in range(0, 101, 5)]
    assert bounds == sorted(bounds) and bounds[10] == 0 < bounds[14]
    assert all(
        one_run_bound(100, 100, right, 0.0) >= one_run_bound(100, 100, right, 1e-3) for right in range(0, 101, 10)
    )


@pytest.mark.parametrize("trials", [1, 7, 60])
def test_the_interval_holds_as_often_as_it_says(trials: int) -> None:
    """Clopper and Pearson: for any probability it is missed with at most the announced one."""
    limits = [interval(successes, trials) for successes in range(trials + 1)]
    for p in np.linspace(0.01, 0.99, 25):
        held = [low <= p <= high for low, high in limits]
        assert stats.binom.pmf(np.arange(trials + 1), trials, p)[held].sum() >= CONFIDENCE
    assert limits[0].low == 0 and limits[-1].high == 1


def test_repeated_audits_count_both_kinds_of_error() -> None:
    """A test that never errs in 500 runs a world shows 4.9, in either world; one that guesses shows nothing."""
    least = 0.025 ** (1 / 500)
    expected = math.log(least / (1 - least))
    assert repeated_bound(500, 500, 0, 500, 0.0) == pytest.approx(expected)
    assert repeated_bound(250, 500, 0, 500, 0.0) == pytest.approx(repeated_bound(500, 500, 250, 500, 0.0))
    assert repeated_bound(250, 500, 250, 500, 0.0) == 0
    assert repeated_bound(500, 500, 0, 500, 1e-3) < expected


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_a_gaussian_is_bounded_from_below_and_not_beyond(mu: float) -> None:
    """Scores N(0, 1) and N(mu, 1) are exactly (epsilon, delta)-DP; few of 100 audits may say otherwise."""
    rng, delta = np.random.default_rng(3), 1e-5
    truth = gaussian_epsilon(mu, delta)
    bounds = [split_bound(rng.normal(mu, 1, 2000), rng.normal(0, 1, 2000), delta) for _ in range(100)]
    assert stats.binomtest(sum(bound > truth for bound in bounds), 100, FALSE_ALARMS, "greater").pvalue > 1e-3
    assert np.median(bounds) > mu / 4
