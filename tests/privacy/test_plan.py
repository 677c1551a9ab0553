"""What a run promises, at each level: who is charged what and how often, with how much noise, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fedsim.cohorts import CohortRule, participation_limit
from fedsim.errors import PrivacyError
from fedsim.local import Work
from fedsim.privacy.accountant import Charge, epsilon
from fedsim.privacy.levels import plan_client, plan_example, plan_local
from fedsim.privacy.plan import ClientMechanism, ExampleMechanism, Plan
from fedsim.privacy.requests import AdaptiveClipping, ClientPrivacy, ExamplePrivacy, LocalPrivacy
from fedsim.summary import notes
from tests import small

ROWS = np.array([100, 57, 20, 80, 57])
EVERYONE = CohortRule(fraction=1.0)
PARTY = CohortRule(size=10)
CHANCE = CohortRule(poisson=0.1)


def example(rule: CohortRule = EVERYONE, rows: np.ndarray = ROWS, steps: int | None = None, **keys: Any) -> Plan:
    """12 rounds of two epochs in batches of 32."""
    request = ExamplePrivacy(**{"delta": 1e-3, "epsilon": 8.0} | keys)
    return plan_example(request, rows, 32, 2, rule, 12, steps=steps)


def client(rule: CohortRule = PARTY, clients: int = 100, rounds: int = 50, **keys: Any) -> Plan:
    given = {} if "epsilon" in keys else {"noise_multiplier": 1.0}
    return plan_client(ClientPrivacy(**{"delta": 1e-4} | given | keys), clients, rule, rounds)


def local(rule: CohortRule = PARTY, clients: int = 100, rounds: int = 50, **keys: Any) -> Plan:
    given = {} if "epsilon" in keys else {"noise_multiplier": 20.0}
    request = LocalPrivacy(**{"delta": 1e-4, "clip": 0.5} | given | keys)
    return plan_local(request, np.ones(clients, dtype=bool), rule, rounds)


def closed_form(mu: float, delta: float) -> float:
    """Epsilon of N(0, 1) against N(mu, 1): Balle and Wang 2018, theorem 8, solved by a library's root finder."""

    def excess(value: float) -> float:
        tail = stats.norm.logcdf(-mu / 2 - value / mu)
        return float(stats.norm.cdf(mu / 2 - value / mu)) - math.exp(value + float(tail)) - delta

    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, mu * mu + 50 * mu, xtol=1e-12))


# --- example level


def test_rates_steps_and_divisors_follow_from_declared_rows() -> None:
    made = example()
    assert isinstance(made.mechanism, ExampleMechanism)
    assert made.rates.tolist() == [32 / 100, 32 / 57, 1.0, 32 / 80, 32 / 57]
    assert made.steps.tolist() == [8, 4, 2, 6, 4]
    assert made.mechanism.divisors.tolist() == [32, 32, 20, 32, 32]
    assert (made.level, made.max_participations, made.by_round) == ("example", 12, False)
    assert any("fewer train rows" in line for line in made.warnings)


def test_the_noise_is_solved_for_the_unlucky() -> None:
    """Under a cohort rule the limit, not the expected number of participations, decides."""
    made = example(CohortRule(poisson=0.3))
    assert made.max_participations is not None and made.max_participations > 0.3 * 12
    assert 0.99 * 8 <= made.epsilon <= 8


def test_clients_without_rows_change_neither_noise_nor_epsilon() -> None:
    rows = np.array([100, 0, 57, 0])
    made, alone = example(rows=rows), example(rows=rows[rows > 0])
    assert (made.noise_multiplier, made.epsilon) == (alone.noise_multiplier, alone.epsilon)
    assert isinstance(made.mechanism, ExampleMechanism)
    assert (made.rates[1], made.steps[1], made.mechanism.divisors[1]) == (0.0, 0, 0.0)
    assert example(rows=rows, steps=5).steps.tolist() == [5, 0, 5, 0]
    assert not made.warnings


def test_places_of_empty_clients_fall_to_the_others_in_the_limit_too() -> None:
    assert example(CohortRule(size=2), np.array([100, 0, 57, 0])).max_participations == 12


def test_a_federation_without_any_row_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no client has a train row"):
        example(rows=np.array([0, 0]))
    with pytest.raises(PrivacyError, match="no client has a train row"):
        plan_local(LocalPrivacy(delta=1e-4, noise_multiplier=1.0), np.zeros(3, dtype=bool), EVERYONE, 5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epsilon": None}, "neither given"),
        ({"noise_multiplier": 1.0}, "both given"),
        ({"epsilon": -1.0}, "epsilon = -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0"),
        ({"max_grad_norm": 1e-42}, "max_grad_norm = 1e-42 should lie between"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"max_participations": 0}, "max_participations = 0"),
        ({"delta": 0.01}, r"client 0 has 100 train rows"),
        ({"epsilon": 1e-5, "delta": 1e-6}, "reached by no noise"),
        ({"accountant": "exact"}, r"accountant = 'exact' should be rdp, prv or pld"),
        ({"accountant": "prv", "relation": "replace"}, "prv knows only relation zero-out"),
    ],
)
def test_impossible_requests_at_example_level_are_refused_by_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        example(**keys)


def test_a_loose_delta_is_warned_about() -> None:
    assert any("above 1 / (10 rows)" in line for line in example(delta=5e-3).warnings)
    assert not any("delta" in line for line in example(delta=1e-3).warnings)
    assert any("above 1 / (10 clients)" in line for line in client(delta=5e-3).warnings)
    assert not client(delta=1e-3).warnings


# --- client level


def test_chance_charges_everybody_every_round_and_limits_nobody() -> None:
    """A Poisson cohort hides who takes part; a limit on participations would make rounds depend on each other."""
    made = client(CHANCE)
    assert (made.by_round, made.max_participations, made.most, made.separation) == (True, None, 50, 1)
    assert (made.accountant, made.sampling, made.relation) == ("rdp", "poisson", "zero-out")
    assert set(made.rates) == {0.1} and set(made.steps) == {1}
    assert made.mechanism == ClientMechanism(size=10.0)
    assert made.epsilon == epsilon(Charge(1.0, 0.1, 50), 1e-4, "rdp")


def test_a_fixed_size_hides_nobody_and_charges_who_takes_part() -> None:
    """So its releases are plain Gaussians, as many as a client may take part in."""
    made = client(PARTY)
    limit = participation_limit(PARTY, 100, 50)
    assert (made.by_round, made.max_participations) == (False, limit)
    assert (made.accountant, set(made.rates)) == ("exact", {1.0})
    assert made.epsilon == pytest.approx(closed_form(math.sqrt(limit), 1e-4), rel=1e-6)
    assert client(PARTY, max_participations=3).epsilon == pytest.approx(closed_form(math.sqrt(3), 1e-4), rel=1e-6)
    assert client(PARTY, relation="replace").epsilon == pytest.approx(closed_form(2 * math.sqrt(limit), 1e-4), rel=1e-6)


@pytest.mark.parametrize("rule", [EVERYONE, CohortRule(poisson=1.0), CohortRule(size=100)])
def test_a_cohort_of_everybody_is_charged_for_every_round(rule: CohortRule) -> None:
    made = client(rule)
    assert (made.max_participations, made.accountant) == (50, "exact")
    assert made.mechanism == ClientMechanism(size=100.0)
    assert made.epsilon == pytest.approx(closed_form(math.sqrt(50), 1e-4), rel=1e-6)


def test_poisson_cohorts_are_the_cheaper_choice() -> None:
    """50 of 539, noise 1, 100 rounds, delta 1e-3: the figures that a user weighs."""
    drawn = CohortRule(size=50)
    common: dict[str, Any] = {"clients": 539, "rounds": 100, "delta": 1e-3}
    poisson = client(CohortRule(poisson=50 / 539), **common)
    fixed = client(drawn, amplified=True, relation="replace", **common)
    plain = client(drawn, max_participations=19, **common)
    assert (fixed.by_round, fixed.sampling, fixed.accountant) == (True, "fixed", "rdp")
    assert [poisson.epsilon, fixed.epsilon, plain.epsilon] == pytest.approx([5.2, 71.8, 22.2], abs=0.06)


@pytest.mark.parametrize("adaptive", [None, AdaptiveClipping()])
@pytest.mark.parametrize(("target", "relation"), [(0.5, "zero-out"), (8.0, "replace")])
@pytest.mark.parametrize("rule", [CHANCE, PARTY, EVERYONE])
def test_the_noise_keeps_to_epsilon_and_wastes_none(
    rule: CohortRule, target: float, relation: str, adaptive: AdaptiveClipping | None
) -> None:
    made = client(rule, epsilon=target, relation=relation, adaptive=adaptive)
    assert 0.999 * target <= made.epsilon <= target


@settings(deadline=None)
@given(st.floats(0.05, 50.0), st.floats(0.6, 1000.0))
def test_both_noises_of_an_adaptive_clip_cost_what_one_would(noise: float, ratio: float) -> None:
    """Two Gaussians on sensitivities C and 1/2 compose by adding 1 / z^2: mu is that of z alone."""
    asked = AdaptiveClipping(quantile=0.3, rate=0.7, bit_noise=ratio * noise)
    made = client(noise_multiplier=noise, adaptive=asked)
    adaptive = made.adaptive
    assert adaptive is not None
    bits, updates = 0.5 / adaptive.bit_noise, 1.0 / adaptive.update_noise
    assert math.hypot(bits, updates) == pytest.approx(1.0 / noise, rel=1e-9)
    assert (adaptive.quantile, adaptive.rate, made.noise_multiplier) == (0.3, 0.7, noise)
    assert made.epsilon == client(noise_multiplier=noise).epsilon


@pytest.mark.parametrize(("size", "noise", "bits"), [(200, 1.0, 10.0), (10, 1.0, 1.0), (10, 4.0, 4.0)])
def test_the_noise_on_bits_is_a_twentieth_of_a_cohort_or_that_on_updates(size: int, noise: float, bits: float) -> None:
    made = client(CohortRule(size=size), 1000, noise_multiplier=noise, adaptive=AdaptiveClipping())
    assert made.adaptive is not None and made.adaptive.bit_noise == bits


def test_a_tree_charges_each_of_its_sums() -> None:
    """A leaf of a tree of 8 rounds lies in 4 sums; in 50 rounds there are 7 trees, and a client is once in each."""
    made = client(CohortRule(size=12), noise_multiplier=4.0, mechanism="tree", min_separation=8)
    assert made.mechanism == ClientMechanism(12.0, None, 8)
    assert (made.separation, made.max_participations, made.accountant) == (8, 7, "exact")
    assert made.epsilon == pytest.approx(closed_form(math.sqrt(7 * 4) / 4.0, 1e-4), rel=1e-6)
    seldom = client(CohortRule(size=2), noise_multiplier=4.0, mechanism="tree", min_separation=8)
    assert seldom.max_participations == participation_limit(CohortRule(size=2), 100, 50) < 7
    solved = client(CohortRule(size=12), epsilon=8.0, mechanism="tree", min_separation=8)
    assert 0.999 * 8 <= solved.epsilon <= 8


def test_a_tree_that_needs_more_clients_than_there_are_is_warned_about() -> None:
    made = client(CohortRule(size=20), noise_multiplier=4.0, mechanism="tree", min_separation=8)
    assert any("more than the 100 there are" in line for line in made.warnings)
    assert not client(CohortRule(size=12), noise_multiplier=4.0, mechanism="tree", min_separation=8).warnings


@pytest.mark.parametrize(
    ("rule", "keys", "message"),
    [
        (PARTY, {"noise_multiplier": None}, "set exactly one of epsilon and noise_multiplier; neither given"),
        (PARTY, {"epsilon": 1.0, "noise_multiplier": 1.0}, "both given"),
        (PARTY, {"clip": 0.0}, r"privacy\.client\.clip = 0\.0 should be above 0"),
        (PARTY, {"clip": math.inf}, r"privacy\.client\.clip = inf should be above 0 and finite"),
        (PARTY, {"clip": 1e-42}, r"privacy\.client\.clip = 1e-42 should lie between 1e-30 and 1e\+30"),
        (PARTY, {"delta": 0.01}, r"delta = 0\.01 is not below 1/100.*Set it to 0\.001 or less"),
        (PARTY, {"delta": 1.0}, r"privacy\.client\.delta = 1\.0 should lie between"),
        (PARTY, {"epsilon": 1e-5, "delta": 1e-9}, r"privacy\.client\.epsilon = 1e-05 .* reached by no noise"),
        (PARTY, {"adaptive": AdaptiveClipping(bit_noise=0.5)}, r"bit_noise = 0\.5: twice it must be above .* 1,"),
        (PARTY, {"amplified": True}, r"only under relation = 'replace'.*cohort\.poisson"),
        (PARTY, {"amplified": True, "relation": "replace", "accountant": "pld"}, "fixed-size cohort.*take rdp"),
        (PARTY, {"amplified": True, "relation": "replace", "max_participations": 3}, "max_participations: here chance"),
        (CHANCE, {"accountant": "exact"}, r"accountant = 'exact'.*without sampling, and the rate is 0\.1"),
        (CHANCE, {"accountant": "prv", "relation": "replace"}, "prv knows only relation zero-out"),
        (CHANCE, {"max_participations": 3}, "max_participations: here chance hides who takes part"),
        (CHANCE, {"mechanism": "tree", "min_separation": 8}, r"'tree' needs no chance.*cohort\.size"),
        (PARTY, {"mechanism": "tree"}, "mechanism = 'tree' and min_separation go together"),
        (PARTY, {"min_separation": 8}, "mechanism = 'tree' and min_separation go together"),
        (PARTY, {"mechanism": "tree", "min_separation": 0}, "min_separation = 0 should be above 0"),
        (PARTY, {"mechanism": "tree", "min_separation": 8, "adaptive": AdaptiveClipping()}, "under one clip"),
        (PARTY, {"mechanism": "tree", "min_separation": 8, "relation": "replace"}, "relation = 'zero-out' alone"),
        (PARTY, {"accountant": "magic"}, r"accountant = 'magic' should be rdp, prv, pld or exact"),
    ],
)
def test_impossible_requests_at_client_level_are_refused_by_key(
    rule: CohortRule, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        client(rule, **keys)


@pytest.mark.parametrize("keys", [{"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}, {"bit_noise": -1.0}])
def test_an_impossible_adaptive_clip_is_refused_by_key(keys: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match=rf"privacy\.client\.adaptive\.{next(iter(keys))}"):
        AdaptiveClipping(**keys)


# --- local level


@pytest.mark.parametrize("delta", [1e-3, 1e-4, 1e-7])
@pytest.mark.parametrize("noise", [2.0, 20.0, 300.0])
@pytest.mark.parametrize("times", [1, 7, 50])
def test_local_epsilon_is_that_of_gaussians_two_clips_apart(noise: float, times: int, delta: float) -> None:
    """mu = 2 C sqrt(T) / sigma with sigma = z C, converted exactly; whatever C is."""
    made = local(delta=delta, noise_multiplier=noise, max_participations=times)
    sigma = noise * 0.5
    mu = 2 * 0.5 * math.sqrt(times) / sigma
    assert made.epsilon == pytest.approx(closed_form(mu, delta), rel=1e-6, abs=1e-9)
    assert (made.level, made.relation, made.accountant, made.by_round) == ("local", "replace", "exact", False)


def test_one_calibration_serves_all_participations_that_are_allowed() -> None:
    made = local(epsilon=8.0)
    assert made.max_participations == participation_limit(PARTY, 100, 50)
    assert 0.999 * 8 <= made.epsilon <= 8
    assert made.epsilon_after(made.most) == made.epsilon > made.epsilon_after(1)


def test_clients_that_cannot_take_part_spend_nothing_locally() -> None:
    able = np.array([True, False, True, True])
    made = plan_local(LocalPrivacy(delta=1e-4, noise_multiplier=9.0), able, CohortRule(size=3), 20)
    assert made.steps.tolist() == [1, 0, 1, 1] and made.rates.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert made.max_participations == 20, "their places fall to the others"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"noise_multiplier": None}, r"privacy\.local: set exactly one"),
        ({"clip": -1.0}, r"privacy\.local\.clip = -1\.0"),
        ({"max_participations": 0}, r"privacy\.local\.max_participations = 0"),
        ({"epsilon": 1e-5, "delta": 1e-9}, r"privacy\.local\.epsilon = 1e-05 .* reached by no noise"),
    ],
)
def test_impossible_requests_at_local_level_are_refused_by_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        local(**keys)


def test_a_local_delta_that_would_publish_a_client_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.local\.delta = 0\.9 is not below 1/"):
        local(delta=0.9, epsilon=5.0)
    assert any("privacy.local.delta" in text for text in local(delta=1 / 450, epsilon=5.0).warnings)


@pytest.mark.parametrize("attack", [{"name": "inner-product", "epsilon": 20.0}, {"name": "alie"}])
def test_attackers_that_know_others_uploads_do_not_go_with_the_client_level(attack: dict[str, Any]) -> None:
    """One honest client would move its own upload and all of theirs."""
    table = {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 0.5}
    base = {"adversary": {**attack, "fraction": 0.4}, "strategy.name": "fedavg", "strategy.weights": "uniform"}
    with pytest.raises(PrivacyError, match=r"adversary\.name = .*which privacy\.client does not cover"):
        small.job({**base, "privacy.client": table})
    assert small.job({**base, "privacy.local": table}).attackers


def test_a_noise_in_which_nothing_is_learned_is_told_before_the_run() -> None:
    """By norm over clip: sqrt(P) z / (q K)."""
    base = {"strategy.name": "fedavg", "strategy.weights": "uniform", "cohort.size": 5}
    for noise, loud in ((1.0, True), (0.1, False)):
        work = Work(small.job({**base, "privacy.client": {"noise_multiplier": noise, "delta": 1e-3, "clip": 0.5}}))
        ratio = noise * math.sqrt(work.layout.size) / 5
        assert (ratio > 3) is loud
        assert any(f"the noise's norm is {ratio:.3g} times the clip's" in text for text in notes(work)) is loud
