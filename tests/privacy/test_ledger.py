"""Plan and ledger: the promise is kept for every client, at every moment."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.cohorts import CohortRule, sample
from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.ledger import Ledger, statement
from fedsim.privacy.plan import ExamplePrivacy, Plan, plan

ROWS = np.array([100, 57, 20, 80, 57])
EVERYONE = CohortRule(fraction=1.0)


def small_plan(rule: CohortRule = EVERYONE, **keys: Any) -> Plan:
    return plan(ExamplePrivacy(**{"delta": 1e-3, "epsilon": 8.0} | keys), ROWS, 32, 2, rule, 12)


def test_rates_steps_and_divisors_follow_from_declared_rows() -> None:
    made = small_plan()
    assert made.rates.tolist() == [32 / 100, 32 / 57, 1.0, 32 / 80, 32 / 57]
    assert made.steps.tolist() == [8, 4, 2, 6, 4]
    assert made.divisors.tolist() == [32, 32, 20, 32, 32]
    assert made.max_participations == 12
    assert any("fewer train rows" in line for line in made.warnings)


def test_the_promise_holds_for_every_client_at_its_limit_and_is_tight() -> None:
    made = small_plan()
    ledger = Ledger(made)
    for _ in range(12):
        ledger.charge(range(5))
    every = [
        epsilon(made.noise_multiplier, float(q), int(t) * 12, 1e-3, "rdp")
        for q, t in zip(made.rates, made.steps, strict=True)
    ]
    assert 0.99 * 8 <= max(every) <= 8
    assert ledger.largest() == ledger.spent().largest == made.epsilon == max(every)
    assert [row.epsilon for row in ledger.rows()] == every
    assert ledger.exhausted


def test_the_noise_is_solved_for_the_unlucky() -> None:
    """Under a cohort rule the limit, not the expected number of participations, decides."""
    rule = CohortRule(poisson=0.3)
    made = small_plan(rule)
    assert made.max_participations > 0.3 * 12
    assert made.epsilon <= 8


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 1000), st.floats(0.2, 1.0))
def test_sampler_and_ledger_never_let_a_client_exceed_its_limit(limit: int, seed: int, poisson: float) -> None:
    rule = CohortRule(poisson=poisson)
    ledger = Ledger(small_plan(rule, max_participations=limit, epsilon=None, noise_multiplier=2.0))
    for round in range(12):
        ledger.charge(sample(rule, seed, round, ledger.participations, limit))
    assert ledger.participations.max() <= limit


def test_a_charge_beyond_the_limit_is_refused_and_charges_nobody() -> None:
    ledger = Ledger(small_plan(max_participations=1))
    ledger.charge([0, 2])
    with pytest.raises(PrivacyError, match="client 2"):
        ledger.charge([1, 2])
    assert ledger.participations.tolist() == [1, 0, 1, 0, 0]


def test_what_would_be_spent_is_known_before_it_is() -> None:
    ledger = Ledger(small_plan())
    assert ledger.after([1]).largest() > ledger.largest() == 0.0
    assert ledger.participations.sum() == 0


def test_spent_is_over_clients_that_took_part() -> None:
    ledger = Ledger(small_plan())
    assert ledger.spent() == (1e-3, 0.0, 0.0, 0.0, None, 0, 0)
    ledger.charge([0, 1])
    ledger.charge([1, 4])
    spent = ledger.spent()
    one, two = (row.epsilon or 0.0 for row in ledger.rows([0, 1]))
    assert (spent.client, spent.participations, spent.clients) == (1, 2, 3)
    assert (spent.largest, spent.smallest) == (two, min(one, ledger.rows([4])[0].epsilon or 0.0))
    assert ledger.spent(delta=1e-5).largest > spent.largest


def test_a_restored_ledger_goes_on_as_if_nothing_had_happened() -> None:
    made = small_plan()
    whole, first = Ledger(made), Ledger(made)
    for ledger in (whole, first):
        ledger.charge([0, 3])
    resumed = Ledger(made)
    resumed.restore(first.state())
    for ledger in (whole, resumed):
        ledger.charge([3])
    assert resumed.rows() == whole.rows()
    with pytest.raises(PrivacyError, match="Resume with the same scenario"):
        Ledger(small_plan(max_participations=1)).restore(whole.state())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epsilon": None}, "neither given"),
        ({"noise_multiplier": 1.0}, "both given"),
        ({"epsilon": -1.0}, "epsilon = -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"max_participations": 0}, "max_participations = 0"),
        ({"delta": 0.01}, r"client 0 has 100 train rows"),
        ({"epsilon": 1e-5, "delta": 1e-6}, "reached by no noise"),
    ],
)
def test_impossible_requests_are_refused_by_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        small_plan(**keys)


def test_a_loose_delta_is_warned_about() -> None:
    assert any("above 1 / (10 rows)" in line for line in small_plan(delta=5e-3).warnings)
    assert not any("delta" in line for line in small_plan(delta=1e-3).warnings)


@pytest.mark.parametrize(("window", "unit"), [(None, "one row"), (80, "one window of 80 tokens")])
def test_the_statement_says_what_epsilon_covers_and_never_rounds_it_down(window: int | None, unit: str) -> None:
    made = plan(ExamplePrivacy(delta=1e-3, noise_multiplier=2.0), ROWS, 32, 2, EVERYONE, 12, window=window)
    ledger = Ledger(made)
    ledger.charge([0])
    lines = statement(made, ledger.spent())
    text = " ".join(" ".join(lines).split())
    assert all(len(line) <= 80 for line in lines)
    assert float(text.split()[1]) >= ledger.largest()
    for part in (
        f"protects {unit}, not one person",
        "zero-out",
        "the server and all it tells",
        "not a guarantee",
        "every upload",
        "run.db and this summary are for the curator",
    ):
        assert part in text


def test_clients_without_rows_cost_nothing_and_are_never_waited_for() -> None:
    """Empty clients change neither the noise nor any epsilon, and the budget is spent when the others' is."""
    rows = np.array([100, 0, 57, 0])
    request = ExamplePrivacy(delta=1e-3, epsilon=8.0)
    made = plan(request, rows, 32, 2, EVERYONE, 12)
    alone = plan(request, rows[rows > 0], 32, 2, EVERYONE, 12)
    assert (made.noise_multiplier, made.epsilon) == (alone.noise_multiplier, alone.epsilon)
    assert (made.rates[1], made.steps[1], made.divisors[1]) == (0.0, 0, 0.0)
    assert plan(request, rows, 32, 2, EVERYONE, 12, steps=5).steps.tolist() == [5, 0, 5, 0]
    assert not made.warnings
    ledger = Ledger(made)
    for _ in range(12):
        ledger.charge([0, 2])
    assert ledger.exhausted
    assert [row.client for row in ledger.rows()] == [0, 2]


def test_places_of_empty_clients_fall_to_the_others_in_the_limit_too() -> None:
    made = plan(ExamplePrivacy(delta=1e-3, epsilon=8.0), np.array([100, 0, 57, 0]), 32, 2, CohortRule(size=2), 12)
    assert made.max_participations == 12


def test_a_federation_without_any_row_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no client has a train row"):
        plan(ExamplePrivacy(delta=1e-3, epsilon=8.0), np.array([0, 0]), 32, 2, EVERYONE, 12)


def test_rows_of_a_cohort_are_cheap_under_prv_and_whole_at_the_end() -> None:
    ledger = Ledger(small_plan(accountant="prv"))
    ledger.charge([0, 2])
    assert [tuple(row) for row in ledger.rows([0, 2, 3])] == [(0, 1, None), (2, 1, None)]
    written = {row.client: row.epsilon for row in ledger.rows()}
    assert ledger.largest() == max(value for value in written.values() if value is not None)
    assert all(written.values())


def test_rows_of_a_round_cost_milliseconds_once_a_rate_is_known() -> None:
    """54 writers of different sizes, all in every round: it was a second a round."""
    sizes = np.arange(60, 60 + 9 * 54, 9)
    ledger = Ledger(plan(ExamplePrivacy(delta=1e-4, noise_multiplier=1.5), sizes, 32, 1, EVERYONE, 40))
    seconds = []
    for _ in range(12):
        ledger.charge(range(54))
        started = time.perf_counter()
        ledger.rows(range(54))
        seconds.append(time.perf_counter() - started)
    assert np.median(seconds[1:]) < 0.25
