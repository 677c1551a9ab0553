"""What a comparison follows over time: the primary metric by round and by bytes, the best score of tuning by trial."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedsim.comparison import trials
from fedsim.comparison.findings import Findings, RunFacts
from fedsim.comparison.trials import Tuned
from fedsim.report import charts
from fedsim.report.candidates import alone, better, file_name, names, short, style, within
from fedsim.report.charts import Trace
from fedsim.report.page import Cell, Table, thinned
from fedsim.report.picture import Picture

_MOST_ROUNDS = 300


def learning(found: Findings, condition: str) -> Iterator[Picture]:
    """The primary metric on validation rows by round."""
    yield from _curves(found, condition, "learning", "round")


def learning_by_bytes(found: Findings, condition: str) -> Iterator[Picture]:
    """The same by what was sent."""
    yield from _curves(found, condition, "learning-by-megabytes", "MB sent and received by clients")


def tuning(found: Findings, condition: str) -> Iterator[Picture]:
    """The best validation score so far, by trial."""
    shown = [each for each in tuned(found, condition) if len(each.trials) > 1]
    if not shown:
        return
    numbers = [*range(max(len(each.trials) for each in shown))]
    traces = [
        charts.line(numbers[: len(each.trials)], each.best_so_far, each.candidate, style(found, each.candidate))
        for each in shown
    ]
    metric = shown[0].metric
    caption = (
        f"Tuning{within(condition)}: the best {metric} up to each trial, mean over the seeds of tuning, which the "
        f"comparison does not use; {'less' if shown[0].lower else 'more'} is better. Trial 0 is untuned."
    )
    rows: list[list[Cell]] = [
        [number, *(each.best_so_far[number] if number < len(each.trials) else None for each in shown)]
        for number in numbers
    ]
    table = Table(["trial", *(each.candidate for each in shown)], rows)
    yield Picture(
        file_name("tuning", condition), {"data": traces, "layout": charts.axes("trial", short(metric))}, caption, table
    )


def tuned(found: Findings, condition: str) -> list[Tuned]:
    """The trials of each candidate of a condition."""
    listed = found.tuning["candidates"] if found.tuning is not None else []
    return [each for each in map(trials.tuned, listed) if each.condition == condition]


def followed(found: Findings) -> str | None:
    """The metric of the curves: the primary one on validation rows, or what is there in its place."""
    named = found.metric.replace("-test/", "-validation/")
    wanted = [
        named,
        named.replace("central-", "client-"),
        *(run.scenario.get("evaluate", {}).get("metric") for run in found.runs),
    ]
    measured = {name for run in found.runs for name in run.metrics}
    return next((name for name in wanted if name in measured), None)


def _curves(found: Findings, condition: str, kind: str, across: str) -> Iterator[Picture]:
    """Means over seeds by round or by megabytes, with bands from the least to the most."""
    metric = followed(found)
    if metric is None:
        return
    own = f"personal/client-validation/clients/{short(metric)}"
    traces: list[Trace] = []
    elsewhere: list[str] = []
    columns: dict[str, dict[int, tuple[float, float, float, float]]] = {}
    for name in names(found, condition):
        runs = found.of(condition, name)
        wanted = (own, metric) if alone(found, (condition, name)) else (metric, own)
        series = next((each for each in wanted if any(each in run.metrics for run in runs)), None)
        curve = _curve(runs, series, by_bytes=kind != "learning") if series is not None else {}
        if not curve or max(x for x, *_ in curve.values()) == 0:  # who sends nothing has no place along bytes
            continue
        columns[name] = curve
        elsewhere += [f" {name}: {series}."] if series != metric else []
        x, mean, low, high = (
            np.array(column) for column in zip(*thinned([*curve.values()], _MOST_ROUNDS), strict=True)
        )
        x = x if kind != "learning" else x.astype(int)  # rounds are whole, and marked so
        look_ = style(found, name)
        if len(runs) > 1 and name in found.candidates:
            traces += [{**edge, "showlegend": False} for edge in charts.band(x, low, high, name, look_)]
        traces.append(charts.line(x, mean, name, look_, legendgroup=name))
    if not traces:
        return
    caption = (
        f"{metric} by {across.partition(' ')[0]}, mean over seeds{within(condition)}; {better(found)}. Bands reach "
        f"from the lowest seed to the highest; grey are references.{''.join(elsewhere)}"
    )
    yield Picture(
        file_name(kind, condition),
        {"data": traces, "layout": charts.axes(across, short(metric))},
        caption,
        _curve_table(columns, by_bytes=kind != "learning"),
        400,
    )


def _curve(runs: Sequence[RunFacts], metric: str, *, by_bytes: bool) -> dict[int, tuple[float, float, float, float]]:
    """Round -> x, mean, least and most over the seeds that measured it."""
    at: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        costs = run.bytes / 1e6 if by_bytes else run.rounds
        for number, x, value in zip(run.rounds, costs, run.metrics.get(metric, ()), strict=False):
            if math.isfinite(value) and math.isfinite(x):
                at.setdefault(int(number), []).append((float(x), float(value)))
    found = {number: np.array(pairs).T for number, pairs in sorted(at.items())}
    return {
        number: (float(x.mean()), float(values.mean()), float(values.min()), float(values.max()))
        for number, (x, values) in found.items()
    }


def _curve_table(columns: Mapping[str, Mapping[int, Sequence[float]]], *, by_bytes: bool) -> Table:
    heads = [f"{name}{part}" for name in columns for part in (*([", MB"] if by_bytes else []), "", ", least", ", most")]
    first = 0 if by_bytes else 1
    width = 4 - first
    rounds = sorted({number for curve in columns.values() for number in curve})
    rows: list[list[Cell]] = []
    for number in rounds:
        row: list[Cell] = [number]
        for curve in columns.values():
            row += curve[number][first:] if number in curve else [None] * width
        rows.append(row)
    return Table(["round", *heads], rows)
