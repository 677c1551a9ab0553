"""One run of a comparison, as its folder tells it: scores, curves, costs, and what pairs it with another.

Also of a run that goes on: what is not known yet is nan or empty.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.overview import headline, overview
from fedsim.reading import Records
from fedsim.stored import open_run, reading, stored_environment, stored_scenario

Status = Literal["done", "stopped", "diverged", "unfinished"]


@dataclass(frozen=True)
class RunFacts:
    """A run in figures.

    Attributes:
        condition, candidate, seed: its cell; empty names and the scenario's seed where it is in no comparison.
        folder: of the run.
        status: "stopped" by its failure rules, "diverged" likewise; a run that a target or patience ended is done.
        reason: why it ended before its last round, if it did.
        rounds_planned: asked for.
        rounds: [R] numbers of the committed rounds.
        metrics: by full name [R], nan where a round did not measure it. Here and below, a strategy that shares no model
            has no global figures: what its records call so is of the model before training.
        last, best: test metrics of the last and of the best round's model, by full name; empty before the end.
        headline: the test metric by which its task is judged; None before the end.
        lower: names (the last part of a full name) of metrics that are better when they are lower.
        seconds, bytes: [R] cumulative; bytes both ways, of training alone, as a real network would carry them, nan
            where `records.clients` leaves clients out.
        epsilon, delta: spent by the client that spent most; None without privacy.
        own_figures: client -> the task's first metric on its own test rows after the last round, of its own model
            where it has one; clients with fewer than `evaluate.min_rows` rows are left out.
        federation: SHA-256 of all rows and where they lie.
        initial: fingerprint of the model before training; empty where it was not recorded.
        cohorts: [R] SHA-256 of the clients that each round asked to train; empty texts where not recorded.
        fingerprint: of the model after the last round.
        scenario: as resolved.
        environment: packages, processor and data of the run.
        own_rows: test rows of the clients in `own_figures`.
    """

    condition: str
    candidate: str
    seed: int
    folder: Path
    status: Status
    reason: str | None
    rounds_planned: int
    rounds: np.ndarray
    metrics: Mapping[str, np.ndarray]
    last: Mapping[str, float]
    best: Mapping[str, float]
    headline: str | None
    lower: frozenset[str]
    seconds: np.ndarray
    bytes: np.ndarray
    epsilon: float | None
    delta: float | None
    own_figures: Mapping[int, float]
    federation: str
    initial: str
    cohorts: Sequence[str]
    fingerprint: str
    scenario: Mapping[str, Any]
    environment: Mapping[str, Any]
    own_rows: Mapping[int, int] = field(default_factory=dict)

    def score(self, metric: str) -> float:
        """A test metric after the last round; nan where the run diverged, was stopped, or has not finished."""
        return self.last.get(metric, math.nan) if self.status == "done" else math.nan


def facts(folder: Path, condition: str = "", candidate: str = "") -> RunFacts:
    """Read a run.

    Args:
        folder: of the run, which may go on.
        condition, candidate: its cell in a comparison.

    Raises:
        RunFolderError: not a run folder, or one that cannot be read.
    """
    scenario, environment = stored_scenario(folder), stored_environment(folder)
    with closing(open_run(folder)) as records, reading(folder):
        rounds, summary, series = records.rounds(), records.summary(), records.metrics()
        seen = overview(folder, records, dict(scenario))
        numbers = [row.number for row in rounds]
        judged = summary.get("headline") or {}
        alone = str(judged.get("metric", "")).startswith("personal/")
        last = _defined(summary.get("metrics_last_round", {}), alone)
        own = _own(records, scenario)
        status, reason = _status(summary)
        return RunFacts(
            condition=condition,
            candidate=candidate,
            seed=int(scenario.get("seed", 0)),
            folder=folder,
            status=status,
            reason=reason,
            rounds_planned=int(scenario.get("rounds", len(rounds))),
            rounds=np.array(numbers, dtype=int),
            metrics={
                name: np.array([values.get(number, math.nan) for number in numbers])
                for name, values in series.items()
                if not (alone and name.startswith("global/"))
            },
            last=last,
            best=_defined(summary.get("metrics", {}), alone),
            headline=judged.get("metric") or headline("test", last),
            lower=_lower(summary, judged),
            seconds=np.cumsum([row.seconds for row in rounds]),
            bytes=_bytes(records, numbers, scenario),
            epsilon=seen.epsilon,
            delta=seen.delta,
            own_figures={client: figure for client, (figure, _) in own.items()},
            federation=str(environment.get("data_sha256", "")),
            initial=str(summary.get("initial") or ""),
            cohorts=tuple(row.cohort_sha256 or "" for row in rounds),
            fingerprint=rounds[-1].fingerprint if rounds else "",
            scenario=scenario,
            environment=environment,
            own_rows={client: rows for client, (_, rows) in own.items()},
        )


def _status(summary: Mapping[str, Any]) -> tuple[Status, str | None]:
    if not summary:
        return "unfinished", None
    stop = summary.get("stop") or {}
    if summary.get("status") != "stopped":
        return "done", stop.get("reason")
    return "diverged" if stop.get("kind") == "diverged" else "stopped", stop.get("reason")


def _defined(metrics: Mapping[str, float | None], alone: bool) -> dict[str, float]:
    kept = {name: value for name, value in metrics.items() if not (alone and name.startswith("global/"))}
    return {name: math.nan if value is None else float(value) for name, value in kept.items()}


def _lower(summary: Mapping[str, Any], judged: Mapping[str, Any]) -> frozenset[str]:
    """Summaries of earlier versions say it of the first metric alone."""
    if (known := summary.get("lower")) is not None:
        return frozenset(known)
    name = str(judged.get("metric", "")).split("/", 3)[-1]
    return frozenset({"loss", *([name] if judged.get("lower_is_better") else [])})


def _bytes(records: Records, numbers: Sequence[int], scenario: Mapping[str, Any]) -> np.ndarray:
    if scenario.get("records", {}).get("clients", "all") != "all":
        return np.full(len(numbers), math.nan)
    query = "SELECT round, sum(bytes_down + bytes_up) FROM clients WHERE phase = 'train' GROUP BY round"
    moved = {row[0]: row[1] for row in records.select(query)}
    return np.cumsum([float(moved.get(number, 0)) for number in numbers])


def _own(records: Records, scenario: Mapping[str, Any]) -> dict[int, tuple[float, int]]:
    """Client -> its own figure, and of how many rows."""
    least = scenario.get("evaluate", {}).get("min_rows", 5)
    own: dict[int, tuple[float, int]] = {}
    for row in records.tests():
        names = sorted(row.metrics, key=lambda name: not name.startswith("personal/"))
        if names and row.rows >= least:
            own[row.client] = row.metrics[names[0]], row.rows
    return own
