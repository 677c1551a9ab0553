"""Epsilon of Gaussian releases, and the noise that reaches a wanted epsilon.

Four accountants, each an upper bound:
    rdp    Renyi DP (`renyi`): every relation and sampling, in no time, not tight.
    prv    Opacus' privacy loss random variables (Gopi, Lee, Wutschitz 2021): relation zero-out, Poisson; tight.
    pld    dp-accounting's privacy loss distributions (Doroshenko et al. 2022): both relations, Poisson; tight.
    exact  the closed form of the Gaussian (`gaussian`): without sampling only.

Relations: zero-out takes one unit's contribution away, at a distance of C; replace puts another in its place, at up
to 2C. At rate 1 a release under replace is therefore one under zero-out with half the noise.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from fedsim.errors import PrivacyError
from fedsim.privacy import renyi
from fedsim.privacy.gaussian import gaussian_epsilon
from fedsim.privacy.renyi import Release

Accountant = Literal["rdp", "prv", "pld", "exact"]
Relation = renyi.Relation
Sampling = renyi.Sampling

_PRV_UP_TO = 25.0
_PRV_POINTS = 4_000_000
_PRV_EPSILON_ERROR = 0.01
_PLD_TAIL = 1e-15  # mass that dp-accounting gives up when it composes
_PLD_ROUNDING = 2e-16  # of delta for each release, twice what its Fourier transforms were seen to lose
_PLD_STEPS = 1_000_000
_PLD_MESH = (1e-3, 1e-2)  # the coarsest for one release, and for any number
_PLD_POINTS = (300_000, 2_000_000)  # of one release, and of all together
_FACTOR = (0.01, 1e6)
_PRECISION = 1e-4


class Charge(NamedTuple):
    """Gaussian releases of one kind, one after another.

    Attributes:
        noise: z >= 0, standard deviation of the noise over the largest norm C of one unit's contribution.
        rate: q in [0, 1], probability with which a unit enters a release; sampling "fixed": the cohort's share m/K.
        steps: T >= 0 releases.
        relation: "zero-out" or "replace".
        sampling: "poisson" or "fixed".
    """

    noise: float
    rate: float
    steps: int
    relation: Relation = "zero-out"
    sampling: Sampling = "poisson"


def refusal(accountant: Accountant, rate: float, relation: Relation, sampling: Sampling) -> str | None:
    """Why this accountant cannot do such releases, and which can; None where it can."""
    if rate in (0, 1):
        return None
    if sampling == "fixed" and relation == "zero-out":
        return (
            "amplification of a fixed-size cohort holds only under relation replace; Poisson cohorts are cheaper: "
            "cohort.poisson = q"
        )
    if sampling == "fixed" and accountant != "rdp":
        return f"accountant {accountant} cannot do a fixed-size cohort at rate {rate:.4g}; take rdp"
    if accountant == "exact":
        nearest = "prv or pld" if relation == "zero-out" else "pld"
        return f"accountant exact holds only without sampling, and the rate is {rate:.4g}; take {nearest}, or rdp"
    if accountant == "prv" and relation == "replace":
        return "accountant prv knows only relation zero-out; take pld, or rdp"
    return None


def epsilon(charge: Charge, delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of one charge.

    "prv" and "pld" give the smaller of their own bound and RDP's, and RDP's alone where their own would take
    longer than seconds: PRV above epsilon 25 or on a grid of more than 4 million points, PLD over more than a
    million steps or on a grid coarser than 0.01. So does PLD where rounding is a tenth of delta (2e-15 a step).

    Args:
        charge: the releases.
        delta: in (0, 1).
        accountant: one that does not refuse them.

    Returns:
        At least 0; infinite without noise, or where no order converges.

    Raises:
        PrivacyError: the accountant cannot do such releases, or "pld" lacks its package.
    """
    return composed((charge,), delta, accountant)


def composed(charges: Sequence[Charge], delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of all charges together, on one unit; otherwise as `epsilon`.

    Raises:
        PrivacyError: relations differ among the charges.
    """
    _refuse(charges, accountant)
    relations = sorted({charge.relation for charge in charges})
    if len(relations) > 1:
        raise PrivacyError(f"relations {' and '.join(relations)} do not compose; account all releases under one")
    kinds: dict[Release, int] = {}
    for charge in charges:
        if charge.steps and charge.rate:
            kinds[_release(charge)] = kinds.get(_release(charge), 0) + charge.steps
    if not kinds:
        return 0.0
    if any(kind.noise == 0 for kind in kinds):
        return math.inf
    return _bound(tuple(kinds.items()), delta, accountant)


def epsilons(charges: Sequence[Charge], delta: float, accountant: Accountant) -> np.ndarray:
    """[N] `epsilon` of each charge, to the bit; under "rdp" all step counts of a release in one expression."""
    if accountant != "rdp":
        return np.array([epsilon(charge, delta, accountant) for charge in charges])
    _refuse(charges, accountant)
    found = np.zeros(len(charges))
    places: dict[Release, list[int]] = {}
    for place, charge in enumerate(charges):
        if charge.steps and charge.rate:
            places.setdefault(_release(charge), []).append(place)
    for release, of_release in places.items():
        steps = np.array([[charges[place].steps] for place in of_release])
        found[of_release] = renyi.epsilons([release], steps, delta) if release.noise else math.inf
    return found


def rounded_up(value: float, places: int = 2) -> str:
    """An epsilon for people, never below the value: what is printed must not promise more than was kept."""
    nearest = f"{value:.{places}f}"
    if float(nearest) < value:
        nearest = f"{float(nearest) + 10**-places:.{places}f}"
    return nearest if math.isfinite(value) else "infinite"


def composed_anywhere(by_run: Sequence[Sequence[Charge]], delta: float) -> float:
    """Epsilon of a unit that in each run was with whichever client costs most, at each Renyi order for itself.

    Composing each run's largest epsilon would be no bound: which client costs most depends on the order.

    Args:
        by_run: of every run the charges of its clients.
        delta: in (0, 1).
    """
    total = np.zeros(len(renyi.ORDERS))
    for charges in by_run:
        each = [charge.steps * renyi.curve(_release(charge), renyi.ORDERS) for charge in set(charges)]
        total += np.max(each, axis=0)
    return max(0.0, float(renyi.converted(total, renyi.ORDERS, delta).min()))


def largest(charges: Iterable[Charge], delta: float, accountant: Accountant) -> tuple[float, Charge | None]:
    """The largest epsilon among several charges, and whose it is; (0.0, None) of none.

    RDP bounds all accountants from above, so charges are tried by falling RDP epsilon until it is no longer
    above the largest found: a slow accountant computes a few of them only.
    """
    bounds = [(epsilon(charge, delta, "rdp"), charge) for charge in _undominated(charges)]
    most, whose = 0.0, None
    for bound, charge in sorted(bounds, reverse=True):
        if whose is not None and bound <= most:
            break
        found = epsilon(charge, delta, accountant)
        if whose is None or found > most:
            most, whose = found, charge
    return most, whose


def solve_noise(target: float, charges: Iterable[Charge], delta: float, accountant: Accountant, key: str) -> float:
    """The smallest factor on every charge's noise, within 1e-4 of itself, under which none exceeds epsilon `target`.

    Bisection for the charge that costs most; every charge is then checked forwards, and whichever still
    exceeds the target is solved for next.

    Args:
        target: > 0.
        charges: with their noise at factor 1.
        delta: in (0, 1).
        accountant: one that does not refuse them.
        key: the scenario's, which set the target.

    Raises:
        PrivacyError: no noise reaches the target.
    """
    charges = _undominated(charges)
    worst = _costliest(1.0, charges, delta, "rdp")[1]
    factor = _FACTOR[0]
    while worst is not None:
        factor = max(factor * (1 + _PRECISION), _bisect(target, worst, delta, accountant, key))
        most, worst = _costliest(factor, charges, delta, accountant)
        if most <= target:
            break
    return factor


def _costliest(
    factor: float, charges: Sequence[Charge], delta: float, accountant: Accountant
) -> tuple[float, Charge | None]:
    """`largest` at a factor on the noise; the charge as it is at factor 1."""
    scaled = {_scaled(charge, factor): charge for charge in charges}
    most, whose = largest(scaled, delta, accountant)
    return most, None if whose is None else scaled[whose]


def _bisect(target: float, charge: Charge, delta: float, accountant: Accountant, key: str) -> float:
    def meets(factor: float) -> bool:
        return epsilon(_scaled(charge, factor), delta, accountant) <= target

    low, high = _FACTOR[0], 1.0
    while not meets(high):
        low, high = high, 2 * high
        if high > _FACTOR[1]:
            raise PrivacyError(
                f"{key} = {target:g} at delta {delta:g} is reached by no noise over "
                f"{charge.steps:,} steps at rate {charge.rate:.4g}. Raise epsilon or delta, or take fewer steps."
            )
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _scaled(charge: Charge, factor: float) -> Charge:
    return charge._replace(noise=factor * charge.noise)


def _undominated(charges: Iterable[Charge]) -> list[Charge]:
    """Charges that no other of their noise, relation and sampling exceeds in both rate and steps.

    One of them costs most.
    """
    kept: list[Charge] = []
    most: dict[tuple[float, str, str], int] = {}
    for charge in sorted(set(charges), reverse=True):
        kind = (charge.noise, charge.relation, charge.sampling)
        if kind not in most or charge.steps > most[kind]:
            kept.append(charge)
            most[kind] = charge.steps
    return kept


def _refuse(charges: Sequence[Charge], accountant: Accountant) -> None:
    for charge in charges:
        reason = refusal(accountant, charge.rate, charge.relation, charge.sampling)
        if reason is not None:
            raise PrivacyError(reason)


def _release(charge: Charge) -> Release:
    """One of the charge's releases; at rate 1 neither relation nor sampling is left of it."""
    if charge.rate < 1:
        return Release(charge.noise, charge.rate, charge.relation, charge.sampling)
    return Release(charge.noise / 2 if charge.relation == "replace" else charge.noise, 1.0, "zero-out", "poisson")


History = tuple[tuple[Release, int], ...]
"""Kinds of releases and the number of each."""


def _bound(history: History, delta: float, accountant: Accountant) -> float:
    if accountant == "exact":
        return gaussian_epsilon(_distance(history), delta)
    by_rdp = _rdp_epsilon(history, delta)
    if accountant == "rdp":
        return by_rdp
    return min(by_rdp, _prv_epsilon(history, delta) if accountant == "prv" else _pld_epsilon(history, delta))


@lru_cache(maxsize=65536)
def _rdp_epsilon(history: History, delta: float) -> float:
    return float(renyi.epsilons([kind for kind, _ in history], np.array([[steps for _, steps in history]]), delta)[0])


@lru_cache(maxsize=4096)
def _prv_epsilon(history: History, delta: float) -> float:
    """PRV's upper bound, or infinity where it would take too long or cannot be computed."""
    from opacus.accountants import PRVAccountant

    if _rdp_epsilon(history, delta) > _PRV_UP_TO:
        return math.inf
    if _prv_points(history, delta) * len(history) > _PRV_POINTS:
        return math.inf
    accountant = PRVAccountant()
    accountant.history = [(kind.noise, kind.rate, steps) for kind, steps in history]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta, eps_error=_PRV_EPSILON_ERROR))
    except (ValueError, RuntimeError, OverflowError):
        return math.inf
    return found if found >= 0 else math.inf


def _prv_points(history: History, delta: float) -> float:
    """Size of PRV's grid: Gopi et al., remark 5.6, as Opacus chooses it."""
    error, steps = delta / 1000, sum(steps for _, steps in history)
    mesh = _PRV_EPSILON_ERROR / math.sqrt(steps * math.log(12 / error) / 2)
    together = _rdp_epsilon(history, error / 4)
    alone = max(_rdp_epsilon(((kind, 1),), error / (8 * steps)) for kind, _ in history)
    return 2 * (max(together, alone) + 3) / mesh


@lru_cache(maxsize=4096)
def _pld_epsilon(history: History, delta: float) -> float:
    """PLD's upper bound, or infinity where it would take too long, drown in rounding or cannot be computed."""
    try:
        from dp_accounting import NeighboringRelation
        from dp_accounting.pld import privacy_loss_distribution as pld
    except ImportError:
        raise PrivacyError("accountant pld needs dp-accounting: pip install 'fedsim[pld]'") from None
    history = _merged(history)
    steps = sum(steps for _, steps in history)
    rounding, mesh = _PLD_ROUNDING * (steps + 100), _pld_mesh(history)
    if steps > _PLD_STEPS or rounding > delta / 10 or not mesh <= _PLD_MESH[1]:
        return math.inf
    relations = {"zero-out": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace": NeighboringRelation.REPLACE_ONE}
    together = pld.identity(value_discretization_interval=mesh)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind, number in history:
                one = pld.from_gaussian_mechanism(
                    kind.noise,
                    value_discretization_interval=mesh,
                    sampling_prob=kind.rate,
                    neighboring_relation=relations[kind.relation],
                )
                together = together.compose(one.self_compose(number, _PLD_TAIL), _PLD_TAIL)
            found = float(together.get_epsilon_for_delta(delta - rounding))
    except (ValueError, RuntimeError, OverflowError):
        return math.inf
    return found if found >= 0 else math.inf


def _merged(history: History) -> History:
    """The history with all releases without sampling as one."""
    unsampled = [(kind, steps) for kind, steps in history if kind.rate == 1]
    if not unsampled:
        return history
    one = Release(1 / _distance(unsampled), 1.0, "zero-out", "poisson")
    return ((one, 1), *((kind, steps) for kind, steps in history if kind.rate < 1))


def _distance(unsampled: Iterable[tuple[Release, int]]) -> float:
    """mu of Gaussian releases without sampling, together."""
    return math.hypot(*(math.sqrt(steps) / kind.noise for kind, steps in unsampled))


def _pld_mesh(history: History) -> float:
    """Distance of the losses that PLD tells apart.

    With losses that together spread by S, connecting dots errs by about steps mesh^2 / S, so 0.01 sqrt(S / steps)
    errs by about 1e-4. Coarser where the grids would have too many points, which stays an upper bound.
    """
    widths = [(21 + 1 / kind.noise) / kind.noise * (2 if kind.relation == "replace" else 1) for kind, _ in history]
    together = 3 * _rdp_epsilon(history, _PLD_TAIL) * len(history)
    steps = sum(steps for _, steps in history)
    spread = math.hypot(*(math.sqrt(number) * kind.rate / kind.noise for kind, number in history))
    wanted = min(_PLD_MESH[0], 0.01 * math.sqrt(min(1.0, spread) / steps))
    return max(wanted, sum(widths) / _PLD_POINTS[0], together / _PLD_POINTS[1])
