"""The Gaussian mechanism without sampling, exactly: its delta at an epsilon, its epsilon at a delta.

Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8; Dong, Roth, Su,
"Gaussian Differential Privacy", 2019, corollary 1: N(0, 1) against N(mu, 1) has

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu),

and releases with mu_1, mu_2, ... together are one with mu^2 = mu_1^2 + mu_2^2 + ...
"""

import math

_SMALL_MU = 1e-4  # below it Mills' ratio falls too little for a difference, but smoothly: its slope is integrated
_LARGEST_MU = 1e150  # its square is epsilon's order of magnitude
_MARGIN = 1e-9  # of epsilon, rounded up; arithmetic errs by less
_ROUNDING = 1e-14  # of mu (1 + mu): what a tiny epsilon keeps of the rounding of its terms
_HALVINGS = 100


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The smallest delta with which N(0, 1) against N(mu, 1) is (epsilon, delta)-private.

    Args:
        mu: > 0, distance of the two means over the standard deviation.
        epsilon: >= 0.

    Returns:
        In [0, 1]; to a relative 1e-9 wherever it is above 1e-300.
    """
    return math.exp(_log_delta(mu, epsilon / mu - mu / 2))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at `delta`, rounded up by a relative 1e-9; 0 without any distance.

    Args:
        mu: >= 0; infinite without noise.
        delta: in (0, 1).
    """
    if mu == 0:
        return 0.0
    if mu > _LARGEST_MU:
        return math.inf
    target = math.log(delta)
    low, high = -mu / 2, math.sqrt(-2 * target)  # delta(epsilon) <= Phi(-t) <= exp(-t^2/2)
    if high <= low or _log_delta(mu, low) <= target:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _log_delta(mu, middle) <= target else (middle, high)
    return mu * (high + mu / 2) * (1 + _MARGIN) + _ROUNDING * mu * (1 + mu)


def _log_delta(mu: float, t: float) -> float:
    """Log of delta at epsilon = mu (t + mu/2); -inf where it is not above 0.

    With Mills' ratio R(t) = Phi(-t) / phi(t) and e^epsilon phi(t + mu) = phi(t), delta = phi(t) (R(t) - R(t + mu)).
    R falls by 1 - t R(t), which Simpson's rule integrates.
    """
    log_density = -t * t / 2 - math.log(2 * math.pi) / 2
    if mu < _SMALL_MU:
        first, middle, last = (1 - x * _mills(x) for x in (t, t + mu / 2, t + mu))
        return log_density + _log(mu / 6 * (first + 4 * middle + last))
    if t >= 0:
        return log_density + _log(_mills(t) - _mills(t + mu))
    return _log(_normal_above(t) - math.exp(log_density) * _mills(t + mu))


def _normal_above(t: float) -> float:
    return math.erfc(t / math.sqrt(2)) / 2


def _mills(t: float) -> float:
    from scipy.special import erfcx

    return math.sqrt(math.pi / 2) * float(erfcx(t / math.sqrt(2)))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
