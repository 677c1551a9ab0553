"""How far fedsim's accountants lie from independent ones, over a grid of settings: the worst of each comparison.

    python benchmarks/accountants.py            three minutes of one core
    python benchmarks/accountants.py --quick    a tenth of the grid

Settings are compared where PLD's epsilon lies between 0.05 and 20. Independent are Opacus' and dp-accounting's own
accountants as they come, the closed form of the Gaussian without sampling, and the hockey-stick divergence of one
release integrated on a grid. tests/privacy/test_accounting_grid.py holds the same comparisons to their bounds.
"""

import argparse
import itertools
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim import seeds
from fedsim.privacy.accountant import Charge, Relation, epsilon
from fedsim.privacy.renyi import ORDERS, Release, curve, mixtures_divergence

NOISES = (0.8, 1.0, 1.5, 2.5, 5.0, 10.0)
RATES = (0.001, 0.01, 0.1, 0.4, 1.0)
STEPS = (1, 10, 100, 1_000, 10_000)
DELTAS = (1e-3, 1e-5, 1e-7)
WITHIN = (0.05, 20.0)
"""PLD's epsilon, of the settings that are compared."""

SAME = "RDP / Opacus' RDP - 1"
WHOLE = "RDP curve / dp-acc.'s - 1"
CONVERGED = "RDP / dp-accounting's - 1"
ABOVE = "RDP - PLD"
PRV = "PRV - PLD"
PLD = "our PLD - PLD"
CLOSED = "PLD - closed form"
CLOSED_PRV = "PRV - closed form"
ONE = "PLD - quadrature"
ONE_PRV = "PRV - quadrature"
REPLACE_ABOVE = "replace: RDP - PLD"
REPLACE_PLD = "replace: our PLD - PLD"
REPLACE_ONE = "replace: PLD - quadrature"
FIXED = "fixed: RDP / dp-acc.'s - 1"
CURVE = "integral / Opacus' RDP - 1"

BOUNDS: dict[str, tuple[float, float]] = {
    SAME: (-0.005, 0.005),
    # dp-accounting 0.6 adds the sizes of terms that alternate in sign between whole orders, so that it is up to 77
    # times too high there: curves are compared at whole orders, and its epsilon, which has them all, from above alone.
    WHOLE: (-0.005, 0.005),
    CONVERGED: (-math.inf, 0.005),
    ABOVE: (0.0, math.inf),
    PRV: (-0.001, 0.02),
    PLD: (-0.001, 0.001),
    CLOSED: (-0.001, 0.001),
    CLOSED_PRV: (-0.001, 0.02),
    ONE: (-0.001, 0.001),
    ONE_PRV: (-0.001, 0.02),
    REPLACE_ABOVE: (0.0, math.inf),
    REPLACE_PLD: (-0.001, 0.001),
    REPLACE_ONE: (-0.001, 0.001),
    FIXED: (-1e-9, math.inf),  # dp-accounting has the paper's theorem 27, tighter than theorem 9 where noise is large
    CURVE: (-1e-6, 1e-6),
}
"""Of every comparison: between what its deviation must lie."""

_RELATIONS = {"zero-out": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace": NeighboringRelation.REPLACE_ONE}
_TENTHS = tuple(order / 10 for order in range(11, 110) if order % 10)


class Mechanism(NamedTuple):
    """Poisson-sampled Gaussian releases."""

    noise: float
    rate: float
    steps: int


class Deviation(NamedTuple):
    """How far one setting lies from what it is compared with."""

    comparison: str
    setting: str
    value: float

    @property
    def room(self) -> float:
        """How far inside its bounds it lies; negative outside."""
        low, high = BOUNDS[self.comparison]
        return min(self.value - low, high - self.value)


def main() -> None:
    """Measure the grid and print each comparison's worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    mechanisms = grid()
    if parser.parse_args().quick:
        mechanisms = sample(mechanisms, len(mechanisms) // 10)
    print("\n".join(table(deviations(mechanisms))))


def table(found: Iterable[Deviation]) -> list[str]:
    """Lines of at most 80 columns: of each comparison its number of settings, worst deviation and bounds."""
    by_comparison: dict[str, list[Deviation]] = {}
    for one in found:
        by_comparison.setdefault(one.comparison, []).append(one)
    lines = [f"{'comparison':<26} {'n':>4} {'worst':>9} {'bounds':>14}  at"]
    for comparison, (low, high) in BOUNDS.items():
        of_one = by_comparison.get(comparison, [])
        if of_one:
            worst = min(of_one, key=lambda one: one.room)
            bounds = f"{low:g} .. {high:g}"
            lines.append(f"{comparison:<26} {len(of_one):>4} {worst.value:>+9.2g} {bounds:>14}  {worst.setting}")
    return lines


def grid() -> list[Mechanism]:
    """Mechanisms whose epsilon at delta 1e-5 is of use to somebody; with every delta they make the settings."""
    every = itertools.starmap(Mechanism, itertools.product(NOISES, RATES, STEPS))
    return [one for one in every if 0.1 <= epsilon(Charge(*one), 1e-5, "rdp") <= WITHIN[1]]


def sample(mechanisms: Sequence[Mechanism], count: int) -> list[Mechanism]:
    """Some of them, always the same; among them one release, and no sampling."""
    drawn = seeds.numpy_generator(1, "benchmark").permutation(len(mechanisms)).tolist()
    alone = next(place for place in drawn if mechanisms[place].steps == 1)
    whole = next(place for place in drawn if mechanisms[place].rate == 1)
    return [mechanisms[place] for place in sorted({alone, whole, *drawn[:count]})]


def deviations(mechanisms: Iterable[Mechanism]) -> Iterator[Deviation]:
    """All comparisons of all mechanisms at every delta."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # dp-accounting tells of every order that does not converge
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for mechanism in mechanisms:
            yield from _zero_out(mechanism)
            yield from _replace(mechanism)
            yield from _fixed(mechanism)
            yield from _curve(mechanism)


def _zero_out(mechanism: Mechanism) -> Iterator[Deviation]:
    charge = Charge(*mechanism)
    for delta, pld in _plds(mechanism, "zero-out"):
        setting = _named(mechanism, delta)
        rdp, prv = epsilon(charge, delta, "rdp"), epsilon(charge, delta, "prv")
        yield Deviation(SAME, setting, rdp / _opacus(mechanism, delta) - 1)
        if mechanism.rate < 1 and np.isfinite(_converged(mechanism).rdp).all():
            yield Deviation(CONVERGED, setting, rdp / _converged(mechanism).get_epsilon(delta) - 1)
        yield Deviation(ABOVE, setting, rdp - pld)
        yield Deviation(PRV, setting, prv - pld)
        yield Deviation(PLD, setting, epsilon(charge, delta, "pld") - pld)
        if mechanism.rate == 1:
            exact = epsilon(charge, delta, "exact")
            yield Deviation(CLOSED, setting, pld - exact)
            yield Deviation(CLOSED_PRV, setting, prv - exact)
        if mechanism.steps == 1:
            integrated = max(_hockey_stick(mechanism, delta, *means) for means in ((1, 0), (0, 1)))
            yield Deviation(ONE, setting, pld - integrated)
            yield Deviation(ONE_PRV, setting, prv - integrated)


def _replace(mechanism: Mechanism) -> Iterator[Deviation]:
    charge = Charge(*mechanism, relation="replace")
    for delta, pld in _plds(mechanism, "replace"):
        setting = _named(mechanism, delta)
        yield Deviation(REPLACE_ABOVE, setting, epsilon(charge, delta, "rdp") - pld)
        yield Deviation(REPLACE_PLD, setting, epsilon(charge, delta, "pld") - pld)
        if mechanism.steps == 1:
            yield Deviation(REPLACE_ONE, setting, pld - _hockey_stick(mechanism, delta, 1, -1))


def _fixed(mechanism: Mechanism) -> Iterator[Deviation]:
    """A cohort of fixed size among 1,000, of which one is replaced by another, 2 C away."""
    accountant = RdpAccountant(orders=(*ORDERS, *_TENTHS), neighboring_relation=NeighboringRelation.REPLACE_ONE)
    one = SampledWithoutReplacementDpEvent(1_000, round(1_000 * mechanism.rate), GaussianDpEvent(mechanism.noise / 2))
    accountant.compose(SelfComposedDpEvent(one, mechanism.steps))
    for delta in DELTAS:
        ours = epsilon(Charge(*mechanism, relation="replace", sampling="fixed"), delta, "rdp")
        theirs = accountant.get_epsilon(delta)
        if mechanism.rate < 1 and WITHIN[0] <= theirs <= WITHIN[1]:
            yield Deviation(FIXED, _named(mechanism, delta), ours / theirs - 1)


def _curve(mechanism: Mechanism) -> Iterator[Deviation]:
    """One release's RDP; and the integral that gives it under relation replace, over the pair of relation zero-out."""
    if mechanism.rate < 1:
        accountant = RdpAccountant(orders=ORDERS)
        accountant.compose(PoissonSampledDpEvent(mechanism.rate, GaussianDpEvent(mechanism.noise)))
        whole = curve(Release(mechanism.noise, mechanism.rate, "zero-out", "poisson"), ORDERS) / accountant.rdp - 1
        yield Deviation(WHOLE, _named(mechanism), float(whole[np.abs(whole).argmax()]))
        orders, theirs = _opacus_curve(mechanism.noise, mechanism.rate)
        ours = [mixtures_divergence(1.0, 0.0, mechanism.noise, mechanism.rate, order) for order in orders]
        off = np.array(ours) / theirs - 1
        yield Deviation(CURVE, _named(mechanism), float(off[np.abs(off).argmax()]))


def _plds(mechanism: Mechanism, relation: Relation) -> Iterator[tuple[float, float]]:
    """Deltas and dp-accounting's epsilons at them, those that are compared."""
    accountant = PLDAccountant(_RELATIONS[relation])
    one = PoissonSampledDpEvent(mechanism.rate, GaussianDpEvent(mechanism.noise))
    accountant.compose(SelfComposedDpEvent(one, mechanism.steps))
    for delta in DELTAS:
        found = float(accountant.get_epsilon(delta))
        if WITHIN[0] <= found <= WITHIN[1]:
            yield delta, found


def _opacus(mechanism: Mechanism, delta: float) -> float:
    orders, theirs = _opacus_curve(mechanism.noise, mechanism.rate)
    return float(get_privacy_spent(orders=orders, rdp=mechanism.steps * theirs, delta=delta)[0])


@cache
def _opacus_curve(noise: float, rate: float) -> tuple[list[float], np.ndarray]:
    """Opacus' RDP of one release at our orders and the tenths among them, those at which its series converges."""
    orders, found = [], []
    for order in (*ORDERS, *_TENTHS):
        try:
            found.append(float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order))))
            orders.append(float(order))
        except (ValueError, OverflowError):
            continue
    return orders, np.array(found)


@cache
def _converged(mechanism: Mechanism) -> RdpAccountant:
    accountant = RdpAccountant(orders=(*ORDERS, *_TENTHS))
    one = PoissonSampledDpEvent(mechanism.rate, GaussianDpEvent(mechanism.noise))
    accountant.compose(SelfComposedDpEvent(one, mechanism.steps))
    return accountant


def _hockey_stick(mechanism: Mechanism, delta: float, above: int, below: int) -> float:
    """Epsilon at which the integral of P - e^epsilon Q, where it is above 0, is delta.

    P and Q are N(0, z^2), shifted by `above` or `below` with probability q.
    """
    noise, rate, _ = mechanism
    x = np.linspace(-1 - 12 * noise, 1 + 12 * noise, 200_001)
    p, q = ((1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, mean, noise) for mean in (above, below))

    def excess(eps: float) -> float:
        return float(np.trapezoid(np.maximum(p - math.exp(eps) * q, 0), x)) - delta

    return 0.0 if excess(0) <= 0 else float(brentq(excess, 0, 60))


def _named(mechanism: Mechanism, delta: float | None = None) -> str:
    """Noise, rate, steps and delta in one word."""
    return "/".join(f"{number:g}" for number in (*mechanism, delta) if number is not None)


if __name__ == "__main__":
    main()
