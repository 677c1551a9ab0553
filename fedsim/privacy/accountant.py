"""Epsilon of Poisson-sampled Gaussian steps, and the noise that reaches a wanted epsilon.

Two accountants, both Opacus': "rdp" (Mironov, Talwar, Zhang 2019, with the conversion of Balle et al. 2020)
and "prv" (Gopi, Lee, Wutschitz 2021), which is tighter and slower. Relation: zero-out, one row more or less.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from fedsim.errors import PrivacyError

Accountant = Literal["rdp", "prv"]

ORDERS = (*range(2, 33), *range(34, 64, 3), 64, 80, 96, 128, 192, 256, 512, 1024)
"""Renyi orders that are always tried; tenths around the best one follow. Past 1024 binomials overflow."""

_TENTHS_UP_TO = 10
_PRV_UP_TO = 25.0
_PRV_POINTS = 4_000_000
_PRV_EPSILON_ERROR = 0.01
_NOISE = (0.01, 1e6)
_PRECISION = 1e-4


class Steps(NamedTuple):
    """A number of private steps at one sampling rate."""

    rate: float
    steps: int


def epsilon(noise_multiplier: float, rate: float, steps: int, delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of `steps` private steps.

    "prv" gives the smaller of both bounds, and RDP's alone where PRV would take longer than seconds: above
    epsilon 25, or on a grid of more than 4 million points.

    Args:
        noise_multiplier: z >= 0, standard deviation of the noise over the clip norm.
        rate: q in [0, 1] with which a row enters a step's batch.
        steps: T >= 0.
        delta: in (0, 1).
        accountant: "rdp" or "prv".

    Returns:
        At least 0; infinite without noise, or where no order converges.
    """
    if steps == 0 or rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    by_rdp = _rdp_epsilon(noise_multiplier, rate, steps, delta)
    return by_rdp if accountant == "rdp" else min(by_rdp, _prv_epsilon(noise_multiplier, rate, steps, delta))


def epsilons(noise_multiplier: float, charges: Sequence[Steps], delta: float, accountant: Accountant) -> np.ndarray:
    """`epsilon` of many charges [N], to the bit; under "rdp" all step counts of a rate in one expression."""
    if accountant == "prv" or noise_multiplier == 0:
        return np.array([epsilon(noise_multiplier, *charge, delta, accountant) for charge in charges])
    rates, steps = np.array([charge.rate for charge in charges]), np.array([charge.steps for charge in charges])
    found = np.zeros(len(charges))
    for rate in set(rates.tolist()) - {0.0}:
        places = np.flatnonzero((rates == rate) & (steps > 0))
        found[places] = _rdp_epsilons(noise_multiplier, rate, steps[places], delta)
    return found


def rounded_up(value: float, places: int = 2) -> str:
    """An epsilon for people, never below the value: what is printed must not promise more than was kept."""
    nearest = f"{value:.{places}f}"
    if float(nearest) < value:
        nearest = f"{value + 10**-places:.{places}f}"
    return nearest if math.isfinite(value) else "infinite"


def largest(
    noise_multiplier: float, charges: Iterable[Steps], delta: float, accountant: Accountant
) -> tuple[float, Steps | None]:
    """The largest epsilon among several charges, and whose it is; (0.0, None) of none.

    RDP bounds both accountants from above, so charges are tried by falling RDP epsilon until it is no
    longer above the largest found: PRV is computed for a few of them only.
    """
    bounds = [(epsilon(noise_multiplier, *charge, delta, "rdp"), charge) for charge in _undominated(charges)]
    most, whose = 0.0, None
    for bound, charge in sorted(bounds, reverse=True):
        if whose is not None and bound <= most:
            break
        found = epsilon(noise_multiplier, *charge, delta, accountant)
        if whose is None or found > most:
            most, whose = found, charge
    return most, whose


def solve_noise(target: float, charges: Iterable[Steps], delta: float, accountant: Accountant) -> float:
    """The smallest noise multiplier, within 1e-4 of itself, under which no charge exceeds epsilon `target`.

    Bisection for the charge that costs most; every charge is then checked forwards, and whichever still
    exceeds the target is solved for next.

    Raises:
        PrivacyError: no noise reaches the target.
    """
    charges = _undominated(charges)
    worst = largest(1.0, charges, delta, "rdp")[1]
    noise = _NOISE[0]
    while worst is not None:
        noise = max(noise * (1 + _PRECISION), _bisect(target, worst, delta, accountant))
        most, worst = largest(noise, charges, delta, accountant)
        if most <= target:
            break
    return noise


def _bisect(target: float, charge: Steps, delta: float, accountant: Accountant) -> float:
    def meets(noise: float) -> bool:
        return epsilon(noise, *charge, delta, accountant) <= target

    low, high = _NOISE[0], 1.0
    while not meets(high):
        low, high = high, 2 * high
        if high > _NOISE[1]:
            raise PrivacyError(
                f"privacy.example.epsilon = {target:g} at delta {delta:g} is reached by no noise over "
                f"{charge.steps:,} steps at rate {charge.rate:.4g}. Raise epsilon or delta, or take fewer steps."
            )
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _undominated(charges: Iterable[Steps]) -> list[Steps]:
    """Charges that no other exceeds in both rate and steps: one of them costs most."""
    kept: list[Steps] = []
    for charge in sorted(set(charges), reverse=True):
        if not kept or charge.steps > kept[-1].steps:
            kept.append(charge)
    return kept


@lru_cache(maxsize=65536)  # neighbouring orders share half of their tenths
def _rdp(noise_multiplier: float, rate: float, order: float) -> float:
    """RDP of one step at one order; infinite where Opacus' series does not converge."""
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        value = float(compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)))
    except (ValueError, OverflowError):
        return math.inf
    return value if value >= 0 else math.inf


@lru_cache(maxsize=65536)
def _rdp_epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    return float(_rdp_epsilons(noise_multiplier, rate, np.array([steps]), delta)[0])


def _rdp_epsilons(noise_multiplier: float, rate: float, steps: np.ndarray, delta: float) -> np.ndarray:
    """[N] the least epsilon over ORDERS and, where these are far apart for their size, tenths around the best."""
    by_order = _by_order(noise_multiplier, rate, ORDERS, steps, delta)
    found, best = by_order.min(axis=1), np.array(ORDERS)[by_order.argmin(axis=1)]
    for order in set(best[best <= _TENTHS_UP_TO].tolist()):
        tenths = tuple(order + tenth / 10 for tenth in range(-9, 10) if tenth)
        near = best == order
        between = _by_order(noise_multiplier, rate, tenths, steps[near], delta).min(axis=1)
        found[near] = np.minimum(found[near], between)
    clipped: np.ndarray = np.maximum(found, 0.0)
    return clipped


def _by_order(
    noise_multiplier: float, rate: float, orders: tuple[float, ...], steps: np.ndarray, delta: float
) -> np.ndarray:
    """[N, orders] epsilon at each order: Balle et al. 2020, theorem 21; infinite where RDP is."""
    alpha = np.array(orders, dtype=float)
    conversion = np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    by_order: np.ndarray = steps[:, None] * _curve(noise_multiplier, rate, orders) + conversion
    return by_order


@lru_cache(maxsize=65536)
def _curve(noise_multiplier: float, rate: float, orders: tuple[float, ...]) -> np.ndarray:
    """RDP of one step at each order, computed once for each rate."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curve: np.ndarray = np.array([_rdp(noise_multiplier, rate, order) for order in orders])
    return curve


@lru_cache(maxsize=4096)
def _prv_epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """PRV's upper bound, or infinity where it would take too long or cannot be computed."""
    from opacus.accountants import PRVAccountant

    if _rdp_epsilon(noise_multiplier, rate, steps, delta) > _PRV_UP_TO:
        return math.inf
    if _prv_points(noise_multiplier, rate, steps, delta) > _PRV_POINTS:
        return math.inf
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, rate, steps)]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta, eps_error=_PRV_EPSILON_ERROR))
    except (ValueError, RuntimeError, OverflowError):
        return math.inf
    return found if found >= 0 else math.inf


def _prv_points(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Size of PRV's grid: Gopi et al., remark 5.6, as Opacus chooses it."""
    error = delta / 1000
    mesh = _PRV_EPSILON_ERROR / math.sqrt(steps * math.log(12 / error) / 2)
    all_steps = _rdp_epsilon(noise_multiplier, rate, steps, error / 4)
    one_step = _rdp_epsilon(noise_multiplier, rate, 1, error / (8 * steps))
    return 2 * (max(all_steps, one_step) + 3) / mesh
