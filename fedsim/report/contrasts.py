"""How candidates differ, in pictures: one of every kind for each condition that has something to see."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedsim.comparison.findings import Findings
from fedsim.report import charts
from fedsim.report.candidates import better, file_name, names, score, short, style, within
from fedsim.report.charts import BESIDE, Look, Trace, look
from fedsim.report.courses import learning, learning_by_bytes, tuning
from fedsim.report.page import Cell, Table
from fedsim.report.picture import Picture

_ACROSS = {"type": "line", "line": {"color": BESIDE.colour, "dash": "solid", "width": 1}}
_ZERO_X = {**_ACROSS, "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
_ZERO_Y = {**_ACROSS, "y0": 0, "y1": 0, "xref": "paper", "x0": 0, "x1": 1}


def pictures(found: Findings) -> list[Picture]:
    """All of them, in the order of the page."""
    kinds = (
        learning,
        differences,
        against_bytes,
        learning_by_bytes,
        against_epsilon,
        worst,
        over_clients,
        gains,
        left_out,
        tuning,
    )
    return [picture for kind in kinds for condition in found.conditions for picture in kind(found, condition)]


def differences(found: Findings, condition: str) -> Iterator[Picture]:
    """Every candidate's difference from the reference, its interval, that over test rows, and single seeds."""
    shown = {name: found.family[condition, name] for name in found.candidates if (condition, name) in found.family}
    if not any(math.isfinite(pair.mean) for pair in shown.values()):
        return
    places = {name: float(place) for place, name in enumerate(shown)}
    means, lows, highs = (
        np.array([getattr(pair, part) for pair in shown.values()]) for part in ("mean", "low", "high")
    )
    traces = [charts.points(means, [*places.values()], "over seeds", look(0), error_x=_errors(means, lows, highs))]
    rows = {name: found.resampled[condition, name] for name in shown if (condition, name) in found.resampled}
    if rows:
        ends = np.array([[each.mean, each.low, each.high] for each in rows.values()]).T
        beside = [places[name] + 0.22 for name in rows]
        traces.append(charts.points(ends[0], beside, "over test rows", look(1), error_x=_errors(*ends)))
    single = [(value, places[name] - 0.22) for name in shown for value in _single(found, condition, name).values()]
    if single:
        values, heights = zip(*single, strict=True)
        traces.append(charts.points(values, heights, "each seed", BESIDE, marker={"size": 6}))
    ticks = [f"{name}: {pair.verdict}" for name, pair in shown.items()]
    layout = charts.axes(f"{short(found.metric)}, less that of {found.reference}", "")
    layout["yaxis"] = {
        "tickvals": [*places.values()],
        "ticktext": ticks,
        "range": [len(places) - 0.5, -0.5],
        "zeroline": False,
    }
    layout["shapes"] = [_ZERO_X]
    caption = (
        f"Paired differences from {found.reference} in {found.metric} after the last round{within(condition)}; "
        f"{better(found)}. Intervals over seeds hold together at 95 % for this test set"
        + ("; those over test rows are of these models on other rows." if rows else ".")
    )
    table = Table(
        ["candidate", "difference", "low", "high", "Holm's p", "verdict", "would have been found"],
        [
            [name, pair.mean, pair.low, pair.high, pair.holm, pair.verdict, pair.smallest]
            for name, pair in shown.items()
        ],
    )
    yield Picture(
        file_name("differences", condition), {"data": traces, "layout": layout}, caption, table, 130 + 56 * len(places)
    )


def against_bytes(found: Findings, condition: str) -> Iterator[Picture]:
    """Score and cost of candidates, and which of them no other beats in both."""
    costs = {name: found.standings[condition, name].bytes / 1e6 for name in _judged(found, condition)}
    yield from _front(found, condition, costs, "megabytes", "MB sent and received by clients")


def against_epsilon(found: Findings, condition: str) -> Iterator[Picture]:
    """Score and privacy of candidates, and which of them no other beats in both."""
    epsilons = {name: found.standings[condition, name].epsilon for name in _judged(found, condition)}
    costs = {name: epsilon for name, epsilon in epsilons.items() if epsilon is not None and math.isfinite(epsilon)}
    if costs:
        yield from _front(found, condition, costs, "epsilon", "epsilon (largest client)")


def worst(found: Findings, condition: str) -> Iterator[Picture]:
    """The score beside that of the worst 10 % of clients."""
    rows = [
        (name, mean, found.standings[condition, name].worst)
        for name in names(found, condition)
        if not math.isnan(mean := score(found, (condition, name))[1])
    ]
    if all(tenth is None for _, _, tenth in rows):
        return
    called = [name for name, _, _ in rows]
    alone_ = [f" {name}: mean over clients." for name in called if score(found, (condition, name))[0] != found.metric]
    places = [float(place) for place in range(len(rows))]
    tenths = [math.nan if tenth is None else tenth for _, _, tenth in rows]
    layout = charts.axes(short(found.metric), "")
    layout["yaxis"] = {"tickvals": places, "ticktext": called, "range": [len(rows) - 0.5, -0.5], "zeroline": False}
    traces = [
        charts.points([mean for _, mean, _ in rows], places, "test rows together", look(0)),
        charts.points(tenths, places, "worst 10 % of clients", look(1)),
    ]
    caption = (
        f"The {short(found.metric)} of the test rows and of the 10 % of clients for whom it is worst on their own test "
        f"rows, after the last round, mean over seeds{within(condition)}; {better(found)}.{''.join(alone_)}"
    )
    table = Table(["candidate", "test rows together", "worst 10 % of clients"], [[*row] for row in rows])
    yield Picture(
        file_name("worst-clients", condition), {"data": traces, "layout": layout}, caption, table, 130 + 40 * len(rows)
    )


def over_clients(found: Findings, condition: str) -> Iterator[Picture]:
    """How clients' own figures are spread, all seeds together."""
    traces: list[Trace] = []
    rows: list[list[Cell]] = []
    for name in names(found, condition):
        values = [
            value for run in found.of(condition, name) for value in run.own_figures.values() if math.isfinite(value)
        ]
        if len(values) < 5:
            continue
        cuts = [float(cut) for cut in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))]
        columns = zip(("lowerfence", "q1", "median", "q3", "upperfence"), ([cut] for cut in cuts), strict=True)
        colour = style(found, name).colour
        box = {"type": "box", "x": [name], "name": name, "showlegend": False, **dict(columns)}
        traces.append({**box, "marker": {"color": colour}, "line": {"color": colour}})
        rows.append([name, *cuts, len(values)])
    if not traces:
        return
    metric = _own_metric(found, condition)
    caption = (
        f"How {metric} on their own test rows differs between clients, after the last round, all seeds together"
        f"{within(condition)}: the middle half of clients in the box, 90 % of them within the lines."
    )
    table = Table(["candidate", "5 %", "25 %", "median", "75 %", "95 %", "clients"], rows)
    yield Picture(file_name("clients", condition), {"data": traces, "layout": charts.axes("", metric)}, caption, table)


def gains(found: Findings, condition: str) -> Iterator[Picture]:
    """What clients gain over training alone, from the one that gains least."""
    shown = {name: found.gains[condition, name] for name in names(found, condition) if (condition, name) in found.gains}
    if not shown:
        return
    shares = np.linspace(0, 1, 51)
    lines = {
        name: np.mean([np.quantile(list(each.values()), shares) for each in gain.each.values()], axis=0)
        for name, gain in shown.items()
    }
    metric = next(iter(shown.values())).metric
    layout = charts.axes("clients, from the one that gains least (%)", f"gain in {metric}")
    layout["shapes"] = [_ZERO_Y]
    traces = [_plain_line(100 * shares, values, name, style(found, name)) for name, values in lines.items()]
    caption = (
        f"What clients gain over training alone, in {metric} on their own test rows after the last round, mean over "
        f"seeds{within(condition)}. Below zero a client does better by itself."
    )
    rows = [
        [100 * float(share), *(float(line[place]) for line in lines.values())] for place, share in enumerate(shares)
    ]
    yield Picture(
        file_name("gains", condition), {"data": traces, "layout": layout}, caption, Table(["clients, %", *lines], rows)
    )


def left_out(found: Findings, condition: str) -> Iterator[Picture]:
    """What the reference loses without each client."""
    lost = {client: each for (where, client), each in found.left_out.items() if where == condition and each.n}
    if not lost:
        return
    order = sorted(lost, key=lambda client: -lost[client].mean)
    ends = np.array([[lost[client].mean, lost[client].low, lost[client].high] for client in order]).T
    places = [float(place) for place in range(len(order))]
    layout = charts.axes(f"loss in {short(found.metric)} without the client", "client")
    layout["yaxis"] |= {
        "tickvals": places,
        "ticktext": [*map(str, order)],
        "range": [len(order) - 0.5, -0.5],
        "zeroline": False,
    }
    layout["shapes"] = [_ZERO_X]
    traces = [charts.points(ends[0], places, "over seeds", look(0), error_x=_errors(*ends))]
    caption = (
        f"What {found.reference} loses in {found.metric} when a client has never come{within(condition)}; over seeds, "
        "each at 95 %."
    )
    rows = [[client, *(float(end) for end in ends[:, place])] for place, client in enumerate(order)]
    table = Table(["client", "loss", "low", "high"], rows)
    yield Picture(
        file_name("left-out", condition), {"data": traces, "layout": layout}, caption, table, 130 + 26 * len(order)
    )


def _front(found: Findings, condition: str, costs: Mapping[str, float], kind: str, across: str) -> Iterator[Picture]:
    """Scores by what they cost, and the front: candidates that no other beats in score without costing more."""
    points = {name: (costs[name], score(found, (condition, name))[1]) for name in costs if math.isfinite(costs[name])}
    points = {name: point for name, point in points.items() if math.isfinite(point[1])}
    if len({f"{cost:.6g}" for cost, _ in points.values()}) < 2:
        return  # nothing to weigh: all cost the same
    sign = -1.0 if found.lower else 1.0
    best = [name for name, mine in points.items() if not any(_beats(other, mine, sign) for other in points.values())]
    best.sort(key=lambda name: points[name])
    stroke = {"color": BESIDE.colour, "dash": "solid", "width": 1, "shape": "hv"}
    edge = {"type": "scatter", "mode": "lines", "line": stroke, "name": "front"}
    traces: list[Trace] = [{**edge, "x": [points[name][0] for name in best], "y": [points[name][1] for name in best]}]
    for name, (cost, value) in points.items():
        spread = found.standings[condition, name].sd
        around = {"error_y": {"type": "data", "array": [spread], "width": 4}} if math.isfinite(spread) else {}
        look_ = style(found, name)
        symbol = look_.symbol if name in best else f"{look_.symbol}-open"
        traces.append(charts.points([cost], [value], name, look_._replace(symbol=symbol), **around))
    caption = (
        f"{found.metric} after the last round against {across}{within(condition)}, mean and standard deviation over "
        f"seeds; {better(found)}. Filled markers are on the front: no other candidate scores as well for less."
    )
    rows = [[name, cost, value, "yes" if name in best else "no"] for name, (cost, value) in points.items()]
    table = Table(["candidate", across, found.metric, "on the front"], rows)
    yield Picture(
        file_name(kind, condition), {"data": traces, "layout": charts.axes(across, short(found.metric))}, caption, table
    )


def _beats(one: tuple[float, float], other: tuple[float, float], sign: float) -> bool:
    """Whether one costs no more and scores no worse than the other, and is not the same."""
    return one != other and one[0] <= other[0] and sign * one[1] >= sign * other[1]


def _judged(found: Findings, condition: str) -> list[str]:
    """Candidates with a score."""
    return [
        name
        for name in found.candidates
        if (condition, name) in found.standings and math.isfinite(found.standings[condition, name].mean)
    ]


def _single(found: Findings, condition: str, name: str) -> dict[int, float]:
    """Seed -> difference from the reference, of the pairs where both have a score."""
    mine, theirs = found.standings[condition, name].scores, found.standings[condition, found.reference].scores
    each = {seed: mine[seed] - theirs[seed] for seed in found.pairs[condition, name]}
    return {seed: value for seed, value in each.items() if math.isfinite(value)}


def _own_metric(found: Findings, condition: str) -> str:
    """Of clients' own figures: the task's first metric."""
    return next(
        (short(run.headline) for run in found.runs if run.condition == condition and run.headline), short(found.metric)
    )


def _errors(means: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> dict[str, Any]:
    """Bars of a point from low to high."""
    return {"type": "data", "symmetric": False, "array": highs - means, "arrayminus": means - lows, "width": 5}


def _plain_line(x: np.ndarray, y: np.ndarray, name: str, look_: Look) -> Trace:
    return {**charts.line(x, y, name, look_), "mode": "lines"}
