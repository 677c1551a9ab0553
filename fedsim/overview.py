"""A run in a few figures, from its folder, and the list of the runs below one: `fedsim list runs`."""

import os
import textwrap
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fedsim.errors import FedsimError, RunFolderError
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import WIDTH, shortened
from fedsim.reading import Records
from fedsim.records import being_written

Status = Literal["running", "finished", "stopped", "interrupted"]
Values = dict[str, Any]

HEADLINES = {
    "bits-per-character": "bits/char",
    "auc": "AUC",
    "micro-f1": "micro F1",
    "rmse": "RMSE",
    "return": "return",
    "accuracy": "accuracy",
    "loss": "loss",
}
"""Metrics by which tasks are judged, the first that there is, with the names of their columns."""


@dataclass(frozen=True)
class Overview:
    """A run in a few figures.

    Attributes:
        folder, title: of the run.
        status: "stopped" by its failure rules; "interrupted" when it has not finished and nobody goes on with it.
        reason: why it ended before its last round, if it did.
        started: Unix time.
        rounds, planned: committed, and asked for (None where the scenario cannot be read).
        seconds: of all committed rounds.
        chosen_by, best_round, best_value: the validation metric that chooses, and the best so far.
        metric, value: the test metric that judges the run, of the best model, or of clients' own after the last round
            where there is no other; None before the run has finished.
        personal: the same figure of clients' own models after the last round, the mean over clients; None where they
            have none.
        epsilon, delta: spent so far by the client that spent most.
        fingerprint: of the model after the last round.
        tags: with their notes.
    """

    folder: str
    title: str
    status: Status
    reason: str | None
    started: float
    rounds: int
    planned: int | None
    seconds: float
    chosen_by: str | None
    best_round: int | None
    best_value: float | None
    metric: str | None
    value: float | None
    personal: float | None
    epsilon: float | None
    delta: float | None
    fingerprint: str | None
    tags: list[Values]


def runs(folder: Path) -> tuple[list[Overview], dict[Path, str]]:
    """The runs below a folder, newest first, and why others that look like runs cannot be read.

    Raises:
        RunFolderError: there is no such folder.
    """
    if not folder.is_dir():
        raise RunFolderError(f"there is no folder {folder}; name the one that holds runs: fedsim list runs FOLDER")
    found, unreadable = [], {}
    for path in _run_folders(folder):
        try:
            with closing(Records(path / "run.db")) as records:
                found.append(overview(path, records, plain_scenario(path)))
        except FedsimError as error:
            unreadable[path] = str(error)
    return sorted(found, key=lambda run: run.started, reverse=True), unreadable


def beside(folder: Path) -> list[Overview]:
    """The runs made beside a run, which lie in its folder, in the order in which they were begun."""
    within = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [run for path in within for run in runs(path)[0]]
    return sorted(found, key=lambda run: run.started)


def run_lines(found: Sequence[Overview], unreadable: Mapping[Path, str]) -> list[str]:
    """For people: a run's folder and figures, and under it the title; at most 80 columns but for a long folder."""
    lines = []
    for run in found:
        folder = [run.folder] if len(run.folder) <= _FOLDER else [run.folder, ""]
        facts = f"{run.status:<11}  {rounds_of(run):>9}  {moment(run.started)}"
        lines += [*folder[:-1], f"{folder[-1]:<{_FOLDER}}  {facts}", "    " + shortened(_title(run), WIDTH - 4)]
    for path, reason in unreadable.items():
        lines += textwrap.wrap(f"{path} is left out: {reason}", WIDTH, subsequent_indent="    ")
    return lines or ["no runs"]


def overview(folder: Path, records: Records, scenario: Values) -> Overview:
    """A run in a few figures; `scenario` is from `plain_scenario`."""
    writing = being_written(folder)  # asked first: a run that ends meanwhile has its summary by then
    summary, totals = records.summary(), rows_of(records, _TOTALS)[0]
    last = next(iter(last_rounds(records, 1)), {})
    privacy = summary.get("privacy", {})
    chosen_by, best_round, best_value = _best(records, scenario, summary, totals["best"])
    metric, value = _judged(summary)
    _, own = personal("test", summary.get("metrics_last_round", {}), named_headline(summary, scenario))
    return Overview(
        folder=str(folder),
        title=str(summary.get("title") or scenario.get("title") or folder.name),
        status=_status(summary, writing),
        reason=(summary.get("stop") or {}).get("reason"),
        started=totals["started"] or (folder / "run.db").stat().st_mtime,
        rounds=totals["rounds"],
        planned=scenario.get("rounds"),
        seconds=totals["seconds"],
        chosen_by=chosen_by,
        best_round=best_round,
        best_value=best_value,
        metric=metric,
        value=value,
        personal=own,
        epsilon=privacy.get("largest", last.get("epsilon")),
        delta=privacy.get("delta", _delta(scenario)),
        fingerprint=last.get("fingerprint"),
        tags=[tag._asdict() for tag in records.tags()],
    )


def _status(summary: Values, writing: bool) -> Status:
    if summary:
        return "stopped" if summary.get("status") == "stopped" else "finished"
    return "running" if writing else "interrupted"


def _best(
    records: Records, scenario: Values, summary: Values, best: int | None
) -> tuple[str | None, int | None, float | None]:
    """The metric that chooses, the best round and its value; while the run goes on by the rules of `stopping.py`."""
    if summary:
        return summary.get("chosen_by"), summary.get("best_round"), summary.get("best_validation")
    metrics = metrics_of(records, best) if best is not None else {}
    named = (scenario.get("evaluate", {}).get("metric"), scenario.get("stop", {}).get("metric"))
    first = named_headline(summary, scenario)
    chosen_by = next((name for name in named if name), None) or headline("validation", metrics, first)
    return chosen_by, best, metrics.get(chosen_by) if chosen_by else None


def headline(part: str, metrics: Collection[str], first: str | None = None) -> str | None:
    """The full name of the metric that judges a run on validation or test rows; None where none was measured.

    Args:
        part: "validation" or "test".
        metrics: full names of those that were measured.
        first: a metric before those that tasks are usually judged by, such as a user's own.
    """
    names = [f"global/{place}-{part}/rows/{name}" for place in ("central", "client") for name in judges(first)]
    return next((name for name in names if name in metrics), None)


def judges(first: str | None) -> list[str]:
    """Names of metrics, the one before others that judges a run; `first` as of `headline`."""
    return list(HEADLINES) if first is None else [first, *HEADLINES]


def named_headline(summary: Values, scenario: Values) -> str | None:
    """The metric that the summary says a run is judged by, or before there is one the scenario."""
    judged = (summary.get("headline") or {}).get("metric")
    named: str | None = judged.split("/", 3)[3] if judged else scenario.get("task", {}).get("headline")
    return named


def _judged(summary: Values) -> tuple[str | None, float | None]:
    """The test metric that judges a run, and its value; summaries of earlier versions do not name it."""
    named = summary.get("headline")
    if named is not None:
        return (named["metric"], named["value"]) if named["value"] is not None else (None, None)
    metric = headline("test", summary.get("metrics", {}))
    return metric, summary["metrics"][metric] if metric else None


def personal(
    part: str, metrics: Mapping[str, float | None], first: str | None = None
) -> tuple[str | None, float | None]:
    """The full name and value of what judges clients' own models; None where none does. Arguments as of `headline`."""
    names = [f"personal/client-{part}/clients/{name}" for name in judges(first)]
    return next(((name, metrics[name]) for name in names if name in metrics), (None, None))


def plain_scenario(folder: Path) -> Values:
    """The resolved scenario as plain tables; empty where it has gone."""
    with suppress(OSError, ValueError):
        return tomllib.loads((folder / "scenario.toml").read_text(encoding="utf-8"))
    return {}


def last_rounds(records: Records, count: int) -> list[Values]:
    """The last rounds, newest first."""
    return rows_of(records, _LAST, count)


def metrics_of(records: Records, round: int) -> dict[str, float | None]:
    """A round's metrics by full name; None where one is not finite."""
    return {row["name"]: row["value"] for row in records.select("SELECT * FROM metrics WHERE round = ?", round)}


def rows_of(records: Records, query: str, *values: Any) -> list[Values]:
    """The rows of a query by the names that it gives its columns."""
    return [dict(row) for row in records.select(query, *values)]


def rounds_of(run: Overview) -> str:
    """How many rounds are done, of how many."""
    return f"{run.rounds}/{run.planned}" if run.planned is not None else str(run.rounds)


def short(name: str) -> str:
    """The column of a metric."""
    model, _, weighting, metric = name.split("/", 3)
    if weighting == "worst-10%":
        return "worst 10%"
    return "personal" if model == "personal" and metric != "loss" else HEADLINES.get(metric, metric)


def figure(value: float | None) -> str:
    """A number in at most 10 columns."""
    if value is None:
        return "-"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def moment(seconds: float) -> str:
    """A Unix time as a local date."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


_FOLDER = 38  # columns; what `fedsim run` makes without --out has 34 with a short scenario's name
_TOTALS = """
SELECT count(*) AS rounds, coalesce(sum(seconds), 0.0) AS seconds, min(committed - seconds) AS started,
    max(CASE WHEN best THEN number END) AS best
FROM rounds
"""
_LAST = "SELECT number AS round, failed, epsilon, seconds, fingerprint FROM rounds ORDER BY number DESC LIMIT ?"


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if "run.db" in files:
            yield Path(place)
            folders.clear()  # runs beside it, in its folder, belong to this one
        folders[:] = [name for name in folders if not name.startswith(".")]


def _delta(scenario: Values) -> float | None:
    levels = (level for level in scenario.get("privacy", {}).values() if isinstance(level, dict))
    return next((level["delta"] for level in levels if "delta" in level), None)


def _title(run: Overview) -> str:
    """A run's line under its folder."""
    figures = [shortened(run.title, 40)]
    name, value = (run.metric, run.value) if run.metric else (run.chosen_by, run.best_value)
    if name is not None and value is not None:
        figures.append(f"{short(name)} {figure(value)}")
    if run.personal is not None and not (name or "").startswith("personal/"):
        figures.append(f"personal {figure(run.personal)}")
    if run.epsilon is not None:
        figures.append(f"epsilon {rounded_up(run.epsilon)}")
    return " · ".join([*figures, *(f"#{tag['name']}" for tag in run.tags)])
