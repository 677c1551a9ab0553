"""How well scores tell members from others: areas, curves and rates, with their limits."""

from typing import NamedTuple

import numpy as np

from fedsim.audit.bounds import CONFIDENCE, Interval, interval

_POINTS = 400  # of a curve that is drawn


class AtRate(NamedTuple):
    """How many members are recognised while at most so many others are taken for one.

    Attributes:
        rate: of others.
        found: share of members; None where the others are too few for that rate.
        limits: of it, at the threshold that the others set.
    """

    rate: float
    found: float | None
    limits: Interval


def area(members: np.ndarray, others: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, Interval]:
    """The probability that a member's score is above another's, ties counting half, and its limits.

    DeLong, DeLong and Clarke-Pearson 1988: its variance is that of members' and others' mean placements.

    Args:
        members, others: scores, at least one of each.
        confidence: of the limits.
    """
    from scipy import stats

    placed = _placements(members, others)
    placed_others = 1 - _placements(others, members)
    variance = sum(np.var(each, ddof=1) / len(each) if len(each) > 1 else 0.25 for each in (placed, placed_others))
    value, reach = float(placed.mean()), float(stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance))
    return value, Interval(max(0.0, value - reach), min(1.0, value + reach))


def curve(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    false, true = (
        np.concatenate([[0.0], (len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")) / len(scores)])
        for scores in (others, members)
    )
    return false, true


def at_rate(members: np.ndarray, others: np.ndarray, rate: float) -> AtRate:
    """Members above the threshold that at most a share `rate`, in (0, 1), of the others is above."""
    allowed = int(rate * len(others) + 1e-9)
    if not allowed:
        return AtRate(rate, None, Interval(0.0, 1.0))
    threshold = np.sort(others)[len(others) - allowed - 1]
    found = int((members > threshold).sum())
    return AtRate(rate, found / len(members), interval(found, len(members)))


def thinned(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve with few enough points to be drawn, as dense as it can be where false positives are few."""
    if len(false) <= _POINTS:
        return false, true
    wanted = np.concatenate([[0.0], np.geomspace(false[false > 0].min(), 1, _POINTS)])
    places = np.unique(np.searchsorted(false, wanted, side="right") - 1)
    return false[places], true[places]


def _placements(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each score the share of `among` that is below it, ties counting half."""
    ordered = np.sort(among)
    below, upto = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return np.asarray((below + upto) / (2 * len(among)))
