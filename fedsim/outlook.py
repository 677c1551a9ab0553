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
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.cohorts import expected_size
from fedsim.composition import algorithm_of, check_algorithm
from fedsim.data.corpus import Folders
from fedsim.errors import DataError, FedsimError, ScenarioError
from fedsim.job import check_cohort, named, plan_of
from fedsim.local import Work
from fedsim.planning import jobs
from fedsim.privacy.accountant import Charge, epsilons, largest, rounded_up
from fedsim.privacy.forms import argument
from fedsim.privacy.noise import LOUD, Noise, by_units, noise_over_clip, units_of
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.privacy.statement import assumptions, promise, shown
from fedsim.progress import shortened, wrapped
from fedsim.scenario import Scenario

SHOWN_ROUNDS = 15
MOST_ROUNDS = 10_000
"""Of which epsilon is computed, spread evenly where there are more."""
SLOW = ("prv", "pld")
"""Accountants that take up to a second for an epsilon: they are asked for a few rounds, and RDP for what changes do."""
SLOW_ROUNDS = 5
_FORMATS = (".svg", ".png", ".pdf")


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
    return _spread(plan.rounds, SLOW_ROUNDS if plan.accountant in SLOW else MOST_ROUNDS)


def _spread(rounds: int, count: int) -> list[int]:
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


def look_lines(outlook: Outlook) -> list[str]:
    """For people, at most 80 columns."""
    parts = [
        [*_heading(outlook), *(line for about in outlook.about for line in wrapped(about))],
        _epsilon_lines(outlook),
        _noise_lines(outlook),
        _change_lines(outlook),
        _target_lines(outlook),
        [line for note in _notes(outlook) for line in wrapped(f"note: {note}")],
    ]
    lines = [line for part in parts if part for line in ("", *part)]
    return lines[1:]


def as_data(outlook: Outlook) -> dict[str, Any]:
    """For programs."""
    plan, stop = outlook.plan, outlook.scenario.stop.epsilon
    rule = {"epsilon": stop, "last_round": outlook.last_round, "certain": outlook.certain}
    return {
        "title": outlook.scenario.title,
        "clients": outlook.clients,
        "model": outlook.model,
        "parameters": outlook.parameters,
        "privacy": {"delta": plan.delta, **promise(plan)},
        "about": list(outlook.about),
        "spender": _whose_data(outlook.spender),
        "followed": [_whose_data(each) for each in outlook.followed],
        "rounds": [point._asdict() for point in outlook.points],
        "stop": rule if stop is not None else None,
        "noise_over_clip": {**outlook.noise._asdict(), "too_loud": outlook.noise.ratio > LOUD},
        "changes": [change._asdict() for change in outlook.changes],
        "changes_accountant": outlook.changes_by,
        "target": outlook.target._asdict() if outlook.target is not None else None,
        "notes": _notes(outlook),
    }


def _whose_data(followed: Followed) -> dict[str, Any]:
    return {**followed._asdict(), "charge": followed.charge._asdict()}


def _heading(outlook: Outlook) -> list[str]:
    plan, facts = outlook.plan, f"{outlook.clients} clients, {outlook.model}, {outlook.parameters:,} parameters"
    end = f"epsilon at the end: at most {_epsilon(plan.epsilon)} at delta {plan.delta:g}"
    return [*wrapped(f"{outlook.scenario.title}: {facts}"), *wrapped(f"{end}, for {_whose(outlook, outlook.spender)}")]


def _whose(outlook: Outlook, followed: Followed) -> str:
    if followed.client is None:
        return "every client"
    mechanism = outlook.plan.mechanism
    unit = "train rows" if isinstance(mechanism, ExampleMechanism) and mechanism.unit == "row" else "units"
    return f"client {followed.client} with {followed.units:,} {unit}"


def _epsilon_lines(outlook: Outlook) -> list[str]:
    several = len(outlook.followed) > 1
    drawn = "" if outlook.certain else ", of a client that is drawn as early and as often as may be"
    lines = wrapped(f"epsilon after a round{drawn}")
    for each in outlook.followed if several else ():
        lines += wrapped(f"{each.role}: {_whose(outlook, each)}", 2)
    names = [f"client {each.client}" for each in outlook.followed] if several else []
    lines.append(
        f"{'round':>7}{'charged':>9}" + "".join(f"{name:>15}" for name in ("largest" if several else "epsilon", *names))
    )
    for point in _shown_points(outlook):
        cells = (point.largest, *point.followed) if several else (point.largest,)
        lines.append(f"{point.round:>7}{point.times:>9}" + "".join(f"{_epsilon(cell):>15}" for cell in cells))
    return [*lines, *_stop_lines(outlook)]


def _shown_points(outlook: Outlook) -> list[Point]:
    """Few of the points: spread over the run, and the last round that a stop rule allows."""
    rounds = {*_spread(outlook.plan.rounds, SHOWN_ROUNDS), outlook.last_round}
    return [point for point in outlook.points if point.round in rounds or len(outlook.points) <= SHOWN_ROUNDS]


def _stop_lines(outlook: Outlook) -> list[str]:
    """What ends the run before its last round."""
    limit, last, plan = outlook.scenario.stop.epsilon, outlook.last_round, outlook.plan
    if outlook.certain and plan.most < min(plan.rounds, plan.rounds if last is None else last):
        return wrapped(f"max_participations = {plan.most} ends the run after round {plan.most} of {plan.rounds}")
    if limit is None or last is None:
        return []
    if last == plan.rounds:
        return wrapped(f"stop.epsilon = {limit:g} does not end the run before its last round")
    when = "" if outlook.certain else " at the earliest, where one client is drawn as early and as often as may be"
    return wrapped(f"stop.epsilon = {limit:g} ends the run after round {last} of {plan.rounds}{when}")


def _noise_lines(outlook: Outlook) -> list[str]:
    noise, size = outlook.noise, f"this has {outlook.parameters:,} parameters"
    upload = f"; {noise.upload:.3g} in one upload" if noise.upload is not None else ""
    mean = f"; {noise.mean:.3g} in the mean over a cohort" if noise.mean is not None else ""
    lines = wrapped(f"norm of the noise over the clip norm: {noise.ratio:.3g} {noise.where}{upload}{mean}")
    if noise.ratio > LOUD:
        batches = "" if noise.mean is None else "a larger train.batch_size, "
        advice = f"take a smaller model ({size}), {batches}larger cohorts, fewer rounds, or a larger epsilon"
        lines += wrapped(f"above {LOUD:g} hardly anything is learned: {advice}", 2)
    return lines


def _change_lines(outlook: Outlook) -> list[str]:
    first, *others = outlook.changes
    asked = getattr(outlook.scenario.privacy, outlook.plan.level).epsilon or first.epsilon
    by = " (by Renyi DP, which is quick and gives more)" if outlook.changes_by != outlook.plan.accountant else ""
    lines = wrapped(f"what changes would do, planned anew{by}")
    lines += [
        " " * 40 + f"{'epsilon at':>13}{'noise for':>15}{'noise':>11}",
        " " * 40
        + f"{f'noise {_noise(outlook.plan.noise_multiplier)}':>13}{f'epsilon {_epsilon(asked)}':>15}{'over clip':>11}",
    ]
    for change in (each for each in outlook.changes if each.refused is None):
        name = ", ".join(f"{_short(key)} = {value:g}" for key, value in change.keys.items()) or "as it is"
        cells = f"{_epsilon(change.epsilon):>13}{_noise(change.noise_multiplier):>15}{change.ratio:>11.3g}"
        lines.append(f"  {shortened(name, 38):<38}{cells}")
    for change in (each for each in others if each.refused is not None):
        lines += wrapped(f"left out: {change.refused}", 2)
    return lines


def _short(key: str) -> str:
    return key.rpartition(".")[2] if key.startswith("privacy.") else key


def _target_lines(outlook: Outlook) -> list[str]:
    if (target := outlook.target) is None:
        return []
    plan, table = outlook.plan, getattr(outlook.scenario.privacy, outlook.plan.level)
    now = (
        f"epsilon = {table.epsilon:g}"
        if table.epsilon is not None
        else f"noise_multiplier = {table.noise_multiplier:g}"
    )
    return [
        *wrapped(f"for epsilon {target.epsilon:g} put one of these into [privacy.{plan.level}], instead of {now}:"),
        f"  epsilon = {target.epsilon!r}",
        f"  noise_multiplier = {target.noise_multiplier!r}",
        *wrapped(
            f"checked forwards: this noise spends at most {rounded_up(target.reached, 4)} at delta {plan.delta:g}"
        ),
    ]


def _notes(outlook: Outlook) -> list[str]:
    notes = list(outlook.plan.warnings)
    if outlook.scenario.privacy.without is not None:
        notes.append(
            "privacy.without trains on the same data and promises nothing: no epsilon holds for who sees that model too"
        )
    return notes


def _epsilon(value: float | None) -> str:
    return "-" if value is None else shown(value)


def _noise(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def picture(outlook: Outlook, path: Path) -> None:
    """Draw epsilon over the rounds.

    Args:
        outlook: of a scenario.
        path: of the file to write; its suffix says the format: .svg, .png or .pdf.

    Raises:
        DataError: another suffix, or the file cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"{path}: pictures are written as {', '.join(_FORMATS)}; change the suffix")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    figure.suptitle(shortened(f"{outlook.scenario.title}: epsilon {_epsilon(outlook.plan.epsilon)} at most", 70))
    _draw(figure.subplots(), outlook)
    try:
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None  # the same scenario gives the same file
        with rc_context({"svg.hashsalt": "fedsim"}):
            figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


_STYLES = (("#0072B2", "s", 8, "--"), ("#E69F00", "^", 5, "-."), ("#009E73", "D", 3, ":"))
"""Colours for every eye (Okabe and Ito), and markers that fit into each other where lines are equal."""


def _draw(axes: Axes, outlook: Outlook) -> None:
    plan, points = outlook.plan, outlook.points
    rounds, several = [point.round for point in points], len(outlook.followed) > 1
    marks = [rounds.index(point.round) for point in _shown_points(outlook)]

    def line(values: Sequence[float], label: str, color: str, marker: str, size: int, style: str) -> None:
        axes.plot(
            rounds,
            values,
            label=label,
            color=color,
            linestyle=style,
            marker=marker,
            markevery=marks,
            markersize=size,
            markerfacecolor="none",
            markeredgewidth=1.5,
        )

    whose = f"largest; at the end client {outlook.spender.client}" if several else "every client"
    line([point.largest for point in points], whose, "0.15", "o", 11, "-")
    for place, (each, style) in enumerate(zip(outlook.followed if several else (), _STYLES, strict=False)):
        line([point.followed[place] for point in points], f"{each.role}: {_whose(outlook, each)}", *style)
    limits = {"stop.epsilon": outlook.scenario.stop.epsilon, "target": outlook.target and outlook.target.epsilon}
    for name, value in limits.items():
        if value is not None:
            axes.axhline(value, color="0.5", linewidth=1, linestyle=(0, (4, 4)))
            axes.annotate(
                f"{name} {value:g}", (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
    axes.set_xlabel("round")
    axes.set_ylabel(f"epsilon at delta {plan.delta:g}, at most")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
