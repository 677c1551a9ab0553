"""Renyi differential privacy of Gaussian releases, and the epsilon it converts to.

A release's curve gives, for each order alpha, the Renyi divergence of its worst pair of outputs. Curves of releases
one after another add up, and Balle et al. 2020, theorem 21, turns a curve into epsilon at a delta.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Relation = Literal["zero-out", "replace"]
Sampling = Literal["poisson", "fixed"]

ORDERS = (*range(2, 33), *range(34, 64, 3), 64, 80, 96, 128, 192, 256, 512, 1024)
"""Renyi orders that are always tried; tenths around the best one follow. Past 1024 binomials overflow."""

_TENTHS_UP_TO = 10
_TAIL = 12.0  # standard deviations, beyond which lies e^-72 of an integral
_POINTS = 1_000_000


class Release(NamedTuple):
    """One Gaussian release; at rate 1 under relation zero-out, Poisson-sampled."""

    noise: float  # standard deviation of the noise over the largest norm C of one unit's contribution
    rate: float  # q in (0, 1]
    relation: Relation
    sampling: Sampling


def epsilons(releases: Sequence[Release], steps: np.ndarray, delta: float) -> np.ndarray:
    """[N] the least epsilon over ORDERS and, where these are far apart for their size, tenths around the best.

    Args:
        releases: R kinds.
        steps: [N, R] how many of each kind, > 0.
        delta: in (0, 1).
    """
    by_order = _by_order(releases, ORDERS, steps, delta)
    found, best = by_order.min(axis=1), np.array(ORDERS)[by_order.argmin(axis=1)]
    for order in set(best[best <= _TENTHS_UP_TO].tolist()):
        tenths = tuple(order + tenth / 10 for tenth in range(-9, 10) if tenth)
        near = best == order
        between = _by_order(releases, tenths, steps[near], delta).min(axis=1)
        found[near] = np.minimum(found[near], between)
    clipped: np.ndarray = np.maximum(found, 0.0)
    return clipped


def _by_order(releases: Sequence[Release], orders: tuple[float, ...], steps: np.ndarray, delta: float) -> np.ndarray:
    """[N, orders] epsilon at each order; infinite where RDP is."""
    total: np.ndarray = np.asarray(sum(steps[:, [r]] * curve(release, orders) for r, release in enumerate(releases)))
    return converted(total, orders, delta)


def converted(total: np.ndarray, orders: tuple[float, ...], delta: float) -> np.ndarray:
    """[..., orders] epsilon at `delta` of an RDP [..., orders] at each order: Balle et al. 2020, theorem 21."""
    alpha = np.array(orders, dtype=float)
    by_order: np.ndarray = total + (np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1))
    return by_order


@lru_cache(maxsize=65536)
def curve(release: Release, orders: tuple[float, ...]) -> np.ndarray:
    """[orders] RDP of one release at each order, computed once for each release."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: np.ndarray = np.array([_rdp(release, order) for order in orders])
    return found


@lru_cache(maxsize=65536)  # neighbouring orders share half of their tenths
def _rdp(release: Release, order: float) -> float:
    if release.relation == "zero-out":
        return _poisson_zero_out(release.noise, release.rate, order)
    unsampled = order * (2 / release.noise) ** 2 / 2  # sampling only ever takes away
    if release.sampling == "fixed":
        return min(unsampled, _fixed_replace(release.noise, release.rate, order))
    return min(unsampled, mixtures_divergence(1.0, -1.0, release.noise, release.rate, order))


def _poisson_zero_out(noise: float, rate: float, order: float) -> float:
    """Mironov, Talwar, Zhang 2019, as Opacus computes it; infinite where its series does not converge."""
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        value = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order)))
    except (ValueError, OverflowError):
        return math.inf
    return value if value >= 0 else math.inf


def mixtures_divergence(above: float, below: float, noise: float, rate: float, order: float) -> float:
    """Renyi divergence of P = (1-q) N(0, z^2) + q N(above, z^2) from Q = (1-q) N(0, z^2) + q N(below, z^2).

    With above 1 and below -1 the pair dominates Poisson sampling under relation replace (Lebeda, Regehr, Kamath,
    Steinke 2024 discuss it). For a set S of outputs, the others' contributions given, let N(0, z^2) have mass
    Phi(-t) on S; by Neyman and Pearson a shift by at most 1 gives S a mass of at most Phi(1/z - t) and at least
    Phi(-1/z - t), and the half-line from t attains both at once. So no pair has a larger P(S) - e^epsilon Q(S).

    In units of z, A = E_Q[(P/Q)^alpha] is 1 + E_Q[(P/Q)^alpha - 1 - alpha (P/Q - 1)], whose terms are never
    negative, so nothing cancels however rarely a unit is sampled. The trapezoidal rule sums them in log space.
    Left of 0 and right of alpha above + (alpha - 1) |below| they fall as fast as a normal density. The step keeps
    the rule's error, about exp(-2 pi a / h + a^2/2 (1 + alpha s^2/4)) for the best a within the strip where
    neither density is 0, near e^-36.

    Args:
        above: >= 0, over C.
        below: <= 0, over C.
        noise: z > 0, over C.
        rate: q in (0, 1).
        order: alpha > 1.

    Returns:
        The divergence; infinite where it would take more than a million points.
    """
    from scipy.special import logsumexp

    up, down = above / noise, below / noise
    shift = max(up, -down)
    step = min(0.25, 0.25 / shift, 0.7 / math.sqrt(1 + order * shift**2 / 4))
    first, last = -_TAIL, order * up - (order - 1) * down + _TAIL
    if not (last - first) / step <= _POINTS:
        return math.inf
    y = np.arange(first, last + step, step)
    log_p, log_q = (_log_mixture(y, mean, rate) for mean in (up, down))
    log_weight = log_q - y**2 / 2 + math.log(step) - math.log(2 * math.pi) / 2
    log_excess = float(logsumexp(log_weight + _log_bernoulli(log_p - log_q, order)))
    return float(np.logaddexp(0.0, log_excess)) / (order - 1)


def _log_mixture(y: np.ndarray, mean: float, rate: float) -> np.ndarray:
    """Log density of (1-q) N(0, 1) + q N(mean, 1) over that of N(0, 1)."""
    mixture: np.ndarray = np.logaddexp(math.log1p(-rate), math.log(rate) + mean * y - mean**2 / 2)
    return mixture


def _log_bernoulli(u: np.ndarray, order: float) -> np.ndarray:
    """Log of e^(alpha u) - 1 - alpha (e^u - 1), which is at least 0."""
    large = order * u > 50
    small = np.where(large, 0.0, u)
    with np.errstate(divide="ignore"):  # it is 0 where P = Q
        near = np.log(np.maximum(np.expm1(order * small) - order * np.expm1(small), 0.0))
    rest = np.exp(-order * u) + order * (np.exp((1 - order) * u) - np.exp(-order * u))
    found: np.ndarray = np.where(large, order * u + np.log1p(-np.where(large, rest, 0.0)), near)
    return found


def _fixed_replace(noise: float, rate: float, order: float) -> float:
    """A cohort of fixed size m of K, q = m/K, under relation replace: Wang, Balle, Kasiviswanathan 2019, theorem 9.

    Two data sets are 2C apart, so one release to all has RDP alpha / (2 (z/2)^2). Between whole orders
    (alpha - 1) RDP is at most its chord (their corollary 10).
    """
    whole = math.floor(order)
    part = order - whole
    chord = (1 - part) * _log_moment(noise / 2, rate, whole)
    if part:
        chord += part * _log_moment(noise / 2, rate, whole + 1)
    return chord / (order - 1)


def _log_moment(noise: float, rate: float, order: int) -> float:
    """(alpha - 1) RDP of theorem 9 for a Gaussian, whose epsilon at order infinity is infinite."""
    from scipy.special import gammaln, logsumexp

    if order == 1:
        return 0.0
    j = np.arange(2, order + 1)
    log_binomial = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    log_terms = math.log(2) + j * (j - 1) / (2 * noise**2)
    at_two = 1 / noise**2
    log_terms[0] = min(math.log(4) + at_two + math.log(-math.expm1(-at_two)), math.log(2) + at_two)
    return float(np.logaddexp(0.0, logsumexp(j * math.log(rate) + log_binomial + log_terms)))
