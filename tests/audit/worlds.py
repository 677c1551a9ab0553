"""Lower bounds from many independent runs with a unit and without it, for tests of the audits' power."""

import numpy as np
from scipy import stats

from fedsim.audit.bounds import CONFIDENCE


def repeated_bound(
    hits: int, inside: int, alarms: int, outside: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """A lower bound from many independent runs with the unit and without it.

    (epsilon, delta)-DP bounds every test by TPR <= e^epsilon FPR + delta, and by the same with the worlds exchanged,
    1 - FPR <= e^epsilon (1 - TPR) + delta (Kairouz, Oh and Viswanath 2015, theorem 2.1). Both rates are taken at
    Clopper and Pearson's limits, each missed with half of 1 - confidence, so that they hold together.

    Args:
        hits: runs with the unit that the test recognised.
        inside: runs with the unit.
        alarms: runs without it in which the test said it was there.
        outside: runs without it.
        delta: of the mechanism.
        confidence: in (0, 1).
    """
    return float(_repeated_bounds(np.array([hits]), inside, np.array([alarms]), outside, delta, confidence)[0])


def split_bound(with_unit: np.ndarray, without: np.ndarray, delta: float, confidence: float = CONFIDENCE) -> float:
    """`repeated_bound` of the test "score >= threshold", the threshold chosen on the first half of the runs.

    Args:
        with_unit, without: [n] scores of independent runs in the two worlds; a higher one speaks for the unit.
        delta, confidence: as for `repeated_bound`, which is given the second half.
    """
    (train_in, test_in), (train_out, test_out) = _halves(with_unit), _halves(without)
    thresholds = np.unique(np.concatenate([train_in, train_out]))
    hits, alarms = _at_least(train_in, thresholds), _at_least(train_out, thresholds)
    bounds = _repeated_bounds(hits, len(train_in), alarms, len(train_out), delta, confidence)
    best = thresholds[bounds.argmax()]
    hits, alarms = _at_least(test_in, best), _at_least(test_out, best)
    return repeated_bound(int(hits), len(test_in), int(alarms), len(test_out), delta, confidence)


def _repeated_bounds(
    hits: np.ndarray, inside: int, alarms: np.ndarray, outside: int, delta: float, confidence: float
) -> np.ndarray:
    one_sided = (1 + confidence) / 2
    least_hits = _lower_limits(hits, inside, one_sided)
    least_silent = _lower_limits(outside - alarms, outside, one_sided)
    forward = _log_ratios(least_hits - delta, 1 - least_silent)
    backward = _log_ratios(least_silent - delta, 1 - least_hits)
    return np.asarray(np.maximum(0.0, np.maximum(forward, backward)))


def _lower_limits(successes: np.ndarray, trials: int, confidence: float) -> np.ndarray:
    """Clopper and Pearson's one-sided lower limits for probabilities."""
    limits = stats.beta.ppf(1 - confidence, np.maximum(successes, 1), trials - successes + 1)
    return np.asarray(np.where(successes > 0, limits, 0.0))


def _log_ratios(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """log(part / whole), minus infinity where there is no part; a whole is a limit above 0."""
    logs: np.ndarray = np.log(np.maximum(parts, 1e-300)) - np.log(wholes)
    return np.where(parts > 0, logs, -np.inf)


def _at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores reach each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left"))


def _halves(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores[: len(scores) // 2], scores[len(scores) // 2 :]
