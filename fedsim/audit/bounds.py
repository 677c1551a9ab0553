"""From guesses to a lower bound on epsilon.

Every bound is a statement at a confidence: a mechanism that is (epsilon, delta)-DP with a smaller epsilon would give
such guesses at most that rarely. A bound above the claim refutes the claim; one below it confirms nothing.
"""

import math
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Limits between which a number lies, at some confidence."""

    low: float
    high: float


def chance_of(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The most that (epsilon, delta)-DP allows the probability of so many right guesses to be.

    Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2: with
    W ~ Binomial(r, 1 / (1 + e^-epsilon)) it is P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i.

    Args:
        canaries: m, each in or out by a fair coin of its own.
        guesses: r <= m, those on which the auditor does not abstain.
        right: v <= r.
        epsilon, delta: of the mechanism.
    """
    from scipy import stats

    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, accuracy))
    if not delta or not right:
        return tail
    below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    return min(tail + 2 * canaries * delta * float((below / np.arange(1, right + 1)).max()), 1.0)


def one_run_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that so many right guesses refute; 0 where they refute none.

    Args:
        canaries, guesses, right, delta: as for `chance_of`.
        confidence: in (0, 1).
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"{right} right of {guesses} guesses on {canaries} canaries")
    low, high = 0.0, 1.0
    while chance_of(canaries, guesses, right, high, delta) < 1 - confidence:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        if chance_of(canaries, guesses, right, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Clopper and Pearson's exact interval for a probability; (0, 1) without trials."""
    one_sided = (1 + confidence) / 2
    low, complement = _lower_limits(np.array([successes, trials - successes]), trials, one_sided).tolist()
    return Interval(low, 1 - complement)


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


def perfect_guesses(epsilon: float, confidence: float = CONFIDENCE) -> int | None:
    """How many guesses, all right, it takes to refute an epsilon at delta 0; None where no number would."""
    most = math.log1p(math.exp(-epsilon)) if epsilon < 700 else 0.0  # minus the logarithm of a guess' best accuracy
    return math.ceil(-math.log(1 - confidence) / most) if most else None


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
    from scipy import stats

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
