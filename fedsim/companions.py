"""Runs made beside a run, everything else equal, and what they tell.

    without-privacy/    with `privacy.without`: the same run, promising nothing. What does privacy cost?
    references/NAME/    of `references`: the run with another strategy in its place. Does federation help, and whom?

Each is a run folder of its own in the run's.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.composition import algorithm_of, check_measured
from fedsim.data.federation import Federation
from fedsim.errors import ScenarioError, named
from fedsim.federating import DataSource
from fedsim.job import Job, ModelSource, prepare_on
from fedsim.metrics import worst_tenth
from fedsim.own import NOTHING, Own
from fedsim.progress import shortened, wrapped
from fedsim.registry import as_path, members, nearest
from fedsim.scenario import Scenario
from fedsim.stopping import Watch
from fedsim.summary import Result

Place = tuple[str, ...]
"""Where a companion stands in a run's folder and in its values: ("references", "local")."""
WITHOUT_PRIVACY: Place = ("without_privacy",)
REFERENCES = "references"
LOCAL: Place = (REFERENCES, "local")


class Companion(NamedTuple):
    """A run beside another."""

    place: Place
    job: Job


def scenarios(scenario: Scenario) -> dict[Place, Scenario]:
    """What is to be run beside a scenario.

    Raises:
        ScenarioError: there is no such strategy, or what `privacy.without` changes is not known or does not fit.
    """
    found: dict[Place, Scenario] = {}
    if scenario.privacy.without is not None:
        found[WITHOUT_PRIVACY] = without_privacy(scenario)
    return found | {(REFERENCES, name): reference(scenario, name) for name in scenario.references}


def companion(
    place: Place,
    scenario: Scenario,
    federation: Federation,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
) -> Companion:
    """A run to be made beside another, on the same data.

    Args:
        place, scenario: from `scenarios`.
        federation: the data that the other is made on, not pooled.
        model, data, own: as that other's.

    Raises:
        FedsimError: something does not fit.
    """
    job = prepare_on(federation, scenario, model, data, own)
    if place[0] == REFERENCES:
        job = _with_rules_of_its_own(job)
    Watch.of(job.scenario, job.build_problem(), job.federation)
    return Companion(place, job)


def folder_of(place: Place, whole: Path) -> Path:
    """The folder of a companion in the folder of its run."""
    return whole.joinpath(*map(as_path, place))


def title(place: Place) -> str:
    """What people call a companion: its folder in the run's."""
    return folder_of(place, Path()).as_posix()


def compared(result: Result, beside: Mapping[Place, Result]) -> Result:
    """A run's result with those of its companions, for people and for programs.

    `values` gain theirs under their places, and, where `local` is a reference, `gain_over_local`.
    """
    values = dict(result.values)
    for (*tables, last), other in beside.items():
        table = values
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = other.values
    if LOCAL in beside:
        values["gain_over_local"] = _gain(result, beside[LOCAL])
    references = {place[-1]: other for place, other in beside.items() if place[0] == REFERENCES}
    lines = _price_lines(result, beside[WITHOUT_PRIVACY]) if WITHOUT_PRIVACY in beside else []
    lines += _reference_lines(result, references) if references else []
    lines += _gain_lines(values["gain_over_local"]) if LOCAL in beside else []
    return replace(result, values=values, lines=[*lines, *([""] if lines else []), *result.lines])


def without_privacy(scenario: Scenario) -> Scenario:
    """The same, promising nothing; `privacy.without` says what else differs (a learning rate that suits)."""
    changes = scenario.privacy.changes
    kept = scenario.stop.model_copy(update={"epsilon": None}).model_dump(exclude_none=True)  # nothing is spent
    called = ", ".join([f"{scenario.title}, without privacy", *(f"{key} = {value}" for key, value in changes.items())])
    return scenario.changed(
        {"stop": kept, **changes, "title": called, "privacy": {}}, f"{scenario.origin}: privacy.without"
    )


def reference(scenario: Scenario, name: str) -> Scenario:
    """The same with another strategy, and nobody who attacks.

    Raises:
        ScenarioError: there is no such strategy, or it does not go with what is measured.
    """
    own = {"title": f"{scenario.title}, reference {name}", "references": [], "strategy": {"name": name}}
    origin = f"{scenario.origin}: references"
    changed = scenario.changed({**own, "adversary": None}, origin)
    with named(origin):
        if ":" not in name and name not in (known := members("fedsim.strategies")):
            raise ScenarioError(f"there is no strategy {name!r}.{nearest(name, known)}")
        check_measured(algorithm_of(changed), scenario)
    return changed


def _with_rules_of_its_own(job: Job) -> Job:
    """A reference without the rules on a metric that it does not measure, such as a personal one; time still counts."""
    scenario = job.scenario
    try:
        Watch.of(scenario, job.build_problem(), job.federation)
    except ScenarioError:  # the metric was checked with the run, so here it is only never measured
        rules = {"stop": {"max_seconds": scenario.stop.max_seconds}, "evaluate.metric": None}
        return replace(job, scenario=scenario.changed(rules))
    return job


def _gain(result: Result, local: Result) -> dict[str, Any]:
    """What each client gains over training alone: its own figure less that of `local`, positive when better.

    Of clients with as many test rows as `evaluate.min_rows` asks for, on the last models of both runs.
    """
    mine, alone = result.own_figures, local.own_figures
    metric = _metric(result)
    sign = -1.0 if result.values["headline"]["lower_is_better"] else 1.0
    gains = np.array([sign * (mine[client] - alone[client]) for client in sorted(mine.keys() & alone.keys())])
    worst = worst_tenth([{"gain": gain} for gain in gains], np.ones(len(gains)), 1, ())
    return {
        "metric": metric,
        "clients": len(gains),
        "mean": float(gains.mean()) if len(gains) else math.nan,
        "share_gained": float((gains > 0).mean()) if len(gains) else math.nan,
        "worst_tenth": worst.get("gain"),
    }


def _metric(result: Result) -> str:
    """The metric by which the task is judged."""
    return str(result.values["headline"]["metric"]).split("/", 3)[-1]


def _price_lines(private: Result, plain: Result) -> list[str]:
    pairs = [
        (name, private.values["metrics"][name], plain.values["metrics"].get(name, math.nan))
        for name in private.values["metrics"]
        if name.startswith(("global/central-test/rows", "global/client-test/rows")) and "/recall/" not in name
    ]
    table = [f"{'the price of privacy (test)':<40}{'private':>10}{'without':>10}"]
    return [*table, *(f"  {name:<38}{mine:>10.4f}{other:>10.4f}" for name, mine, other in pairs)]


def _reference_lines(result: Result, references: Mapping[str, Result]) -> list[str]:
    """The headline metric of every run: of the best global model, and of clients' own after the last round."""
    metric = _metric(result)
    lines = [f"{f'test {metric}':<34}{'rounds':>7}{'central-test/rows':>18}{'client-test/clients':>21}"]
    for name, each in {"this run": result, **references}.items():
        values = each.values
        rows = {}
        if values["headline"]["metric"].startswith("global/"):
            place = ("global/central-test/rows", "global/client-test/clients")
            rows[name] = [values["metrics"].get(f"{prefix}/{metric}") for prefix in place]
        if (own := values["metrics_last_round"].get(f"personal/client-test/clients/{metric}")) is not None:
            rows[f"{name}, personal"] = [None, own]
        for label, (central, clients) in rows.items():
            cells = f"{values['rounds']:>7}{_cell(central):>18}{_cell(clients):>21}"
            lines.append(f"  {shortened(label, 32):<32}{cells}")
    for name, each in references.items():
        if each.values["status"] == "stopped":
            lines += wrapped(f"{name} ended early: {each.values['stop']['reason']}", 2)
    return lines


def _gain_lines(gain: Mapping[str, Any]) -> list[str]:
    if not gain["clients"]:
        return []
    worst = f"; worst 10 %: {gain['worst_tenth']:+.4f}" if gain["worst_tenth"] is not None else ""
    text = (
        f"gain over local in {gain['metric']}, {gain['clients']} clients after the last round: "
        f"mean {gain['mean']:+.4f}; {100 * gain['share_gained']:.0f} % gained{worst}"
    )
    return wrapped(text)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
