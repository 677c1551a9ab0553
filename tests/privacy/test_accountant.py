"""Epsilon against closed forms, integrals and independent accountants, within docs' tolerances."""

import itertools
import math
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
from dp_accounting.dp_event import ComposedDpEvent, DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.integrate import simpson
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import (
    Accountant,
    Charge,
    Relation,
    Sampling,
    composed,
    epsilon,
    epsilons,
    largest,
    refusal,
    rounded_up,
    solve_noise,
)
from fedsim.privacy.gaussian import gaussian_delta, gaussian_epsilon
from fedsim.privacy.renyi import ORDERS, Release, curve, mixtures_divergence

GRID = [
    (0.8, 0.01, 200, 1e-5),
    (1.0, 0.1, 100, 1e-5),
    (2.0, 0.5, 50, 1e-3),
    (1.5, 0.2, 40, 1e-3),
    (5.0, 0.9, 100, 1e-5),
]
ACCOUNTANTS: list[Accountant] = ["rdp", "prv", "pld", "exact"]
SAMPLED: list[Accountant] = ["rdp", "prv", "pld"]
KINDS: list[tuple[Accountant, Relation, Sampling]] = [
    ("rdp", "zero-out", "poisson"),
    ("prv", "zero-out", "poisson"),
    ("pld", "zero-out", "poisson"),
    ("rdp", "replace", "poisson"),
    ("pld", "replace", "poisson"),
    ("rdp", "replace", "fixed"),
]


def exact_gaussian(noise: float, steps: int, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: `steps` Gaussian releases are one with mu = sqrt(steps) / noise."""
    mu = math.sqrt(steps) / noise

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta)

    return float(brentq(excess, 0, 60))


def pld(charges: Sequence[Charge], delta: float) -> float:
    relations = {"zero-out": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace": NeighboringRelation.REPLACE_ONE}
    events: list[DpEvent] = [
        SelfComposedDpEvent(PoissonSampledDpEvent(charge.rate, GaussianDpEvent(charge.noise)), charge.steps)
        for charge in charges
    ]
    accountant = PLDAccountant(relations[charges[0].relation])
    accountant.compose(ComposedDpEvent(events))
    return float(accountant.get_epsilon(delta))


def test_published_reference_values() -> None:
    """sigma 1.1, rate 0.004, 15,000 steps: 2.503 by RDP (3.01 came from an older conversion), 2.306 by PRV."""
    charge = Charge(1.1, 0.004, 15_000)
    assert epsilon(charge, 1e-5, "rdp") == pytest.approx(2.503, abs=0.01)
    assert epsilon(charge, 1e-5, "prv") == pytest.approx(2.306, abs=0.02)
    assert epsilon(charge, 1e-5, "pld") == pytest.approx(2.296, abs=0.002)


def test_replacing_a_unit_costs_more_and_a_fixed_cohort_most() -> None:
    assert epsilon(Charge(1, 0.1, 100), 1e-3, "pld") == pytest.approx(4.8, abs=0.05)
    assert epsilon(Charge(1, 0.1, 100, "replace"), 1e-3, "pld") == pytest.approx(7.8, abs=0.05)
    assert epsilon(Charge(1, 50 / 539, 100), 1e-3, "rdp") == pytest.approx(5.2, abs=0.05)
    assert epsilon(Charge(1, 50 / 539, 100, "replace", "fixed"), 1e-3, "rdp") == pytest.approx(71.8, abs=0.05)


@pytest.mark.parametrize(("noise", "steps"), [(20.0, 100), (5.0, 1), (3.0, 40), (1.0, 1)])
def test_without_sampling_all_bound_the_exact_gaussian(noise: float, steps: int) -> None:
    exact, charge = exact_gaussian(noise, steps, 1e-5), Charge(noise, 1.0, steps)
    assert epsilon(charge, 1e-5, "exact") == pytest.approx(exact, rel=1e-8)
    assert exact <= epsilon(charge, 1e-5, "pld") <= exact + 1e-3
    assert exact - 1e-3 <= epsilon(charge, 1e-5, "prv") <= exact + 0.02
    assert exact <= epsilon(charge, 1e-5, "rdp") <= 1.15 * exact


@given(st.floats(-9, 2), st.floats(-6, 36))
def test_delta_of_a_gaussian_is_its_integral(log_mu: float, t: float) -> None:
    """delta = E_P[(1 - e^(epsilon - loss))+], whose terms are never negative: int_0 phi(t + u) (1 - e^(-mu u)) du."""
    mu = 10**log_mu
    t = max(t, -mu / 2)
    u = np.linspace(0, 40 / max(1.0, t) + max(0.0, -t), 100_001)
    integral = float(simpson(np.exp(-t * u - u**2 / 2) * -np.expm1(-mu * u), x=u)) * norm.pdf(t)
    eps = mu * (t + mu / 2)
    # epsilon / mu - mu / 2 is t again but for rounding, on which delta depends by about e^(t dt)
    assert gaussian_delta(mu, eps) == pytest.approx(integral, rel=1e-7 + 40 * 1e-15 * (1 + mu))


@given(st.floats(-12, 2.1), st.floats(-300, -0.01))
def test_epsilon_of_a_gaussian_is_the_least(log_mu: float, log_delta: float) -> None:
    mu, delta = 10**log_mu, 10**log_delta
    found = gaussian_epsilon(mu, delta)
    assert gaussian_delta(mu, found) <= delta
    if found > 1e-5 * mu * (1 + mu):
        assert gaussian_delta(mu, found * (1 - 1e-7)) > delta


def test_extreme_gaussians() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == gaussian_epsilon(1e-100, 1e-5) == 0
    assert gaussian_epsilon(math.inf, 1e-5) == gaussian_epsilon(1e200, 1e-5) == math.inf
    assert gaussian_epsilon(1e8, 1e-5) == pytest.approx(5e15, rel=1e-6)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_an_independent_accountant_agrees(noise: float, rate: float, steps: int, delta: float) -> None:
    """PLD (dp-accounting) is the tightest of the three: PRV lies in its band, RDP above it."""
    charge = Charge(noise, rate, steps)
    tight = pld([charge], delta)
    assert tight - 0.001 <= epsilon(charge, delta, "prv") <= tight + 0.02
    assert tight - 0.001 <= epsilon(charge, delta, "pld") <= tight + 0.001
    assert epsilon(charge, delta, "rdp") >= tight


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), [*GRID, (0.5, 0.02, 50, 1e-5), (0.6, 0.3, 30, 1e-3)])
@pytest.mark.filterwarnings("ignore:Optimal order")
def test_rdp_is_at_most_half_a_percent_above_opacus_with_its_default_orders(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    reference = RDPAccountant()
    reference.history = [(noise, rate, steps)]
    assert epsilon(Charge(noise, rate, steps), delta, "rdp") <= 1.005 * reference.get_epsilon(delta)


@settings(deadline=None, max_examples=15)
@given(
    st.floats(0.6, 5),
    st.floats(0.001, 1),
    st.integers(1, 300),
    st.sampled_from([1e-5, 1e-3]),
    st.sampled_from([(relation, sampling) for accountant, relation, sampling in KINDS if accountant == "rdp"]),
)
def test_less_noise_a_higher_rate_and_more_steps_never_cost_less(
    noise: float, rate: float, steps: int, delta: float, kind: tuple[Relation, Sampling]
) -> None:
    cost = epsilon(Charge(noise, rate, steps, *kind), delta, "rdp")
    assert epsilon(Charge(1.2 * noise, rate, steps, *kind), delta, "rdp") <= cost * (1 + 1e-6)
    assert epsilon(Charge(noise, 0.8 * rate, steps, *kind), delta, "rdp") <= cost * (1 + 1e-6)
    assert epsilon(Charge(noise, rate, 2 * steps, *kind), delta, "rdp") >= cost
    assert epsilon(Charge(noise, rate, steps), delta, "rdp") <= cost * (1 + 1e-6)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_nothing_costs_nothing_and_no_noise_costs_everything(accountant: Accountant) -> None:
    for relation in ("zero-out", "replace"):
        assert epsilon(Charge(1.0, 1.0, 0, relation), 1e-5, accountant) == 0
        assert epsilon(Charge(1.0, 0.0, 10, relation), 1e-5, accountant) == 0
        assert epsilon(Charge(0.0, 1.0, 1, relation), 1e-5, accountant) == math.inf
    assert composed([], 1e-5, accountant) == 0


@pytest.mark.parametrize(("accountant", "relation", "sampling"), KINDS)
@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (0.01, 0.3, 1),
        (0.05, 0.01, 100),
        (1.0, 0.01, 1_000_000),
        (1.0, 1e-6, 1_000_000),
        (100.0, 0.97, 5),
        (1e-100, 1e-9, 10**15),
        (1e100, 0.5, 10**15),
    ],
)
def test_extremes_end_within_five_seconds(
    noise: float, rate: float, steps: int, accountant: Accountant, relation: Relation, sampling: Sampling
) -> None:
    for delta in (1e-5, 1e-300):
        started = time.process_time()
        assert epsilon(Charge(noise, rate, steps, relation, sampling), delta, accountant) >= 0
        assert time.process_time() - started < 5


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_solved_noise_meets_the_target_and_is_tight(accountant: Accountant) -> None:
    charges = [Charge(1.0, 0.3, 40), Charge(1.0, 1.0, 10), Charge(1.0, 0.1, 120)]
    assert_tight(8.0, charges, accountant)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_a_factor_serves_charges_of_different_noise_and_relation(accountant: Accountant) -> None:
    charges = [Charge(0.5, 0.3, 20, "replace"), Charge(2.0, 1.0, 40, "replace"), Charge(0.25, 0.1, 5)]
    assert_tight(4.0, charges, accountant)


def test_solved_noise_of_exact_gaussians() -> None:
    assert_tight(8.0, [Charge(1.0, 1.0, 10), Charge(1.0, 1.0, 12), Charge(0.5, 1.0, 7)], "exact")


def assert_tight(target: float, charges: Sequence[Charge], accountant: Accountant) -> None:
    factor = solve_noise(target, charges, 1e-3, accountant, "privacy.example.epsilon")
    scaled = [charge._replace(noise=factor * charge.noise) for charge in charges]
    found = max(epsilon(charge, 1e-3, accountant) for charge in scaled)
    assert 0.99 * target <= found <= target
    assert largest(scaled, 1e-3, accountant)[0] == found


@settings(deadline=None, max_examples=5)
@given(
    st.lists(st.tuples(st.sampled_from([0.5, 1.0]), st.floats(0.05, 1), st.integers(1, 60)), min_size=1, max_size=4),
    st.floats(1, 12),
)
def test_no_charge_exceeds_the_target_whichever_costs_most(
    drawn: list[tuple[float, float, int]], target: float
) -> None:
    assert_tight(target, [Charge(*one) for one in drawn], "rdp")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([0.8, 1.3]), st.sampled_from([0.1, 0.3, 1.0]), st.integers(1, 9)), max_size=9)
)
def test_the_largest_of_many_is_the_largest_of_each(drawn: list[tuple[float, float, int]]) -> None:
    charges = [Charge(*one) for one in drawn]
    each = {charge: epsilon(charge, 1e-4, "rdp") for charge in charges}
    most, whose = largest(charges, 1e-4, "rdp")
    assert most == max(each.values(), default=0.0)
    assert whose is None if not charges else whose is not None and each[whose] == most


def test_the_largest_is_the_largest_under_prv_too() -> None:
    charges = [Charge(1.3, rate, steps) for rate, steps in itertools.product([0.02, 0.1, 0.4], [10, 60])]
    every = {charge: epsilon(charge, 1e-4, "prv") for charge in charges}
    assert largest(charges, 1e-4, "prv") == (max(every.values()), max(every, key=lambda charge: every[charge]))
    assert largest([], 1e-4, "prv") == (0.0, None)


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.client\.epsilon = 0\.0001"):
        solve_noise(1e-4, [Charge(1.0, 1.0, 100)], 1e-5, "rdp", "privacy.client.epsilon")


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_one_charge_composes_to_itself_and_parts_to_the_whole(accountant: Accountant) -> None:
    whole = Charge(1.3, 1.0 if accountant == "exact" else 0.2, 50)
    parts = [whole._replace(steps=steps) for steps in (20, 0, 29, 1)]
    assert composed(parts, 1e-4, accountant) == epsilon(whole, 1e-4, accountant)


@pytest.mark.parametrize(("relation", "tight"), [("zero-out", ["prv", "pld"]), ("replace", ["pld"])])
def test_different_charges_compose_as_an_independent_accountant_composes_them(
    relation: Relation, tight: list[Accountant]
) -> None:
    charges = [Charge(2.0, 0.05, 60, relation), Charge(3.0, 0.3, 20, relation), Charge(8.0, 1.0, 3, relation)]
    reference = pld(charges, 1e-5)
    for accountant in tight:
        assert reference - 0.001 <= composed(charges, 1e-5, accountant) <= reference + 0.02
    assert reference <= composed(charges, 1e-5, "rdp") <= 1.4 * reference
    assert max(epsilon(charge, 1e-5, "rdp") for charge in charges) < reference


@given(st.lists(st.tuples(st.floats(3, 20), st.integers(1, 20)), min_size=1, max_size=5))
def test_gaussians_compose_to_one_gaussian(drawn: list[tuple[float, int]]) -> None:
    charges = [Charge(noise, 1.0, steps) for noise, steps in drawn]
    mu = math.sqrt(sum(steps / noise**2 for noise, steps in drawn))
    assert composed(charges, 1e-5, "exact") == pytest.approx(exact_gaussian(1 / mu, 1, 1e-5), rel=1e-7)
    assert composed(charges, 1e-5, "rdp") >= composed(charges, 1e-5, "exact")


def test_charges_of_different_relations_do_not_compose() -> None:
    with pytest.raises(PrivacyError, match="replace and zero-out do not compose"):
        composed([Charge(1, 0.1, 1), Charge(1, 0.1, 1, "replace")], 1e-5, "rdp")


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_without_sampling_to_replace_is_to_zero_out_at_half_the_noise(
    accountant: Accountant, sampling: Sampling
) -> None:
    assert epsilon(Charge(5, 1.0, 10, "replace", sampling), 1e-5, accountant) == epsilon(
        Charge(2.5, 1.0, 10), 1e-5, accountant
    )


@pytest.mark.parametrize(
    ("accountant", "relation", "sampling", "reason"),
    [
        ("rdp", "zero-out", "fixed", r"only under relation replace; .* cohort\.poisson = q"),
        ("pld", "zero-out", "fixed", r"only under relation replace; .* cohort\.poisson = q"),
        ("prv", "replace", "fixed", "prv cannot do a fixed-size cohort at rate 0.1; take rdp"),
        ("pld", "replace", "fixed", "pld cannot do a fixed-size cohort at rate 0.1; take rdp"),
        ("exact", "replace", "fixed", "exact cannot do a fixed-size cohort at rate 0.1; take rdp"),
        ("prv", "replace", "poisson", "prv knows only relation zero-out; take pld, or rdp"),
        ("exact", "replace", "poisson", "the rate is 0.1; take pld, or rdp"),
        ("exact", "zero-out", "poisson", "the rate is 0.1; take prv or pld, or rdp"),
    ],
)
def test_what_an_accountant_cannot_do_is_refused(
    accountant: Accountant, relation: Relation, sampling: Sampling, reason: str
) -> None:
    found = refusal(accountant, 0.1, relation, sampling)
    for account in (epsilon, lambda charge, *how: epsilons([charge], *how)):
        with pytest.raises(PrivacyError, match=reason) as error:
            account(Charge(1.0, 0.1, 5, relation, sampling), 1e-5, accountant)
        assert str(error.value) == found
    assert refusal(accountant, 1.0, relation, sampling) is refusal(accountant, 0.0, relation, sampling) is None


@pytest.mark.parametrize(("accountant", "relation", "sampling"), KINDS)
def test_what_it_can_do_is_not_refused(accountant: Accountant, relation: Relation, sampling: Sampling) -> None:
    assert refusal(accountant, 0.1, relation, sampling) is None


def test_pld_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(PrivacyError, match=r"accountant pld needs dp-accounting: pip install 'fedsim\[pld\]'"):
        epsilon(Charge(1.23456, 0.1, 5), 1e-5, "pld")


@pytest.mark.parametrize(("above", "below"), [(1, 0), (0, 1), (1, -1)])
def test_quadrature_of_one_sampled_step(above: int, below: int) -> None:
    """The hockey-stick divergence of one step, integrated numerically, is delta at PLD's epsilon and PRV's."""
    noise, rate, delta = 1.0, 0.3, 1e-3
    x = np.linspace(-14, 14, 400_001)
    with_unit, without = (
        rate * norm.pdf(x, mean, noise) + (1 - rate) * norm.pdf(x, 0, noise) for mean in (above, below)
    )

    def excess(eps: float) -> float:
        return float(np.trapezoid(np.maximum(with_unit - math.exp(eps) * without, 0), x)) - delta

    exact = brentq(excess, 0, 20)
    charge = Charge(noise, rate, 1, "replace" if below < 0 else "zero-out")
    assert epsilon(charge, delta, "rdp") >= exact
    assert epsilon(charge, delta, "pld") >= exact
    if (above, below) == (0, 1):  # adding a unit costs less than taking one away, and epsilon is for both
        return
    assert epsilon(charge, delta, "pld") <= exact + 1e-3
    if charge.relation == "zero-out":
        assert exact - 1e-3 <= epsilon(charge, delta, "prv") <= exact + 0.02


UNIT_BALL = st.tuples(st.floats(0, 1), st.floats(0, 2 * math.pi))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.3, 3), st.floats(0.01, 0.99), st.floats(-3, 3), UNIT_BALL, UNIT_BALL)
def test_no_other_replacement_is_worse_than_the_opposite(
    noise: float, rate: float, eps: float, one: tuple[float, float], other: tuple[float, float]
) -> None:
    """In two dimensions: of two contributions of norm at most 1, opposites have the largest hockey-stick divergence."""
    side = np.linspace(-1 - 6 * noise, 1 + 6 * noise, 241)
    x, y = side[:, None], side[None, :]

    def mixture(radius: float, angle: float) -> np.ndarray:
        a, b = radius * math.cos(angle), radius * math.sin(angle)
        moved = np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * noise**2))
        density: np.ndarray = (rate * moved + (1 - rate) * np.exp(-(x**2 + y**2) / (2 * noise**2))) / (
            2 * math.pi * noise**2
        )
        return density

    def divergence(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.maximum(p - math.exp(eps) * q, 0).sum() * (side[1] - side[0]) ** 2)

    assert divergence(mixture(*one), mixture(*other)) <= divergence(mixture(1, 0), mixture(1, math.pi)) + 1e-3


@settings(deadline=None, max_examples=30)
@given(st.floats(0.4, 5), st.floats(0.01, 0.99), st.floats(1.1, 12))
def test_renyi_divergence_of_replacement_is_its_integral(noise: float, rate: float, order: float) -> None:
    x = np.linspace(-14 * noise, 2 * order + 14 * noise, 200_001)
    log_p, log_q = (
        np.logaddexp(math.log1p(-rate) + norm.logpdf(x, 0, noise), math.log(rate) + norm.logpdf(x, mean, noise))
        for mean in (1, -1)
    )
    found = mixtures_divergence(1.0, -1.0, noise, rate, order)
    assert found == pytest.approx(renyi_integral(log_p, log_q, x, order), rel=1e-8, abs=1e-11)
    assert found >= mixtures_divergence(1.0, 0.0, noise, rate, order)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.4, 5), st.floats(-1, 1), st.sampled_from([1.5, 2.0, 2.7, 3.0, 6.0, 20.0]))
def test_a_cohort_of_one_of_two_is_within_the_bound_of_fixed_sampling(noise: float, other: float, order: float) -> None:
    """Half the time the unit, 1 or its replacement -1, is released with noise, half the time the other one."""
    x = np.linspace(-1 - 14 * noise, 2 * order + 14 * noise, 100_001)
    log_p, log_q = (
        np.logaddexp(norm.logpdf(x, other, noise), norm.logpdf(x, mean, noise)) - math.log(2) for mean in (1, -1)
    )
    assert curve(Release(noise, 0.5, "replace", "fixed"), (order,))[0] >= renyi_integral(log_p, log_q, x, order)


def renyi_integral(log_p: np.ndarray, log_q: np.ndarray, x: np.ndarray, order: float) -> float:
    """Log of int p^alpha q^(1 - alpha) over alpha - 1; its ends are negligible."""
    return float(logsumexp(order * log_p - (order - 1) * log_q) + math.log(np.ptp(x) / (len(x) - 1))) / (order - 1)


@pytest.mark.parametrize("accountant", SAMPLED)
def test_epsilons_of_many_charges_are_those_of_each(accountant: Accountant) -> None:
    pairs = [(0.0, 5), (0.1, 0), (0.1, 7), (0.1, 900), (0.4, 7), (1.0, 2)]
    charges = [Charge(noise, *pair) for noise in (0.0, 1.3) for pair in pairs]
    if accountant != "prv":
        charges += [Charge(1.3, *pair, "replace") for pair in pairs]
    each = [epsilon(charge, 1e-4, accountant) for charge in charges]
    assert epsilons(charges, 1e-4, accountant).tolist() == each


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.1, 0.004, 15_000), (0.6, 0.3, 30), (5.0, 1.0, 3)])
@pytest.mark.filterwarnings("ignore:Optimal order")
def test_rdp_is_converted_as_opacus_converts_it(noise: float, rate: float, steps: int) -> None:
    """At the same orders: ours are tried one by one, and none gives less than the least."""
    orders = [*ORDERS, *(order / 10 for order in range(11, 110))]
    reference = get_privacy_spent(
        orders=orders, rdp=compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders), delta=1e-5
    )[0]
    assert epsilon(Charge(noise, rate, steps), 1e-5, "rdp") == pytest.approx(reference, rel=1e-3)


@given(st.floats(0, 1e300), st.integers(1, 4))
@example(0.95, 1)  # stored a little lower, so that a tenth more is printed as two
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
