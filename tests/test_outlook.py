"""What a scenario will spend, before it is run: against the accountant, against plans made anew, and against runs."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim import outlook
from fedsim.cohorts import CohortRule
from fedsim.data.corpus import Folders
from fedsim.errors import DataError, ScenarioError
from fedsim.job import prepare
from fedsim.local import Work
from fedsim.outlook import MOST_ROUNDS, Change, Outlook, look, spread
from fedsim.outlook_page import SHOWN_ROUNDS, as_data, look_lines, picture
from fedsim.privacy import accountant
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.client import Releasing
from fedsim.privacy.example import noisy_gradient
from fedsim.privacy.levels import plan_client
from fedsim.privacy.noise import noise_over_clip
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.privacy.requests import ClientPrivacy
from fedsim.privacy.uploads import gaussian
from fedsim.progress import WIDTH
from fedsim.records import to_json
from fedsim.scenario import Scenario
from fedsim.stored import open_run
from tests import small

UNIFORM: small.Changes = {"strategy.weights": "uniform", "data.partition": {"kind": "iid", "clients": 12}}
EXAMPLE = {"epsilon": 2.0, "delta": 1e-3, "max_grad_norm": 1.0}
CLIENT = {"noise_multiplier": 4.0, "delta": 1e-3, "clip": 0.5}
TARGET = 1.0
KINDS: dict[str, small.Changes] = {
    "example": {"privacy.example": EXAMPLE, "rounds": 5},
    "example, some": {"privacy.example": EXAMPLE, "cohort.size": 2, "rounds": 9},
    "example, replace": {
        "privacy.example": {"noise_multiplier": 4.0, "delta": 1e-3, "max_grad_norm": 1.0, "relation": "replace"},
        "train": {"learning_rate": 0.1, "batch_size": 16, "steps": 3},
    },
    "client": {**UNIFORM, "privacy.client": CLIENT, "cohort.poisson": 0.5, "rounds": 6},
    "client, adaptive": {
        **UNIFORM,
        "privacy.client": {**CLIENT, "adaptive": {"quantile": 0.5}},
        "cohort.poisson": 0.5,
    },
    "client, fixed": {**UNIFORM, "privacy.client": CLIENT, "cohort.size": 4, "rounds": 8},
    "client, tree": {
        **UNIFORM,
        "privacy.client": {**CLIENT, "mechanism": "tree", "min_separation": 3},
        "cohort.size": 3,
        "rounds": 8,
    },
    "local": {**UNIFORM, "privacy.local": {"epsilon": 20.0, "delta": 1e-3, "clip": 1.0}, "cohort.size": 6, "rounds": 4},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def looked(kind: str) -> Outlook:
    return look(scenario(KINDS[kind]), target=TARGET)


def scenario(changes: small.Changes) -> Scenario:
    """Of a copy: who sets a key of a table that a change gives would set it for all that share the table."""
    return small.scenario(copy.deepcopy(dict(changes)))


def plan_of(changes: small.Changes) -> Plan:
    """Planned from scratch."""
    made = scenario(changes)
    plan = prepare(made, Folders.of(None, made.folder)).privacy
    assert plan is not None
    return plan


def epsilons(plan: Plan, times: int) -> list[float]:
    """Of every client that was charged so often, one by one."""
    return [
        epsilon(plan.kinds[0][kind]._replace(steps=plan.kinds[0][kind].steps * times), plan.delta, plan.accountant)
        for kind in plan.kinds[1].tolist()
    ]


def drawn_greedily(plan: Plan) -> list[int]:
    """How often a client was charged after each round that is drawn whenever it may be."""
    counts, last = [0], -plan.separation
    for round in range(1, plan.rounds + 1):
        drawn = plan.by_round or (counts[-1] < plan.most and round - last >= plan.separation)
        last = round if drawn else last
        counts.append(counts[-1] + drawn)
    return counts[1:]


# Epsilon by round


def test_each_round_has_the_epsilon_of_the_unluckiest_client(kind: str, looked: Outlook) -> None:
    """Over every client, charged whenever rule and limit allow it; the clients that are followed likewise."""
    plan = plan_of(KINDS[kind])
    assert [point.round for point in looked.points] == list(range(1, plan.rounds + 1))
    for point, times in zip(looked.points, drawn_greedily(plan), strict=True):
        every = epsilons(plan, times)
        assert point.times == times and point.largest == max(every)
        for each, spent in zip(looked.followed, point.followed, strict=True):
            assert spent == (every[each.client] if each.client is not None else max(every))
    assert looked.points[-1].largest == plan.epsilon
    spender = looked.spender.client
    assert spender is None or every[spender] == max(every)


def test_clients_with_small_middling_and_large_data_are_followed() -> None:
    rows = small.job(KINDS["example"]).federation.train_rows
    smallest, median, largest = look(scenario(KINDS["example"])).followed
    assert [each.units for each in (smallest, median, largest)] == [
        rows.min(),
        np.sort(rows)[len(rows) // 2],
        rows.max(),
    ]
    for each in (smallest, median, largest):
        assert each.client is not None and rows[each.client] == each.units


@pytest.mark.parametrize("kind", ["example", "client"])
def test_a_run_spends_what_was_foreseen_where_all_are_charged(kind: str, tmp_path: Path) -> None:
    result = fedsim.run(scenario(KINDS[kind]), out=tmp_path / "run")
    seen = look(scenario(KINDS[kind]))
    assert seen.certain
    assert [row.epsilon for row in open_run(result.folder).rounds()] == [point.largest for point in seen.points]
    assert result.values["privacy"]["largest"] == seen.plan.epsilon


@pytest.mark.parametrize("kind", ["example, some", "client, tree"])
def test_no_run_spends_more_than_was_foreseen(kind: str, tmp_path: Path) -> None:
    result = fedsim.run(scenario(KINDS[kind]), out=tmp_path / "run")
    seen = look(scenario(KINDS[kind]))
    assert not seen.certain
    for row, point in zip(open_run(result.folder).rounds(), seen.points, strict=False):
        assert row.epsilon is not None and row.epsilon <= point.largest


def test_a_run_stops_after_the_round_that_was_foreseen(tmp_path: Path) -> None:
    """Where everybody is charged; else not before it."""
    for kind, limit in (("example", 1.5), ("example, some", 1.2)):
        made = scenario({**KINDS[kind], "stop.epsilon": limit})
        seen, result = look(made), fedsim.run(made, out=tmp_path / kind)
        assert seen.last_round is not None and 0 < seen.last_round < made.rounds
        done = result.values["rounds"]
        assert done == seen.last_round if seen.certain else done >= seen.last_round
        said = [line for line in look_lines(seen) if line.startswith("stop.epsilon")]
        assert len(said) == 1 and f"after round {seen.last_round} of {made.rounds}" in said[0]


def test_a_stop_rule_that_is_never_met_or_at_once() -> None:
    far, near = (look(scenario({**KINDS["client"], "stop.epsilon": limit})) for limit in (100.0, 0.01))
    assert (far.last_round, near.last_round) == (6, 0)
    assert any("does not end the run" in line for line in look_lines(far))
    assert any("ends the run after round 0 of 6" in line for line in look_lines(near))


def test_a_run_ends_where_foreseen_when_everybody_has_spent_its_budget(tmp_path: Path) -> None:
    made = scenario({**KINDS["example"], "privacy.example.max_participations": 2})
    assert "max_participations = 2 ends the run after round 2 of 5" in look_lines(look(made))
    assert fedsim.run(made, out=tmp_path / "run").values["rounds"] == 2


# What changes would do


def test_a_change_is_what_its_scenario_would_be(kind: str, looked: Outlook) -> None:
    """Planned from scratch, with the noise as it is and with epsilon as it is."""
    base = KINDS[kind]
    table = f"privacy.{looked.plan.level}"
    noise = f"{table}.noise_multiplier"
    first, *others = looked.changes
    assert first == Change({}, looked.plan.epsilon, looked.plan.noise_multiplier, looked.noise.ratio)
    wanted = getattr(scenario(base).privacy, looked.plan.level).epsilon or looked.plan.epsilon
    checked = 0
    for change in others:
        if change.refused is not None:
            with pytest.raises(ScenarioError):
                small.job({**base, **change.keys})
            continue
        checked += 1
        assert change.epsilon == plan_of({**base, noise: looked.plan.noise_multiplier, **change.keys}).epsilon
        if noise in change.keys:
            assert change.noise_multiplier == change.keys[noise]
        else:
            solved = plan_of({**base, f"{table}.epsilon": wanted, **change.keys})
            assert change.noise_multiplier == solved.noise_multiplier
    assert checked >= 4


def test_cohort_rounds_and_noise_are_halved_and_doubled(looked: Outlook) -> None:
    made = looked.scenario
    keys = [key for change in looked.changes[1:] for key in change.keys]
    rounds = [change.keys["rounds"] for change in looked.changes if "rounds" in change.keys]
    noises = [next(iter(change.keys.values())) for change in looked.changes[-2:]]
    assert rounds == [made.rounds // 2, 2 * made.rounds]
    assert np.allclose(noises, np.array([0.5, 2.0]) * looked.plan.noise_multiplier, rtol=1e-3)
    assert any(key.startswith("cohort.") for key in keys)


def test_what_cannot_be_is_left_out_with_its_reason() -> None:
    seen = look(scenario({**KINDS["client, fixed"], "cohort.size": 8}))
    (refused,) = [change for change in seen.changes if change.refused is not None]
    assert refused.keys == {"cohort.size": 16}
    assert any(
        line.startswith("  left out: cohort.size = 16: the number of clients is 12") for line in look_lines(seen)
    )


# Another epsilon


def test_a_target_is_met_and_hardly_more(kind: str, looked: Outlook) -> None:
    """Both lines that are printed do it; a thousandth less noise does not."""
    found, table = looked.target, f"privacy.{looked.plan.level}"
    assert found is not None
    reached = plan_of({**KINDS[kind], f"{table}.noise_multiplier": found.noise_multiplier}).epsilon
    assert found.reached == reached <= TARGET
    assert plan_of({**KINDS[kind], f"{table}.noise_multiplier": 0.999 * found.noise_multiplier}).epsilon > TARGET
    solved = plan_of({**KINDS[kind], f"{table}.epsilon": TARGET}).noise_multiplier
    assert solved <= found.noise_multiplier <= 1.001 * solved
    lines = look_lines(looked)
    assert "  epsilon = 1.0" in lines and f"  noise_multiplier = {found.noise_multiplier}" in lines


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_is_above_0_and_finite(target: float) -> None:
    with pytest.raises(ScenarioError, match=r"--target .*above 0 and finite"):
        look(scenario(KINDS["client"]), target=target)


# How loud the noise is


@pytest.mark.parametrize(("parameters", "ratio"), [(1_663_370, 23.9), (21_000, 2.68)])
def test_known_ratios(parameters: int, ratio: float) -> None:
    """54 of 539 clients a round at noise 1: McMahan's CNN, and a net of 21,000 parameters."""
    plan = plan_client(ClientPrivacy(1e-3, noise_multiplier=1.0), 540, CohortRule(poisson=0.1), 100)
    assert noise_over_clip(plan, parameters, 54).ratio == pytest.approx(ratio, rel=0.01)


def test_the_noise_that_is_drawn_is_as_loud_as_was_said(kind: str, looked: Outlook) -> None:
    """Its measured norm, of draws over as many values; of a tree the root mean square over its rounds."""
    plan, noise, work = looked.plan, looked.noise, Work(small.job(KINDS[kind]))
    rng, size = np.random.default_rng(1), work.layout.size
    if isinstance(plan.mechanism, ExampleMechanism):
        divisor = float(plan.mechanism.divisors[looked.followed[1].client])
        drawn = noisy_gradient(torch.zeros(size), plan.noise_multiplier, plan.clip, divisor, rng)
        measured = float(drawn.norm()) / plan.clip
    elif plan.level == "local":
        upload = float(gaussian(size, plan.noise_multiplier * plan.clip, None, rng).norm()) / plan.clip
        assert noise.upload == pytest.approx(upload, rel=0.05)
        measured = upload / math.sqrt(6)
    else:
        releasing = Releasing.of(plan, None, work.job.draws)
        zeros = torch.zeros(work.contribution_size, dtype=torch.float64)
        rounds = range(1, 1 + plan.separation)
        squares = [float(releasing(zeros, round, plan.clip).estimate.square().sum()) for round in rounds]
        measured = math.sqrt(np.mean(squares)) / plan.clip
    assert noise.ratio == pytest.approx(measured, rel=0.05)


def test_too_much_noise_is_told() -> None:
    noise = "privacy.client.noise_multiplier"
    loud, soft = (look(scenario({**KINDS["client, fixed"], noise: value})) for value in (4.0, 0.2))
    assert loud.noise.ratio > 3 > soft.noise.ratio
    assert [any("hardly anything is learned" in line for line in look_lines(each)) for each in (loud, soft)] == [
        True,
        False,
    ]
    assert [as_data(each)["noise_over_clip"]["too_loud"] for each in (loud, soft)] == [True, False]


def test_what_stays_with_clients_carries_no_noise() -> None:
    """FedPer's heads are not sent."""
    changes = {**KINDS["client, fixed"], "strategy": {"name": "fedper", "weights": "uniform"}}
    plain, personal = look(scenario(KINDS["client, fixed"])), look(scenario(changes))
    sent = personal.parameters - 16 * 10 - 10
    assert personal.noise.ratio == pytest.approx(plain.noise.ratio * math.sqrt(sent / plain.parameters))
    assert any(line.startswith("joint DP") for line in look_lines(personal))


# What is said


def test_lines_fit_and_programs_get_everything(looked: Outlook) -> None:
    lines, data = look_lines(looked), json.loads(to_json(as_data(looked)))
    assert max(map(len, lines)) <= WIDTH
    assert [point["largest"] for point in data["rounds"]] == [point.largest for point in looked.points]
    assert len(data["changes"]) == len(looked.changes) and data["target"]["epsilon"] == TARGET
    assert data["privacy"]["planned"] == looked.plan.epsilon and data["privacy"]["delta"] == looked.plan.delta
    named = [f"client {each.client}" for each in looked.followed if each.client is not None]
    assert all(any(name in line for line in lines) for name in named)
    assert {"about", "spender", "followed", "stop", "noise_over_clip", "changes_accountant", "notes"} <= set(data)
    for fact in ("protects", "mechanism: ", "adversary: ", "covers", "charged: ", "private since"):
        assert any(line.startswith(fact) for line in lines), fact


def test_many_rounds_are_few_lines() -> None:
    seen = look(scenario({**KINDS["client, fixed"], "cohort.size": 12, "rounds": 1000, "stop.epsilon": 20.0}))
    assert len(seen.points) == 1000
    start = next(place for place, line in enumerate(look_lines(seen)) if line.split()[:1] == ["round"])
    shown = [int(line.split()[0]) for line in look_lines(seen)[start + 1 :] if line[:7].strip().isdigit()]
    assert len(shown) <= SHOWN_ROUNDS + 1
    assert {1, 1000, seen.last_round} <= set(shown) and shown == sorted(shown)


@pytest.mark.parametrize("rounds", [MOST_ROUNDS + 1, 123_456, 10**9])
def test_of_very_many_rounds_epsilon_is_computed_for_some(rounds: int) -> None:
    numbers = spread(rounds, MOST_ROUNDS)
    assert len(numbers) <= MOST_ROUNDS and numbers[0] == 1 and numbers[-1] == rounds


def test_a_slow_accountant_is_asked_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, and RDP for what changes would do; the end is its own."""
    asked: set[Any] = set()
    own = accountant._prv_epsilon

    def counted(*key: Any) -> float:
        asked.add(key)
        return own(*key)

    monkeypatch.setattr(accountant, "_prv_epsilon", counted)
    privacy = {"noise_multiplier": 4.0, "delta": 1e-3, "max_grad_norm": 1.0, "accountant": "prv"}
    changes = {"privacy.example": privacy, "rounds": 40, "data.partition": {"kind": "iid", "clients": 5}}
    seen = look(scenario(changes))
    assert 0 < len(asked) <= 2 * outlook.SLOW_ROUNDS
    assert seen.points[-1].round == 40 and seen.points[-1].largest == seen.plan.epsilon
    by_rdp = plan_of({**changes, "privacy.example.accountant": "rdp"}).epsilon
    assert seen.changes_by == "rdp" and seen.changes[0].epsilon == by_rdp >= seen.plan.epsilon
    assert any("by Renyi DP" in line for line in look_lines(seen))


def test_a_scenario_without_privacy_spends_nothing() -> None:
    with pytest.raises(ScenarioError, match=r"^small: it promises no privacy.*\[privacy.example\].*\[privacy.client\]"):
        look(scenario({}))


def test_a_run_without_privacy_beside_it_is_told() -> None:
    seen = look(scenario({**KINDS["example"], "privacy.without": {}}))
    assert any(line.startswith("note: privacy.without trains on the same data") for line in look_lines(seen))


def test_nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Work, "train")
    look(scenario(KINDS["example"]))


# The picture


@pytest.fixture(scope="module")
def uneven() -> Outlook:
    return look(scenario({**KINDS["example"], "stop.epsilon": 1.5}))


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(uneven: Outlook, suffix: str, tmp_path: Path) -> None:
    """The same scenario gives the same file."""
    for name in ("one", "two"):
        picture(uneven, tmp_path / f"{name}{suffix}")
    content = (tmp_path / f"one{suffix}").read_bytes()
    assert content == (tmp_path / f"two{suffix}").read_bytes()
    assert b"<?xml" in content[:200] if suffix == ".svg" else content.startswith(b"\x89PNG")


def test_pictures_have_known_formats(uneven: Outlook, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="change the suffix"):
        picture(uneven, tmp_path / "epsilon.bmp")
    with pytest.raises(DataError, match="cannot be written"):
        picture(uneven, tmp_path / "absent" / "epsilon.png")
