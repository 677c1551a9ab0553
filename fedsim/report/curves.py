"""A run's pictures by round: what it learned and at which cost, epsilon, failures; none where nothing is known."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from fedsim.overview import Values
from fedsim.report import charts
from fedsim.report.charts import BESIDE, Look, Trace, look
from fedsim.report.chronicle import Beside, Chronicle
from fedsim.report.page import Cell, Table
from fedsim.report.picture import Picture

Series = Mapping[int, float]
"""Round -> value."""


def learning(told: Chronicle) -> list[Picture]:
    """The metric that judges the task: validation by round, test at the end, and the runs beside it."""
    metric = told.judged
    if metric is None or metric == "loss" or not (lines := _validation(told, metric)):
        return []
    tests, beside = _tests(told, metric), _others(told, metric)
    traces = _drawn(lines, [look(place) for place in range(len(lines))])
    for place, (name, series) in enumerate(tests.items()):
        style = look(len(lines) + place)
        traces.append(charts.points([*series], [*series.values()], name, style, marker={"size": 13}))
    traces += _drawn(beside, [look(place + 1)._replace(colour=BESIDE.colour) for place in range(len(beside))])
    layout = charts.axes("round", metric, hovermode="x unified", shapes=_best(told))
    caption = (
        f"The {metric} by round; {'less' if told.lower else 'more'} is better."
        + (" Test rows are looked at once, at the end." if tests else "")
        + _chosen(told)
        + (" Grey lines: the runs beside it." if beside else "")
    )
    return [Picture("learning", {"data": traces, "layout": layout}, caption, _table({**lines, **tests, **beside}), 380)]


def loss(told: Chronicle) -> list[Picture]:
    """Loss in training and on validation rows."""
    trained = {row["round"]: row["loss"] for row in told.rounds if row["loss"] is not None}
    lines: dict[str, Series] = {"train rows, in training": trained} if trained else {}
    lines |= _validation(told, "loss")
    if not lines:
        return []
    traces = _drawn(lines, [look(place) for place in range(len(lines))])
    layout = charts.axes("round", "loss", hovermode="x unified", shapes=_best(told))
    caption = "Loss by round; less is better. In training it is the mean over the cohort's train rows."
    return [Picture("loss", {"data": traces, "layout": layout}, caption, _table(lines))]


def _validation(told: Chronicle, metric: str) -> dict[str, Series]:
    names = {
        f"global/central-validation/rows/{metric}": "central validation rows",
        f"global/client-validation/rows/{metric}": "clients' validation rows",
        f"personal/client-validation/clients/{metric}": "clients' own models, mean over clients",
    }
    return {words: told.metrics[name] for name, words in names.items() if name in told.metrics}


def _tests(told: Chronicle, metric: str) -> dict[str, Series]:
    """Test figures of the best round's model and of the last one's."""
    last, best = told.summary.get("rounds"), told.summary.get("best_round")
    names = [f"global/{place}-test/rows/{metric}" for place in ("central", "client")]
    found: dict[str, Series] = {}
    named = [("metrics", best, "test, best round"), ("metrics_last_round", last, "test, last round")]
    for key, round, words in named if best != last else [("metrics", best, "test, best and last round")]:
        measured = told.summary.get(key) or {}
        value = next((measured[name] for name in names if measured.get(name) is not None), None)
        if round and value is not None:
            found[words] = {int(round): float(value)}
    return found


def _others(told: Chronicle, metric: str) -> dict[str, Series]:
    """What the runs beside it measured in the place of the run's metric."""
    found = {}
    for run in told.beside:
        if (name := _like(run, told.validated, metric)) is not None:
            found[run.title] = run.metrics[name]
    return found


def _like(run: Beside, name: str | None, metric: str) -> str | None:
    own = f"personal/client-validation/clients/{metric}"
    return next((each for each in (name, own) if each is not None and each in run.metrics), None)


def _chosen(told: Chronicle) -> str:
    if not (best := told.overview.best_round):
        return ""
    how = f"the best by {told.overview.chosen_by}" if told.overview.chosen_by else "the last: nothing chose another"
    return f" The dotted line stands at round {best}, {how}."


def _best(told: Chronicle) -> list[Values]:
    """A line at the best round."""
    if not (best := told.overview.best_round):
        return []
    stroke = {"color": BESIDE.colour, "dash": "dot", "width": 1}
    return [{"type": "line", "x0": best, "x1": best, "yref": "paper", "y0": 0, "y1": 1, "line": stroke}]


def cost(told: Chronicle) -> list[Picture]:
    """Seconds of every round, and bytes so far."""
    return [*_seconds(told.rounds), *_bytes(told.rounds)] if told.rounds else []


def _seconds(rounds: Sequence[Values]) -> list[Picture]:
    numbers, seconds = [row["round"] for row in rounds], [row["seconds"] for row in rounds]
    busy = [row["busy"] for row in rounds]
    traces = [charts.line(numbers, seconds, "the round, as it passed", look(0))]
    if any(value is not None for value in busy):
        traces.append(charts.line(numbers, busy, "its clients' work, added up", look(1)))
    layout = charts.axes("round", "seconds", hovermode="x unified", yaxis={"rangemode": "tozero"})
    caption = "Seconds by round: from the cohort's sampling to the end of evaluation, and of all clients' training."
    rows = list(zip(numbers, seconds, busy, strict=True))
    return [
        Picture(
            "seconds",
            {"data": traces, "layout": layout},
            caption,
            Table(["round", "seconds", "clients' seconds"], rows),
        )
    ]


def _bytes(rounds: Sequence[Values]) -> list[Picture]:
    moved = [(row["round"], row["down"], row["up"]) for row in rounds if row["down"] is not None]
    if not moved:
        return []
    numbers = [number for number, _, _ in moved]
    down, up = ([*accumulate(row[place] for row in moved)] for place in (1, 2))
    traces = [charts.line(numbers, down, "to clients", look(0)), charts.line(numbers, up, "from clients", look(1))]
    layout = charts.axes("round", "bytes so far", hovermode="x unified", yaxis={"rangemode": "tozero"})
    caption = "Bytes that a real network would have carried for training, all rounds so far together."
    rows = list(zip(numbers, down, up, strict=True))
    return [
        Picture(
            "bytes", {"data": traces, "layout": layout}, caption, Table(["round", "to clients", "from clients"], rows)
        )
    ]


def epsilon(told: Chronicle) -> list[Picture]:
    """Epsilon spent so far by the client that spent most."""
    spent = {row["round"]: row["epsilon"] for row in told.rounds if row["epsilon"] is not None}
    if not spent:
        return []
    traces = [charts.line([*spent], [*spent.values()], "spent so far", look(0))]
    planned = (told.summary.get("privacy") or {}).get("planned")
    if planned is not None:
        traces.append(charts.level([*spent], planned, "planned for the whole run, at most"))
    layout = charts.axes("round", "epsilon", hovermode="x unified", yaxis={"rangemode": "tozero"})
    caption = "Epsilon by round, of the client that spent most; what it covers is said below."
    return [Picture("epsilon", {"data": traces, "layout": layout}, caption, _table({"epsilon": spent}))]


def failures(told: Chronicle) -> list[Picture]:
    """Clients that failed, by round; nothing where none did."""
    failed = {row["round"]: row["failed"] for row in told.rounds}
    if not any(failed.values()):
        return []
    trace = charts.bars([*failed], [*failed.values()], "clients that failed", look(1))
    layout = charts.axes("round", "clients", yaxis={"rangemode": "tozero"})
    caption = "Clients that failed or dropped out, by round; the round went on without them."
    rows = [[row["round"], row["failed"], row["cohort"]] for row in told.rounds if row["failed"]]
    return [
        Picture(
            "failures", {"data": [trace], "layout": layout}, caption, Table(["round", "failed", "of cohort"], rows), 240
        )
    ]


def _drawn(lines: Mapping[str, Series], looks: Sequence[Look]) -> list[Trace]:
    pairs = zip(lines.items(), looks, strict=True)
    return [charts.line([*series], [*series.values()], name, style) for (name, series), style in pairs]


def _table(lines: Mapping[str, Series]) -> Table:
    rounds = sorted({round for series in lines.values() for round in series})
    rows: list[list[Cell]] = [[round, *(series.get(round) for series in lines.values())] for round in rounds]
    return Table(["round", *lines], rows)
