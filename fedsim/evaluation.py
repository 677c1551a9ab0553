"""From summed statistics to metrics under their full names."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from fedsim.data.corpus import Task
from fedsim.data.federation import CentralPart, Part
from fedsim.errors import PrivacyError, ScenarioError
from fedsim.metrics import (
    LOWER_IS_BETTER,
    HeldOut,
    Statistics,
    add,
    mean_over_clients,
    parse_name,
    with_full_names,
    worst_tenth,
)
from fedsim.problem import Problem

CLIENT_SETS: Mapping[Part, HeldOut] = {"validation": "client-validation", "test": "client-test"}
CENTRAL_SETS: Mapping[CentralPart, HeldOut] = {"validation": "central-validation", "test": "central-test"}
Direction = Literal["higher", "lower"]


def central_metrics(problem: Problem, statistics: Statistics, part: CentralPart) -> dict[str, float]:
    """The global model's metrics on a central set; undefined ones are left out."""
    return _defined(with_full_names("global", CENTRAL_SETS[part], "rows", problem.metrics(statistics)))


def client_metrics(problem: Problem, each: Sequence[Statistics], part: Part, min_rows: int) -> dict[str, float]:
    """The global model's metrics over clients' own rows: pooled, mean over clients, worst tenth.

    Args:
        problem: of the corpus.
        each: statistics of every client that was asked and answered.
        part: "validation" or "test".
        min_rows: rows a client needs to count in the worst tenth.
    """
    values = [problem.metrics(statistics) for statistics in each]
    rows = [int(statistics["rows"][0]) for statistics in each]
    data = CLIENT_SETS[part]
    named = {
        **with_full_names("global", data, "rows", problem.metrics(add(each))),
        **with_full_names("global", data, "clients", mean_over_clients(values)),
        **with_full_names("global", data, "worst-10%", worst_tenth(values, rows, min_rows)),
    }
    return _defined(named)


def headline(task: Task) -> str:
    """The metric by which a task is usually judged, and its best round chosen."""
    return "bits-per-character" if task == "next-token" else "accuracy"


def better(metric: str, value: float, than: float) -> bool:
    """Whether a value of the full-named metric is better than another; anything is better than nan."""
    name = metric.split("/", 3)[-1]
    return math.isnan(than) or (value < than if name in LOWER_IS_BETTER else value > than)


def check_choosing(name: str, problem: Problem, key: str, *, private: bool) -> None:
    """Check a metric that is to decide when a run stops or which round is best.

    Args:
        name: its full name.
        problem: whose metrics there are.
        key: the scenario's key, for messages.
        private: whether clients' rows are protected; then only the server's own data may decide.

    Raises:
        ScenarioError: there is no such metric, or it is for reporting only.
        PrivacyError: it reads rows that epsilon does not cover.
    """
    data = parse_name(name, problem.metric_names(), key).data
    if not data.endswith("-validation"):
        raise ScenarioError(f"{key} = {name!r}: {data} is for reporting; use {data.replace('test', 'validation')}")
    if private and not data.startswith("central-"):
        raise PrivacyError(
            f"{key} = {name!r} reads clients' own rows, and what it decides is not covered by epsilon; "
            "choose by central-validation (data.split.central above 0)"
        )


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    """Without what no row defines (a missing class' recall); a loss that is nan stays: the run has diverged."""
    return {name: value for name, value in values.items() if not math.isnan(value) or name.endswith("/loss")}
