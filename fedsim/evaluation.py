"""From summed statistics to metrics under their full names."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fedsim import seeds
from fedsim.adversaries import attackers
from fedsim.composition import algorithm_of
from fedsim.data.federation import CentralPart, Federation, Part
from fedsim.errors import PrivacyError, ScenarioError
from fedsim.metrics import (
    EvaluatedModel,
    HeldOut,
    MetricName,
    Statistics,
    add,
    counted,
    mean_over_clients,
    parse_name,
    spread,
    with_full_names,
    worst_tenth,
)
from fedsim.problem import Problem
from fedsim.scenario import Scenario

ATTACK_SUCCESS = "attack-success"
CLIENT_SETS: Mapping[Part, HeldOut] = {"validation": "client-validation", "test": "client-test"}
CENTRAL_SETS: Mapping[CentralPart, HeldOut] = {"validation": "central-validation", "test": "central-test"}


def central_metrics(problem: Problem, statistics: Statistics, part: CentralPart) -> dict[str, float]:
    """The global model's metrics on a central set; undefined ones are left out."""
    return _defined(with_full_names("global", CENTRAL_SETS[part], "rows", problem.metrics(statistics)))


def attack_success(statistics: Statistics, target: int, classes: int, part: CentralPart) -> dict[str, float]:
    """How often rows of other classes that carry the trigger are taken for the backdoor's target.

    Args:
        statistics: of the global model on a central set with the trigger in every row, under their own labels.
        target: the class that the trigger is to give.
        classes: C.
        part: "validation" or "test".
    """
    confusion = statistics["confusion"].reshape(classes, classes)
    others = np.arange(classes) != target
    rows = confusion[others].sum()
    success = float(confusion[others, target].sum() / rows) if rows else math.nan
    return _defined(with_full_names("global", CENTRAL_SETS[part], "rows", {ATTACK_SUCCESS: success}))


def client_metrics(
    problem: Problem, each: Sequence[Statistics], part: Part, min_rows: int, model: EvaluatedModel = "global"
) -> dict[str, float]:
    """A model's metrics over clients' own rows: pooled, mean over clients, worst tenth, spread.

    Args:
        problem: of the corpus.
        each: statistics of every client that was asked and answered.
        part: "validation" or "test".
        min_rows: rows a client needs to count in the worst tenth and the spread.
        model: the global model, or each client's own.
    """
    values = [problem.metrics(statistics) for statistics in each]
    rows = [int(statistics["rows"][0]) for statistics in each]
    data = CLIENT_SETS[part]
    named = {
        **with_full_names(model, data, "rows", problem.metrics(add(each))),
        **with_full_names(model, data, "clients", mean_over_clients(values)),
        **with_full_names(model, data, "worst-10%", worst_tenth(values, rows, min_rows, problem.lower)),
        **with_full_names(model, data, "spread", spread(values, rows, min_rows)),
    }
    return _defined(named)


def asked(scenario: Scenario, federation: Federation, part: Part, attacking: Collection[int] = ()) -> np.ndarray:
    """[n] who measures models on its own rows of a part: all honest clients that have any, or some of them.

    Where `evaluate.clients` is fewer, they are drawn once for the whole run.

    Args:
        scenario: says how many.
        federation: whose rows.
        part: "validation" or "test".
        attacking: clients that are never asked.
    """
    able = federation.sizes(part) > 0
    able[list(attacking)] = False
    clients, most = np.flatnonzero(able), scenario.evaluate.clients
    if most is None or most >= len(clients):
        return clients
    return np.sort(seeds.numpy_generator(scenario.seed, "measuring clients").choice(clients, most, replace=False))


def better(metric: str, value: float, than: float, lower: Collection[str]) -> bool:
    """Whether a value of the full-named metric is better than another; anything is better than nan.

    Args:
        metric: its full name.
        value, than: the two.
        lower: names of metrics that are better when they are lower.
    """
    return math.isnan(than) or (value < than if metric.split("/", 3)[-1] in lower else value > than)


def default_metric(scenario: Scenario, problem: Problem, federation: Federation) -> str | None:
    """The metric that chooses where a scenario names none; None where nothing is measured on validation rows."""
    names = [
        MetricName("global", data, "rows", problem.headline)
        for data in (CENTRAL_SETS["validation"], CLIENT_SETS["validation"])
    ]
    return next((str(name) for name in names if _unmeasured(name, scenario, federation) is None), None)


def check_choosing(name: str, key: str, scenario: Scenario, problem: Problem, federation: Federation) -> None:
    """Check a metric that is to decide when a run stops or which round is best.

    Args:
        name: its full name.
        key: the scenario's key, for messages.
        scenario: says what is measured. Under privacy only the server's own data may decide.
        problem: whose metrics there are.
        federation: in which there are validation rows, or are none.

    Raises:
        ScenarioError: there is no such metric, it is for reporting only, or this run would never compute it.
        PrivacyError: it reads rows that epsilon does not cover.
    """
    known = problem.metric_names()
    if close := difflib.get_close_matches(name, known, n=1) if "/" not in name else []:
        full = f"global/{CENTRAL_SETS['validation']}/rows/{close[0]}"
        raise ScenarioError(f"{key}: there is no metric {name!r}. Did you mean {full}?")
    metric = parse_name(name, known, key)
    data = metric.data
    if not data.endswith("-validation"):
        raise ScenarioError(f"{key} = {name!r}: {data} is for reporting; use {data.replace('test', 'validation')}")
    if metric.weighting == "spread":
        raise ScenarioError(f"{key} = {name!r}: a spread is for reporting; use weighting clients or worst-10%")
    if scenario.privacy.level is not None and not data.startswith("central-"):
        raise PrivacyError(
            f"{key} = {name!r} reads clients' own rows, and what it decides is not covered by epsilon; "
            "choose by central-validation (data.split.central above 0)"
        )
    if (reason := _unmeasured(metric, scenario, federation)) is not None:
        raise ScenarioError(f"{key} = {name!r} is never measured: {reason}")


def _unmeasured(metric: MetricName, scenario: Scenario, federation: Federation) -> str | None:
    """Why a run does not compute a validation metric, or not to any use, and what to change; None where it does."""
    if (reason := _without_model(metric.model, scenario)) is not None:
        return reason
    if metric.data == "central-validation":
        return None if len(federation.central["validation"].x) else "no rows are held out; raise data.split.central"
    if not scenario.evaluate.clients_every:
        return "evaluate.clients_every is 0; set it to 1"
    able, adversary = federation.train_rows > 0, scenario.adversary
    attacking = attackers(adversary, scenario.seed, able) if adversary is not None else ()
    rows = federation.sizes("validation")[asked(scenario, federation, "validation", attacking)]
    if not len(rows):
        return "clients have no validation rows; raise data.split.validation"
    number, least = int(counted(rows, scenario.evaluate.min_rows).sum()), scenario.evaluate.min_rows
    if metric.weighting == "worst-10%" and number < 10:
        return (
            f"ten clients need evaluate.min_rows = {least} validation rows, and {number} have them; use weighting rows"
        )
    return None


def _without_model(model: EvaluatedModel, scenario: Scenario) -> str | None:
    """Why a strategy trains no such model; None where it does."""
    algorithm, name = algorithm_of(scenario), scenario.strategy.name
    if model == "global" and algorithm.alone:
        return f"strategy {name!r} trains no global model; use personal/client-validation/..."
    if model == "personal" and not algorithm.personalised:
        return f"strategy {name!r} gives clients no model of their own; use global/..."
    return None


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    """Without what no row defines (a missing class' recall); a loss that is nan stays: the run has diverged."""
    return {name: value for name, value in values.items() if not math.isnan(value) or name.endswith("/loss")}
