"""Epsilon against closed forms and an independent accountant, within docs' tolerances."""

import itertools
import math
import time

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import ORDERS, Accountant, Steps, epsilon, epsilons, largest, rounded_up, solve_noise

GRID = [
    (0.8, 0.01, 200, 1e-5),
    (1.0, 0.1, 100, 1e-5),
    (2.0, 0.5, 50, 1e-3),
    (1.5, 0.2, 40, 1e-3),
    (5.0, 0.9, 100, 1e-5),
]


def exact_gaussian(noise: float, steps: int, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: `steps` Gaussian releases are one with mu = sqrt(steps) / noise."""
    mu = math.sqrt(steps) / noise

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta)

    return float(brentq(excess, 0, 60))


def pld(noise: float, rate: float, steps: int, delta: float) -> float:
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    return float(accountant.get_epsilon(delta))


def test_published_reference_values() -> None:
    """sigma 1.1, rate 0.004, 15,000 steps: 2.503 by RDP (3.01 came from an older conversion), 2.306 by PRV."""
    assert epsilon(1.1, 0.004, 15_000, 1e-5, "rdp") == pytest.approx(2.503, abs=0.01)
    assert epsilon(1.1, 0.004, 15_000, 1e-5, "prv") == pytest.approx(2.306, abs=0.02)


@pytest.mark.parametrize(("noise", "steps"), [(20.0, 100), (5.0, 1), (3.0, 40), (1.0, 1)])
def test_without_sampling_both_bound_the_exact_gaussian(noise: float, steps: int) -> None:
    exact = exact_gaussian(noise, steps, 1e-5)
    assert exact - 1e-3 <= epsilon(noise, 1.0, steps, 1e-5, "prv") <= exact + 0.02
    assert exact <= epsilon(noise, 1.0, steps, 1e-5, "rdp") <= 1.15 * exact


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_an_independent_accountant_agrees(noise: float, rate: float, steps: int, delta: float) -> None:
    """PLD (dp-accounting) is the tightest of the three: PRV lies in its band, RDP above it."""
    tight = pld(noise, rate, steps, delta)
    assert tight - 0.001 <= epsilon(noise, rate, steps, delta, "prv") <= tight + 0.02
    assert epsilon(noise, rate, steps, delta, "rdp") >= tight


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), [*GRID, (0.5, 0.02, 50, 1e-5), (0.6, 0.3, 30, 1e-3)])
@pytest.mark.filterwarnings("ignore:Optimal order")
def test_rdp_is_at_most_half_a_percent_above_opacus_with_its_default_orders(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    reference = RDPAccountant()
    reference.history = [(noise, rate, steps)]
    assert epsilon(noise, rate, steps, delta, "rdp") <= 1.005 * reference.get_epsilon(delta)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.6, 5), st.floats(0.001, 1), st.integers(1, 300), st.sampled_from([1e-5, 1e-3]))
def test_less_noise_a_higher_rate_and_more_steps_never_cost_less(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    cost = epsilon(noise, rate, steps, delta, "rdp")
    assert epsilon(1.2 * noise, rate, steps, delta, "rdp") <= cost * (1 + 1e-6)
    assert epsilon(noise, 0.8 * rate, steps, delta, "rdp") <= cost * (1 + 1e-6)
    assert epsilon(noise, rate, 2 * steps, delta, "rdp") >= cost


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_nothing_costs_nothing_and_no_noise_costs_everything(accountant: Accountant) -> None:
    assert epsilon(1.0, 0.1, 0, 1e-5, accountant) == epsilon(1.0, 0.0, 10, 1e-5, accountant) == 0
    assert epsilon(0.0, 0.1, 1, 1e-5, accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(0.01, 0.3, 1), (0.05, 0.01, 100), (1.0, 0.01, 1_000_000), (100.0, 0.97, 5)]
)
def test_extremes_end_within_five_seconds(noise: float, rate: float, steps: int, accountant: Accountant) -> None:
    started = time.perf_counter()
    assert epsilon(noise, rate, steps, 1e-5, accountant) >= 0
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_solved_noise_meets_the_target_and_is_tight(accountant: Accountant) -> None:
    charges = [Steps(0.3, 40), Steps(1.0, 10), Steps(0.1, 120)]
    noise = solve_noise(8.0, charges, 1e-3, accountant)
    found = max(epsilon(noise, *charge, 1e-3, accountant) for charge in charges)
    assert 0.99 * 8.0 <= found <= 8.0
    assert largest(noise, charges, 1e-3, accountant)[0] == found


@settings(deadline=None, max_examples=5)
@given(st.lists(st.tuples(st.floats(0.05, 1), st.integers(1, 60)), min_size=1, max_size=4), st.floats(1, 12))
def test_no_charge_exceeds_the_target_whichever_costs_most(pairs: list[tuple[float, int]], target: float) -> None:
    charges = [Steps(rate, steps) for rate, steps in pairs]
    noise = solve_noise(target, charges, 1e-3, "rdp")
    costs = [epsilon(noise, *charge, 1e-3, "rdp") for charge in charges]
    assert 0.99 * target <= max(costs) <= target
    assert largest(noise, charges, 1e-3, "rdp")[0] == max(costs)


def test_the_largest_is_the_largest_under_prv_too() -> None:
    charges = [Steps(rate, steps) for rate, steps in itertools.product([0.02, 0.1, 0.4], [10, 60])]
    every = {charge: epsilon(1.3, *charge, 1e-4, "prv") for charge in charges}
    assert largest(1.3, charges, 1e-4, "prv") == (max(every.values()), max(every, key=lambda c: every[c]))
    assert largest(1.3, [], 1e-4, "prv") == (0.0, None)


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.example\.epsilon = 0\.0001"):
        solve_noise(1e-4, [Steps(1.0, 100)], 1e-5, "rdp")


def test_quadrature_of_one_sampled_step() -> None:
    """The hockey-stick divergence of one step, integrated numerically, is delta at PLD's epsilon and PRV's."""
    noise, rate, delta = 1.0, 0.3, 1e-3
    x = np.linspace(-12, 14, 400_001)
    with_row = rate * norm.pdf(x, 1, noise) + (1 - rate) * norm.pdf(x, 0, noise)
    without = norm.pdf(x, 0, noise)

    def excess(eps: float) -> float:
        return float(np.trapezoid(np.maximum(with_row - math.exp(eps) * without, 0), x)) - delta

    exact = brentq(excess, 0, 20)
    assert exact - 1e-3 <= epsilon(noise, rate, 1, delta, "prv") <= exact + 0.02
    assert epsilon(noise, rate, 1, delta, "rdp") >= exact


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilons_of_many_charges_are_those_of_each(accountant: Accountant) -> None:
    pairs = [(0.0, 5), (0.1, 0), (0.1, 7), (0.1, 900), (0.4, 7), (1.0, 2)]
    charges = [Steps(*pair) for pair in pairs]
    for noise in (0.0, 1.3):
        each = [epsilon(noise, *charge, 1e-4, accountant) for charge in charges]
        assert epsilons(noise, charges, 1e-4, accountant).tolist() == each


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.1, 0.004, 15_000), (0.6, 0.3, 30), (5.0, 1.0, 3)])
@pytest.mark.filterwarnings("ignore:Optimal order")
def test_rdp_is_converted_as_opacus_converts_it(noise: float, rate: float, steps: int) -> None:
    """At the same orders: ours are tried one by one, and none gives less than the least."""
    orders = [*ORDERS, *(order / 10 for order in range(11, 110))]
    reference = get_privacy_spent(
        orders=orders, rdp=compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders), delta=1e-5
    )[0]
    assert epsilon(noise, rate, steps, 1e-5, "rdp") == pytest.approx(reference, rel=1e-3)


@given(st.floats(0, 1e300), st.integers(1, 4))
def test_an_epsilon_is_printed_rounded_up_and_tightly(value: float, places: int) -> None:
    printed = float(rounded_up(value, places))
    assert value <= printed <= value + 10**-places * (1 + 1e-9) + 1e-15 * value
    assert "." in rounded_up(value, places)


def test_round_epsilons_are_printed_as_they_are() -> None:
    assert [rounded_up(value) for value in (0.0, 0.1, 1.15, 8.0, 8.0000001, math.inf)] == [
        "0.00",
        "0.10",
        "1.15",
        "8.00",
        "8.01",
        "infinite",
    ]
