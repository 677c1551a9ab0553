"""What it takes to reach a target: rounds, bytes and seconds, on one horizon that all runs of a condition share.

A run has reached the target when the mean of its last three evaluations has: one lucky evaluation is no arrival. A run
that never gets there has no time of arrival, and a mean over those that do would reward a candidate that gives up
whenever it is slow. So it is the restricted mean, of min(T, R), that is compared: Irwin, "The Standard Error of an
Estimate of Expectation of Life", 1949; Royston and Parmar, "Restricted Mean Survival Time", 2013. Everybody is
watched up to the horizon R, so nothing is censored before it, and the restricted mean is a plain mean.
"""

from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from fedsim.comparison.statistics import Interval, interval

Unit = Literal["rounds", "bytes", "seconds"]
Key = TypeVar("Key", bound=Hashable)

UNITS: tuple[Unit, ...] = ("rounds", "bytes", "seconds")
EVALUATIONS = 3
"""Whose mean must reach the target."""


class Course(NamedTuple):
    """A run on its way.

    Attributes:
        values: [R] the target's metric after each round, nan where it was not measured.
        costs: unit -> [R] spent up to the end of each round.
        whole: whether all rounds were run that were asked for. Of a run that ended earlier, by a rule or by failure,
            no more will come; one that goes on is left out beforehand.
    """

    values: np.ndarray
    costs: Mapping[Unit, np.ndarray]
    whole: bool


class Spent(NamedTuple):
    """What a candidate spent on its way to the target.

    Attributes:
        horizon: R in this unit: what comes later counts for nobody.
        spent: min(T, R) over seeds, with its interval.
        reached: runs that reached the target within R.
        runs: of them all.
        difference: from the reference in min(T, R), over the seeds that both have; None of the reference itself.
    """

    horizon: float
    spent: Interval
    reached: int
    runs: int
    difference: Interval | None

    @property
    def share(self) -> float:
        """Of the runs, those that reached the target within R; nan of none."""
        return self.reached / self.runs if self.runs else float("nan")


def arrival(values: np.ndarray, target: float, *, lower: bool) -> int | None:
    """The place [R] of the round at which a run has reached a target; None where it never has.

    Args:
        values: [R] of the metric, nan where it was not measured.
        target: to be reached.
        lower: whether it is reached from above.
    """
    places = np.flatnonzero(~np.isnan(values))
    if len(places) < EVALUATIONS:
        return None
    means = np.lib.stride_tricks.sliding_window_view(values[places], EVALUATIONS).mean(axis=1)
    there = np.flatnonzero(means <= target if lower else means >= target)
    return int(places[there[0] + EVALUATIONS - 1]) if len(there) else None


def to_target(
    runs: Mapping[Key, Mapping[int, Course]], reference: Key, target: float, *, lower: bool
) -> dict[Unit, dict[Key, Spent]]:
    """What every candidate of a condition spent on its way to a target, by unit.

    The horizon in a unit is the least that any whole run spent on all its rounds: up to there everybody was watched.
    Where no run is whole it is the most that any spent.

    Args:
        runs: seed -> run of every candidate.
        reference: the candidate to pair the others with.
        target: of the metric.
        lower: whether it is reached from above.

    Returns:
        Nothing where no run has a round. A unit that was not recorded in all runs (a cost is nan) is left out.
    """
    every = [run for seeds in runs.values() for run in seeds.values() if len(run.values)]
    found: dict[Unit, dict[Key, Spent]] = {}
    for unit in UNITS:
        ends = [float(run.costs[unit][-1]) for run in every]
        if not ends or np.isnan(ends).any():
            continue
        whole = [end for run, end in zip(every, ends, strict=True) if run.whole]
        horizon = min(whole) if whole else max(ends)
        times = {
            key: {seed: _time(run, unit, target, lower) for seed, run in seeds.items()} for key, seeds in runs.items()
        }
        found[unit] = {key: _spent(times, key, reference, horizon) for key in runs}
    return found


def _time(run: Course, unit: Unit, target: float, lower: bool) -> float:
    """T in a unit; infinite where the target was not reached."""
    place = arrival(run.values, target, lower=lower)
    return float(run.costs[unit][place]) if place is not None else float("inf")


def _spent(times: Mapping[Key, Mapping[int, float]], key: Key, reference: Key, horizon: float) -> Spent:
    own, theirs = times[key], times.get(reference, {})
    shared = [min(own[seed], horizon) - min(theirs[seed], horizon) for seed in own if seed in theirs]
    return Spent(
        horizon=horizon,
        spent=interval(min(time, horizon) for time in own.values()),
        reached=sum(time <= horizon for time in own.values()),
        runs=len(own),
        difference=interval(shared) if key != reference else None,
    )
