"""What a scenario will spend, as it is told: in lines and as a picture for people, as values for programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.data.picture import check_suffix, save
from fedsim.outlook import Followed, Outlook, Point, spread
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.noise import LOUD
from fedsim.privacy.plan import ExampleMechanism
from fedsim.privacy.statement import promise, shown
from fedsim.progress import shortened, wrapped

SHOWN_ROUNDS = 15


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
    rounds = {*spread(outlook.plan.rounds, SHOWN_ROUNDS), outlook.last_round}
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
    check_suffix(path)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    figure.suptitle(shortened(f"{outlook.scenario.title}: epsilon {_epsilon(outlook.plan.epsilon)} at most", 70))
    _draw(figure.subplots(), outlook)
    save(figure, path)


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
