"""The ledger: the promise is kept for every client, at every moment, and what is said of it is what was spent."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.cohorts import CohortRule, Cohorts, sample
from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Charge, epsilon
from fedsim.privacy.ledger import EVERYBODY, Ledger
from fedsim.privacy.levels import plan_client, plan_example, plan_local
from fedsim.privacy.plan import Plan
from fedsim.privacy.requests import AdaptiveClipping, ClientPrivacy, ExamplePrivacy, LocalPrivacy
from fedsim.privacy.statement import statement, values

ROWS = np.array([100, 57, 20, 80, 57])
EVERYONE = CohortRule(fraction=1.0)


def small_plan(rule: CohortRule = EVERYONE, **keys: Any) -> Plan:
    return plan_example(ExamplePrivacy(**{"delta": 1e-3, "epsilon": 8.0} | keys), ROWS, 32, 2, rule, 12)


def ledger_of(plan: Plan) -> Ledger:
    return Ledger(plan, lambda client: f"data of {client}")


PLANS: dict[str, Callable[[], Plan]] = {
    "example": small_plan,
    "client, poisson": lambda: plan_client(
        ClientPrivacy(delta=1e-3, noise_multiplier=2.0), 5, CohortRule(poisson=0.5), 12
    ),
    "client, fixed": lambda: plan_client(ClientPrivacy(delta=1e-3, noise_multiplier=2.0), 5, CohortRule(size=2), 12),
    "client, amplified": lambda: plan_client(
        ClientPrivacy(delta=1e-3, noise_multiplier=4.0, relation="replace", amplified=True), 5, CohortRule(size=2), 12
    ),
    "client, tree": lambda: plan_client(
        ClientPrivacy(delta=1e-3, noise_multiplier=9.0, mechanism="tree", min_separation=2), 5, CohortRule(size=2), 12
    ),
    "local": lambda: plan_local(
        LocalPrivacy(delta=1e-3, noise_multiplier=9.0), np.ones(5, dtype=bool), CohortRule(size=2), 12
    ),
}


def run_of(plan: Plan, rule: CohortRule) -> Ledger:
    """The ledger after all rounds, charged with the cohorts that a run with this plan draws."""
    ledger = ledger_of(plan)
    cohorts = Cohorts(rule, 3, np.ones(5, dtype=bool), plan.max_participations, plan.separation)
    for round in range(1, 13):
        ledger.charge(cohorts.draw(round))
    return ledger


@pytest.mark.parametrize("name", PLANS)
def test_no_run_spends_more_than_its_plan_says(name: str) -> None:
    """At every level: however the cohorts fall, the largest epsilon is at most the printed one; rows say why."""
    plan = PLANS[name]()
    rule = EVERYONE if name == "example" else CohortRule(poisson=0.5) if "poisson" in name else CohortRule(size=2)
    ledger = run_of(plan, rule)
    assert 0 < ledger.largest() <= plan.epsilon
    for row in ledger.rows():
        assert row.noise is not None and row.rate is not None and row.steps is not None
        charge = Charge(row.noise, row.rate, row.steps, plan.relation, plan.sampling)
        assert row.epsilon == epsilon(charge, 1e-3, plan.accountant)
        assert (row.level, row.relation, row.sampling) == (plan.level, plan.relation, plan.sampling)
        assert row.identity == f"data of {row.client}"


def test_the_promise_holds_for_every_client_at_its_limit_and_is_tight() -> None:
    made = small_plan()
    ledger = ledger_of(made)
    for _ in range(12):
        ledger.charge(range(5))
    every = [
        epsilon(Charge(made.noise_multiplier, float(q), int(t) * 12), 1e-3, "rdp")
        for q, t in zip(made.rates, made.steps, strict=True)
    ]
    assert 0.99 * 8 <= max(every) <= 8
    assert ledger.largest() == ledger.spent().largest == made.epsilon == max(every)
    assert [row.epsilon for row in ledger.rows()] == every
    assert ledger.exhausted


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 1000), st.floats(0.2, 1.0))
def test_sampler_and_ledger_never_let_a_client_exceed_its_limit(limit: int, seed: int, poisson: float) -> None:
    rule = CohortRule(poisson=poisson)
    ledger = ledger_of(small_plan(rule, max_participations=limit, epsilon=None, noise_multiplier=2.0))
    for round in range(12):
        ledger.charge(sample(rule, seed, round, ledger.participations, limit))
    assert ledger.participations.max() <= limit


def test_a_charge_beyond_the_limit_is_refused_and_charges_nobody() -> None:
    ledger = ledger_of(small_plan(max_participations=1))
    ledger.charge([0, 2])
    with pytest.raises(PrivacyError, match=r"client 2 has spent.*privacy\.example\.max_participations"):
        ledger.charge([1, 2])
    assert ledger.participations.tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("name", ["client, poisson", "client, amplified"])
@pytest.mark.parametrize("cohort", [[], [3], [0, 1, 2, 3, 4]])
def test_where_chance_hides_who_takes_part_every_round_charges_everybody(name: str, cohort: list[int]) -> None:
    """Also a round that draws nobody; one row stands for all, and no round is charged beyond the last."""
    plan = PLANS[name]()
    ledger = ledger_of(plan)
    for _ in range(12):
        assert not ledger.exhausted
        ledger.charge(cohort)
    assert ledger.participations.tolist() == [12] * 5
    assert ledger.largest() == ledger.spent().smallest == plan.epsilon
    (row,) = ledger.rows(cohort)
    assert (row.client, row.participations, row.steps, row.epsilon) == (EVERYBODY, 12, 12, plan.epsilon)
    assert ledger.rows() == [row]
    assert ledger.exhausted
    with pytest.raises(PrivacyError, match="has spent its privacy budget"):
        ledger.charge([])


def test_before_a_round_nobody_has_spent_anything() -> None:
    for plan in PLANS.values():
        ledger = ledger_of(plan())
        assert (ledger.rows(), ledger.rows([1]), ledger.largest()) == ([], [], 0.0)
        assert ledger.spent() == (1e-3, 0.0, 0.0, 0.0, None, 0, 0)


def test_what_would_be_spent_is_known_before_it_is() -> None:
    ledger = ledger_of(small_plan())
    assert ledger.after([1]).largest() > ledger.largest() == 0.0
    assert ledger.participations.sum() == 0


def test_spent_is_over_clients_that_took_part() -> None:
    ledger = ledger_of(small_plan())
    ledger.charge([0, 1])
    ledger.charge([1, 4])
    spent = ledger.spent()
    one, two = (row.epsilon or 0.0 for row in ledger.rows([0, 1]))
    assert (spent.client, spent.participations, spent.clients) == (1, 2, 3)
    assert (spent.largest, spent.smallest) == (two, min(one, ledger.rows([4])[0].epsilon or 0.0))
    assert ledger.spent(delta=1e-5).largest > spent.largest


@pytest.mark.parametrize("name", PLANS)
def test_a_restored_ledger_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """From how often clients took part, and from the number of rounds where those are charged."""
    made = PLANS[name]()
    whole, resumed, taken = ledger_of(made), ledger_of(made), np.zeros(5, dtype=np.int64)
    for cohort in ([0, 3], [], [1, 3]):
        whole.charge(cohort)
        taken[cohort] += 1
    resumed.restore(taken, 3)
    for ledger in (whole, resumed):
        ledger.charge([3])
    assert resumed.rows() == whole.rows() and resumed.spent() == whole.spent()
    taken[0] += 100
    with pytest.raises(PrivacyError, match="Resume with the same scenario"):
        ledger_of(made).restore(taken, 103)
    with pytest.raises(PrivacyError, match="Resume with the same scenario"):
        ledger_of(made).restore(np.zeros(6, dtype=np.int64), 1)


def statement_of(plan: Plan, ledger: Ledger, personal: bool = False) -> str:
    lines = statement(plan, ledger.spent(), personal)
    assert all(len(line) <= 80 for line in lines)
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize(("unit", "grouped"), [("row", False), ("window of 80 tokens", False), ("patient_id", True)])
def test_the_statement_says_what_epsilon_covers_and_never_rounds_it_down(unit: str, grouped: bool) -> None:
    request = ExamplePrivacy(delta=1e-3, noise_multiplier=2.0)
    made = plan_example(request, ROWS, 32, 2, EVERYONE, 12, unit=unit, grouped=grouped)
    ledger = ledger_of(made)
    ledger.charge([0])
    text = statement_of(made, ledger)
    assert float(text.split()[1]) >= ledger.largest()
    for part in (
        f"protects one {unit}" + (" at each client, with all its rows there" if grouped else ", not one person"),
        "zero-out",
        "the server and all it tells",
        "not a guarantee",
        "every upload",
        "run.db and this summary are for the curator",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("client, poisson", ("Poisson-sampled Gaussian on the cohort's sum, noise 2, clip 1", "charged every client")),
        ("client, fixed", ("Gaussian on the cohort's sum", "enforced", "exact composition of Gaussians")),
        ("client, amplified", ("replace (exchange it for any other)", "charged every client")),
        ("client, tree", ("DP-FTRL, trees of 2 rounds, noise 9, clip 1", "enforced")),
        ("local", ("Gaussian on every upload", "any two data sets of the client", "it sees every upload")),
    ],
)
def test_the_statement_says_whom_each_level_protects_from_whom(name: str, parts: tuple[str, ...]) -> None:
    plan = PLANS[name]()
    ledger = ledger_of(plan)
    ledger.charge([0])
    text = statement_of(plan, ledger)
    assert float(text.split()[1]) >= ledger.largest()
    common = ("protects one client with all its rows", "nothing else: no losses, no counts", "for the curator")
    trusted = "the server is trusted with uploads" in text
    assert trusted is (plan.level == "client")
    assert all(part in text for part in (*parts, *common)), text
    assert "joint DP" not in text and "joint DP" in statement_of(plan, ledger, personal=True)


def test_a_clip_that_adapts_is_said_to_be_the_first() -> None:
    request = ClientPrivacy(delta=1e-3, noise_multiplier=2.0, clip=0.5, adaptive=AdaptiveClipping(quantile=0.3))
    plan = plan_client(request, 5, CohortRule(poisson=0.5), 12)
    ledger = ledger_of(plan)
    assert "noise 2, clip 0.5 at first (quantile 0.3)" in statement_of(plan, ledger)
    said = values(plan, ledger.spent())
    assert plan.adaptive is not None
    assert said["adaptive_clip"] == vars(plan.adaptive) and (said["unit"], said["divisor"]) == ("client", 2.5)


def test_clients_without_rows_cost_nothing_and_are_never_waited_for() -> None:
    """The budget is spent when the others' is."""
    plan = plan_example(ExamplePrivacy(delta=1e-3, epsilon=8.0), np.array([100, 0, 57, 0]), 32, 2, EVERYONE, 12)
    ledger = ledger_of(plan)
    for _ in range(12):
        ledger.charge([0, 2])
    assert ledger.exhausted
    assert [row.client for row in ledger.rows()] == [0, 2]


def test_rows_of_a_cohort_are_cheap_under_prv_and_whole_at_the_end() -> None:
    ledger = ledger_of(small_plan(accountant="prv"))
    ledger.charge([0, 2])
    assert [row[:3] for row in ledger.rows([0, 2, 3])] == [(0, 1, None), (2, 1, None)]
    written = {row.client: row.epsilon for row in ledger.rows()}
    assert ledger.largest() == max(value for value in written.values() if value is not None)
    assert all(written.values())


def test_rows_of_a_round_cost_milliseconds_once_a_rate_is_known() -> None:
    """54 writers of different sizes, all in every round: it was a second a round."""
    sizes = np.arange(60, 60 + 9 * 54, 9)
    request = ExamplePrivacy(delta=1e-4, noise_multiplier=1.5)
    ledger = ledger_of(plan_example(request, sizes, 32, 1, EVERYONE, 40))
    seconds = []
    for _ in range(12):
        ledger.charge(range(54))
        started = time.perf_counter()
        ledger.rows(range(54))
        seconds.append(time.perf_counter() - started)
    assert np.median(seconds[1:]) < 0.25
