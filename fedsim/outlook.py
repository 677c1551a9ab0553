"""What a scenario will spend, before anything trains: epsilon round by round, what it rests on, what changes would do.

Epsilon is that of the unluckiest client that cohort rule and limit allow, never of an expected one. All of it follows
from declared numbers; data are loaded, since these include how many rows a client has.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.cohorts import expected_size
from fedsim.composition import algorithm_of, check_algorithm
from fedsim.data.corpus import Folders
from fedsim.errors import FedsimError, ScenarioError, named
from fedsim.job import check_cohort, plan_of
from fedsim.local import Work
from fedsim.planning import jobs
from fedsim.privacy.accountant import Charge, epsilons, largest
from fedsim.privacy.forms import argument
from fedsim.privacy.noise import Noise, by_units, noise_over_clip, units_of
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.privacy.statement import assumptions
from fedsim.scenario import Scenario

MOST_ROUNDS = 10_000
"""Of which epsilon is computed, spread evenly where there are more."""
SLOW = ("prv", "pld")
"""Accountants that take up to a second for an epsilon: they are asked for a few rounds, and RDP for what changes do."""
SLOW_ROUNDS = 5


class Followed(NamedTuple):
    """A client whose epsilon is followed, or all of them.

    Attributes:
        role: what it stands for.
        client: its number, the lowest among equals; None for all, which are charged alike.
        units: that it has for training (rows, or groups of rows); None where no charge depends on them.
        charge: of one participation, or of a round.
    """

    role: str
    client: int | None
    units: int | None
    charge: Charge


class Point(NamedTuple):
    """Epsilon after a round, of the largest client and of each that is followed, which was charged so often."""

    round: int
    times: int
    largest: float
    followed: tuple[float, ...]


class Change(NamedTuple):
    """What a changed scenario would spend, planned anew.

    Attributes:
        keys: that differ; none for the scenario as it is.
        epsilon: at the end, with the noise multiplier as it is, or as `keys` say.
        noise_multiplier: for the epsilon of the scenario as it is; the changed one where `keys` change it.
        ratio: of the noise over the clip, with that noise multiplier.
        refused: why there is no such scenario; the others are None then.
    """

    keys: Mapping[str, Any]
    epsilon: float | None
    noise_multiplier: float | None
    ratio: float | None
    refused: str | None = None


class Target(NamedTuple):
    """Noise for an epsilon: the multiplier, rounded up, and the epsilon of a plan with it."""

    epsilon: float
    noise_multiplier: float
    reached: float


@dataclass(frozen=True)
class Outlook:
    """What a scenario will spend.

    Attributes:
        scenario, plan: the scenario, and what it promises.
        clients, parameters, model: K, values of the model, and its name.
        about: what the promise rests on, a line each.
        followed: whose epsilon is followed: of all, or at example level of clients with small, middling and large data.
        spender: who spends most.
        points: by round; of all rounds, but for slow accountants and more than `MOST_ROUNDS`.
        last_round: the last that `[stop] epsilon` allows, whatever cohorts are drawn; None without that rule.
        certain: whether the run is sure to end after it, since every client is charged in every round.
        noise: over the clip.
        changes: what they would do, the scenario as it is first.
        changes_by: the accountant of `changes`.
        target: noise for another epsilon, where one was asked for.
    """

    scenario: Scenario
    plan: Plan
    clients: int
    parameters: int
    model: str
    about: Sequence[str]
    followed: Sequence[Followed]
    spender: Followed
    points: Sequence[Point]
    last_round: int | None
    certain: bool
    noise: Noise
    changes: Sequence[Change]
    changes_by: str
    target: Target | None


def look(scenario: Scenario, data_dir: Path | None = None, target: float | None = None) -> Outlook:
    """Plan a scenario, and scenarios near it. Data are loaded, nothing is trained.

    Args:
        scenario: that asks for privacy.
        data_dir: a folder of data sets.
        target: an epsilon at the end of the run to solve the noise for.

    Raises:
        FedsimError: the scenario promises nothing, or cannot be run.
    """
    if scenario.privacy.level is None:
        raise ScenarioError(
            f"{scenario.origin}: it promises no privacy, so no epsilon is spent. Add [privacy.example] (for rows) "
            "with max_grad_norm, or [privacy.client] (for clients) or [privacy.local] (from the server too) with clip; "
            "each with delta, and epsilon or noise_multiplier"
        )
    job, _ = jobs(scenario, Folders.of(data_dir, scenario.folder))
    work, plan = Work(job), job.privacy
    assert plan is not None
    everyone = expected_size(job.rule, job.federation.clients) >= int((job.federation.train_rows > 0).sum())
    followed = _followed(plan)
    return Outlook(
        scenario=scenario,
        plan=plan,
        clients=job.federation.clients,
        parameters=work.layout.size,
        model=job.model_title,
        about=_about(work, plan),
        followed=followed,
        spender=_spender(plan),
        points=[_point(plan, followed, number) for number in _rounds(plan)],
        last_round=_last_round(plan, scenario.stop.epsilon),
        certain=plan.by_round or (everyone and plan.separation == 1),
        noise=planned(work, {}).noise,
        changes=_changes(work, plan),
        changes_by="rdp" if plan.accountant in SLOW else plan.accountant,
        target=_target(work, target) if target is not None else None,
    )


def _leaving(work: Work) -> int:
    """Values of an upload: those that do not stay with the client."""
    if work.leaving is not None:
        return int(work.leaving.sum())
    return work.layout.size * (1 + len(work.algorithm.extra)) + work.layout.buffer_size


def _about(work: Work, plan: Plan) -> list[str]:
    if plan.by_round:
        charged = f"charged: every client in each of {plan.rounds} rounds, since chance hides who takes part"
    else:
        charged = f"charged: a client for each participation, at most {plan.most} of {plan.rounds} rounds, enforced"
    return [
        *assumptions(plan, work.algorithm.personalised),
        charged,
        f"private since {argument(work.algorithm, plan.level)}",
    ]


def _followed(plan: Plan) -> list[Followed]:
    kinds, index = plan.kinds
    if not isinstance(plan.mechanism, ExampleMechanism):
        return [_spender(plan)]
    roles, units = ("smallest data set", "median data set", "largest data set"), units_of(plan)
    clients = zip(roles, by_units(plan), strict=True)
    return [Followed(role, client, int(units[client]), kinds[index[client]]) for role, client in clients]


def _spender(plan: Plan) -> Followed:
    """The client whose epsilon is the largest at the end."""
    kinds, index = plan.kinds
    charges = [_times(kind, plan.most) for kind in kinds]
    whose = largest(charges, plan.delta, plan.accountant)[1]
    place = charges.index(whose) if whose is not None else 0
    if not isinstance(plan.mechanism, ExampleMechanism):
        return Followed("every client", None, None, kinds[place])
    client = int(np.flatnonzero(index == place)[0])
    return Followed("spends most", client, int(units_of(plan)[client]), kinds[place])


def _times(charge: Charge, times: int) -> Charge:
    return charge._replace(steps=charge.steps * times)


def most_times(plan: Plan, round: int) -> int:
    """How often a client can have been charged after a round, at most."""
    return round if plan.by_round else min(plan.most, -(-round // plan.separation))


def _rounds(plan: Plan) -> list[int]:
    return spread(plan.rounds, SLOW_ROUNDS if plan.accountant in SLOW else MOST_ROUNDS)


def spread(rounds: int, count: int) -> list[int]:
    """All rounds, or at most so many: the first, the last, and every 2nd, 5th, 10th, ... between them."""
    if rounds <= count:
        return list(range(1, rounds + 1))
    steps = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    step = next(step for step in steps if rounds <= step * (count - 2))
    return sorted({1, *range(step, rounds, step), rounds})


def _point(plan: Plan, followed: Sequence[Followed], round: int) -> Point:
    times = most_times(plan, round)
    charges = [_times(each.charge, times) for each in followed]
    each = epsilons(charges, plan.delta, plan.accountant).tolist()
    return Point(round, times, plan.epsilon_after(times), tuple(each))


def _last_round(plan: Plan, limit: float | None) -> int | None:
    """The last round after which no client can have spent more than `limit`; 0 where the first may."""
    if limit is None:
        return None
    low, high = 0, plan.rounds
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plan.epsilon_after(most_times(plan, middle)) <= limit else (low, middle - 1)
    return low


class Near(NamedTuple):
    """A scenario near the one that is looked at: its promise, and its noise over the clip."""

    plan: Plan
    noise: Noise


def planned(work: Work, changes: Mapping[str, Any]) -> Near:
    """Plan the scenario with some keys changed, on the same data, model and strategy.

    Raises:
        FedsimError: there is no such scenario.
    """
    scenario, federation = work.job.scenario.changed(changes), work.federation
    with named(scenario.origin):
        check_cohort(scenario, federation.clients)
        algorithm = algorithm_of(scenario)
        check_algorithm(algorithm, scenario, work.plain.module, work.layout, federation.clients)
        plan = plan_of(scenario, federation, algorithm)
    assert plan is not None
    values = work.layout.size if plan.level == "example" else _leaving(work)
    able = int((federation.train_rows > 0).sum())
    cohort = min(expected_size(scenario.cohort.rule, federation.clients), able)
    return Near(plan, noise_over_clip(plan, values, cohort))


def _changes(work: Work, plan: Plan) -> list[Change]:
    """Half and double of cohort, rounds and noise."""
    scenario, table = work.job.scenario, f"privacy.{plan.level}"
    quick = {f"{table}.accountant": "rdp"} if plan.accountant in SLOW else {}
    same = {**quick, f"{table}.noise_multiplier": plan.noise_multiplier}
    reached = getattr(scenario.privacy, plan.level).epsilon or planned(work, same).plan.epsilon
    wanted = {**quick, f"{table}.epsilon": reached} if 0 < reached < math.inf else same
    others = (*_cohort_changes(scenario), *_round_changes(scenario))
    found = [_changed(work, {}, same, wanted if quick else same)]
    found += [_changed(work, keys, same, wanted) for keys in others]
    for factor in (0.5, 2.0):
        keys = {f"{table}.noise_multiplier": float(f"{factor * plan.noise_multiplier:.4g}")}
        found.append(_changed(work, keys, {**same, **keys}, {**same, **keys}))
    return found


def _changed(work: Work, keys: Mapping[str, Any], same: Mapping[str, Any], wanted: Mapping[str, Any]) -> Change:
    """What some keys change beside the noise: epsilon with it as in `same`, noise with epsilon as in `wanted`."""
    try:
        epsilon, other = planned(work, {**same, **keys}).plan.epsilon, planned(work, {**wanted, **keys})
    except FedsimError as error:
        return Change(keys, None, None, None, str(error).removeprefix(f"{work.job.scenario.origin}: "))
    return Change(keys, epsilon, other.plan.noise_multiplier, other.noise.ratio)


def _cohort_changes(scenario: Scenario) -> list[dict[str, Any]]:
    cohort = scenario.cohort
    if cohort.size is not None:
        values: dict[str, Any] = {"size": [max(1, cohort.size // 2), 2 * cohort.size]}
    elif cohort.poisson is not None:
        values = {"poisson": [cohort.poisson / 2, min(1.0, 2 * cohort.poisson)]}
    else:
        fraction = 1.0 if cohort.fraction is None else cohort.fraction
        values = {"fraction": [fraction / 2, min(1.0, 2 * fraction)]}
    now = {"size": cohort.size, "poisson": cohort.poisson, "fraction": cohort.fraction or 1.0}
    return [{f"cohort.{key}": value} for key, both in values.items() for value in both if value != now[key]]


def _round_changes(scenario: Scenario) -> list[dict[str, Any]]:
    return [{"rounds": rounds} for rounds in (scenario.rounds // 2, 2 * scenario.rounds) if rounds]


def _target(work: Work, epsilon: float) -> Target:
    """The noise for an epsilon at the end, rounded up to five digits, and checked forwards."""
    table = f"privacy.{work.job.scenario.privacy.level}"
    if not 0 < epsilon < math.inf:
        raise ScenarioError(f"--target {epsilon:g}: an epsilon is above 0 and finite")
    noise = _up(planned(work, {f"{table}.epsilon": epsilon}).plan.noise_multiplier)
    return Target(epsilon, noise, planned(work, {f"{table}.noise_multiplier": noise}).plan.epsilon)


def _up(value: float, digits: int = 5) -> float:
    """The least number of so many digits that is not below the value."""
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return float(f"{math.ceil(value * scale) / scale:.{digits}g}")
