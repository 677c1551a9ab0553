"""The jobs of a comparison's runs: data loaded once for all that share them, and all checked before anything trains."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim import companions
from fedsim.companions import REFERENCES
from fedsim.comparison.plan import MOST_LEFT_OUT, Cell, Comparison
from fedsim.comparison.tuning import check_judged
from fedsim.comparison.view import View
from fedsim.composition import algorithm_of
from fedsim.data.corpus import Folders
from fedsim.data.federation import Federation
from fedsim.errors import FedsimError, ScenarioError, named
from fedsim.evaluation import check_choosing
from fedsim.federating import DataSource, federate
from fedsim.job import Job, ModelSource, prepare_on
from fedsim.machine import available_memory
from fedsim.metrics import MetricName, parse_name
from fedsim.own import NOTHING, Own
from fedsim.scenario import Scenario
from fedsim.stopping import Watch

_SHARE = 4  # one part of the free memory is for data that are kept for the next run


@dataclass(frozen=True)
class Given:
    """What a Python program gives in the place of what scenarios name, the same for all runs; and where data are."""

    model: ModelSource | None = None
    data: DataSource | None = None
    own: Own = NOTHING
    data_dir: Path | None = None


NOTHING_GIVEN = Given()


class Jobs:
    """Checked jobs of a comparison's runs."""

    def __init__(self, given: Given = NOTHING_GIVEN) -> None:
        self._given = given
        self._loaded: dict[str, tuple[Federation, dict[str, Job]]] = {}

    def of(self, cell: Cell) -> Job:
        """The job of a run.

        Raises:
            FedsimError: something does not fit; names the candidate.
        """
        return self.made(cell.scenario, reference=cell.is_reference)

    def made(self, scenario: Scenario, *, reference: bool = False) -> Job:
        """The job of any scenario; a reference does without rules on metrics that it does not measure."""
        federation, known = self._federation(scenario)
        text = f"{reference} {scenario.to_toml()}"
        if text not in known:
            known[text] = self._prepared(scenario, federation, reference)
        return known[text]

    def _prepared(self, scenario: Scenario, federation: Federation, reference: bool) -> Job:
        model, data, own = self._given.model, self._given.data, self._given.own
        if reference:
            place = (REFERENCES, scenario.strategy.name)
            return companions.companion(place, scenario, federation, model, data, own).job
        job = prepare_on(federation, scenario, model, data, own)
        Watch.of(scenario, job.build_problem(), job.federation)
        return job

    def _federation(self, scenario: Scenario) -> tuple[Federation, dict[str, Job]]:
        key = json.dumps([scenario.seed, str(scenario.folder), scenario.data.model_dump(mode="json")])
        if key not in self._loaded:
            folders = Folders.of(self._given.data_dir, scenario.folder)
            federation = federate(scenario, folders, self._given.data, self._given.own)
            self._make_room(federation)
            self._loaded[key] = federation, {}
        self._loaded[key] = self._loaded.pop(key)  # the last used stays longest
        return self._loaded[key]

    def _make_room(self, federation: Federation) -> None:
        free = available_memory()
        most = free // _SHARE if free is not None else 0
        while self._loaded and _bytes(federation) + sum(_bytes(each) for each, _ in self._loaded.values()) > most:
            del self._loaded[next(iter(self._loaded))]


def counted(comparison: Comparison, jobs: Jobs) -> Comparison:
    """The comparison once it is known how many clients there are, where runs are to leave one out.

    Raises:
        ScenarioError: there are too many.
    """
    if not comparison.leave_one_out or comparison.clients:
        return comparison
    reference = next(each for each in comparison.candidates if each.name == comparison.reference)
    clients = {}
    for condition in comparison.conditions:
        scenario = comparison.scenario(condition, reference, comparison.seeds[0])
        clients[condition.name] = count = jobs.made(scenario).federation.clients
        if count > MOST_LEFT_OUT:
            raise ScenarioError(
                f"{comparison.origin}: leave_one_out runs once without each client, and there are {count:,}; "
                f"{MOST_LEFT_OUT} at most"
            )
    return comparison.counted(clients)


def check(comparison: Comparison, jobs: Jobs, cells: Sequence[Cell], view: View) -> dict[Path, str]:
    """Try every run's data, model, algorithm and privacy, so that what is wrong is told before anything trains.

    Returns:
        For references that do not fit this problem, and are left out, their folders and what is to be said of them.

    Raises:
        FedsimError: names the candidate and the key.
    """
    left: dict[Path, str] = {}
    candidates = {each.name for each in comparison.candidates}
    for number, cell in enumerate(cells, 1):
        view.phase(f"checking {number} of {len(cells)}: {cell.candidate}, seed {cell.seed}")
        scenario = cell.scenario
        if scenario.engine.compile and cell.seed != comparison.seeds[0]:
            scenario = scenario.changed({"engine.compile": False})  # the step is that of the first seed
        try:
            job = jobs.made(scenario, reference=cell.is_reference)
        except FedsimError as error:
            if not cell.is_reference:
                raise
            left[cell.folder] = f"{cell.candidate} is left out: {error}"
            continue
        if cell.candidate in candidates:
            with named(scenario.origin):
                _check_metrics(comparison, job)
                if comparison.tune is not None:
                    check_judged(comparison, job)
    return left


def _check_metrics(comparison: Comparison, job: Job) -> None:
    """Refuse a primary metric or a target that a candidate never measures."""
    problem, federation, scenario = job.build_problem(), job.federation, job.scenario
    if comparison.target is not None:
        check_choosing(comparison.target.metric, "target.metric", scenario, problem, federation)
    if (name := comparison.metric) is not None:
        metric = parse_name(name, problem.metric_names(), "metric")
        if not metric.data.endswith("-test"):
            use = name.replace("-validation", "-test")
            raise ScenarioError(f"metric = {name!r}: verdicts rest on test rows; use {use}")
        if (reason := _never(metric, job)) is not None:
            raise ScenarioError(f"metric = {name!r} is never measured: {reason}")


def _never(metric: MetricName, job: Job) -> str | None:
    """Why a run does not measure a test metric; None where it does."""
    algorithm, name = algorithm_of(job.scenario), job.scenario.strategy.name
    if metric.model == "global" and algorithm.alone:
        return f"strategy {name!r} trains no global model"
    if metric.model == "personal" and not algorithm.personalised:
        return f"strategy {name!r} gives clients no model of their own"
    if metric.data == "central-test" and not len(job.federation.central["test"].x):
        return "no rows are held out; raise data.split.central"
    if metric.data == "client-test" and not job.scenario.evaluate.clients_every:
        return "evaluate.clients_every is 0; set it to 1"
    return None


def _bytes(federation: Federation) -> int:
    central = [part for rows in federation.central.values() for part in rows]
    return sum(array.nbytes for array in (federation.x, federation.y, *central))
