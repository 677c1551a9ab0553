"""From guesses to a lower bound on epsilon.

Every bound is a statement at a confidence: a mechanism that is (epsilon, delta)-DP with a smaller epsilon would give
such guesses at most that rarely. A bound above the claim refutes the claim; one below it confirms nothing.
"""

import math
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
MOST_GUESSES = 2**17
"""Beyond which nobody looks: at delta 1e-5 fewer refute all that any number does."""
_BEYOND = 30.0


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


def perfect_guesses(epsilon: float, delta: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest guesses, all right, that refute an epsilon at `delta`; None where not even `MOST_GUESSES` do.

    Above delta 0 more canaries help up to a point only: the theorem's second term grows with them.
    """
    if epsilon >= _BEYOND:
        return None

    def refuted(guesses: int) -> bool:
        return chance_of(guesses, guesses, guesses, epsilon, delta) < 1 - confidence

    most = next((1 << power for power in range(MOST_GUESSES.bit_length()) if refuted(1 << power)), None)
    if most is None:
        return None
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if refuted(middle) else (middle, most)
    return most


def _lower_limits(successes: np.ndarray, trials: int, confidence: float) -> np.ndarray:
    """Clopper and Pearson's one-sided lower limits for probabilities."""
    from scipy import stats

    limits = stats.beta.ppf(1 - confidence, np.maximum(successes, 1), trials - successes + 1)
    return np.asarray(np.where(successes > 0, limits, 0.0))
