"""Rounds, bytes and seconds to a target: arrival by a plain loop, and what a common horizon makes of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.comparison.horizon import EVALUATIONS, Course, Unit, arrival, to_target

VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan]), max_size=20)


def course(values: list[float], bytes_a_round: float = 1.0, *, whole: bool = True) -> Course:
    """A run of as many rounds, each of two seconds."""
    rounds = np.arange(1.0, len(values) + 1)
    costs: dict[Unit, np.ndarray] = {"rounds": rounds, "bytes": bytes_a_round * rounds, "seconds": 2 * rounds}
    return Course(np.array(values), costs, whole)


@given(VALUES, st.sampled_from([0.25, 0.5, 0.75]), st.booleans())
@settings(deadline=None)
def test_a_run_arrives_when_its_last_three_evaluations_have(values: list[float], target: float, lower: bool) -> None:
    """The first round, one after another, at which the mean of the last three measured values has reached it."""
    expected, seen = None, []
    for place, value in enumerate(values):
        if math.isnan(value):
            continue
        seen.append(value)
        mean = sum(seen[-EVALUATIONS:]) / EVALUATIONS
        if expected is None and len(seen) >= EVALUATIONS and (mean <= target if lower else mean >= target):
            expected = place
    assert arrival(np.array(values), target, lower=lower) == expected


def test_one_lucky_evaluation_is_no_arrival() -> None:
    assert arrival(np.array([0.1, 0.1, 0.9, 0.1, 0.1]), 0.8, lower=False) is None
    assert arrival(np.array([0.1, 0.8, 0.8, 0.8]), 0.8, lower=False) == 3


FAST = [0.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
SLOW = [0.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8]
NEVER = [0.0] * 8


def test_who_never_arrives_counts_the_whole_horizon() -> None:
    """Not left out: a mean over those that arrive would reward giving up."""
    runs = {
        "reference": {1: course(SLOW), 2: course(SLOW)},
        "fast": {1: course(FAST), 2: course(NEVER)},
    }
    found = to_target(runs, "reference", 0.8, lower=False)["rounds"]
    assert (found["reference"].horizon, found["reference"].spent.mean, found["reference"].share) == (8, 7, 1.0)
    assert found["reference"].difference is None
    assert (found["fast"].spent.mean, found["fast"].reached, found["fast"].share) == ((4 + 8) / 2, 1, 0.5)
    difference = found["fast"].difference
    assert difference is not None and (difference.n, difference.mean) == (2, ((4 - 7) + (8 - 7)) / 2)


def test_the_horizon_is_what_every_whole_run_was_watched_for() -> None:
    """Twice the bytes a round end the common horizon in rounds 4 of 8 of the other; a late arrival counts for nobody.

    A run that failed after two rounds has not shortened it.
    """
    runs = {
        "plain": {1: course(SLOW), 2: course(NEVER[:2], whole=False)},
        "double": {1: course(SLOW, bytes_a_round=2.0)},
    }
    found = to_target(runs, "plain", 0.8, lower=False)
    assert found["bytes"]["plain"].horizon == 8
    assert (found["bytes"]["plain"].reached, found["bytes"]["plain"].spent.mean) == (1, (7 + 8) / 2)
    assert (found["bytes"]["double"].reached, found["bytes"]["double"].spent.mean) == (0, 8)
    assert found["rounds"]["double"].spent.mean == 7 and found["seconds"]["double"].spent.mean == 14
    difference = found["bytes"]["double"].difference
    assert difference is not None and (difference.n, difference.mean) == (1, 1)


def test_only_common_seeds_are_paired() -> None:
    runs = {"reference": {1: course(SLOW), 2: course(FAST)}, "other": {2: course(SLOW), 3: course(FAST)}}
    difference = to_target(runs, "reference", 0.8, lower=False)["rounds"]["other"].difference
    assert difference is not None and (difference.n, difference.mean) == (1, 3)


def test_a_unit_that_was_not_recorded_is_left_out() -> None:
    """Bytes of runs that keep no clients' rows; and runs without a round say nothing."""
    dark = course(SLOW, bytes_a_round=math.nan)
    assert set(to_target({"reference": {1: dark}}, "reference", 0.8, lower=False)) == {"rounds", "seconds"}
    assert to_target({"reference": {1: course([])}}, "reference", 0.8, lower=False) == {}


@given(st.lists(VALUES.filter(bool), min_size=1, max_size=4), st.sampled_from([0.25, 0.75]))
@settings(deadline=None)
def test_a_restricted_mean_lies_within_the_horizon(values: list[list[float]], target: float) -> None:
    runs = {"reference": {seed: course(each) for seed, each in enumerate(values)}}
    for found in to_target(runs, "reference", target, lower=False).values():
        spent = found["reference"]
        assert 0 < spent.spent.mean <= spent.horizon
        assert spent.reached <= spent.runs == len(values)
        assert (spent.spent.mean == pytest.approx(spent.horizon)) or spent.reached
