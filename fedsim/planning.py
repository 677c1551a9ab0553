"""What is to be run: from what a caller gives to checked jobs, and what they would cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import companions
from fedsim import scenario as scenarios
from fedsim.companions import Companion
from fedsim.composition import algorithm_of
from fedsim.data.corpus import Folders
from fedsim.environment import environment
from fedsim.errors import named
from fedsim.federating import DataSource, federate
from fedsim.forecast import Line
from fedsim.forecast import forecast as forecast_work
from fedsim.job import Job, ModelSource, prepare_on
from fedsim.local import Work
from fedsim.machine import cores
from fedsim.origins import Origin, names, reference
from fedsim.own import NOTHING, Own
from fedsim.scenario import Scenario
from fedsim.stock import TREES
from fedsim.stopping import Watch

_CUT_BY_FAST = ("rounds", "train.steps", "train.epochs")


def as_scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    """A scenario from what `run` takes."""
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return scenarios.parse(scenario, Path.cwd(), "scenario")
    return scenarios.load(str(scenario))


def forecast(scenario: Scenario, data_dir: Path | None) -> list[Line]:
    """What a scenario would cost; one client is trained to measure it, nothing is written."""
    job, beside = jobs(scenario, Folders.of(data_dir, scenario.folder))
    workers = 1 if scenario.engine.kind == "inline" else scenario.engine.workers or cores()
    with named(scenario.origin):
        return forecast_work(Work(job), workers, {companions.title(place): Work(each) for place, each in beside})


def fast(scenario: Scenario) -> Scenario:
    """The same scenario cut down to a check of all its parts: two clients, two batches, one evaluation."""
    cuts: dict[str, Any] = {"rounds": 1, "stop": {}}
    if scenario.model.name == TREES:  # every client grows one, and a Flower Strategy draws the cohort
        return scenario.changed(cuts)
    cuts["train.steps"] = 2
    with named(scenario.origin):
        draws = algorithm_of(scenario).flower is None
    if draws:  # a Flower Strategy has a rule of its own
        cuts["cohort.size"] = 1 if scenario.data.partition.get("clients") == 1 else 2
    if scenario.privacy.without is not None:
        uncut = {key: value for key, value in scenario.privacy.changes.items() if key not in _CUT_BY_FAST}
        cuts["privacy.without"] = uncut
    if scenario.cohort.min_replies is not None:
        cuts["cohort.min_replies"] = 1
    return scenario.changed(cuts)


def jobs(
    scenario: Scenario,
    folders: Folders,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
) -> tuple[Job, list[Companion]]:
    """The job, and those to be run beside it; whatever is wrong is told before anything starts."""
    beside = companions.scenarios(scenario)
    federation = federate(scenario, folders, data, own)
    job = prepare_on(federation, scenario, model, data, own)
    Watch.of(scenario, job.build_problem(), job.federation)
    return job, [companions.companion(place, each, federation, model, data, own) for place, each in beside.items()]


def sources(job: Job) -> list[Origin]:
    """The user's own files and notebook cells that a job was made of."""
    return [*job.scenario.own_files(), *(origin for _, origin in job.origins)]


def provenance(job: Job) -> dict[str, Any]:
    """What a run's bits depend on besides its scenario; `environment.json`."""
    named = names(sources(job))
    return environment(
        job.federation.digest,
        corpus=job.federation.corpus,
        data=job.data,
        model=reference(job.model),
        scenario_folder=job.scenario.folder,
        noise=(job.privacy.noise_multiplier, job.privacy.max_participations) if job.privacy is not None else None,
        compiled=job.compiled.digest if job.compiled is not None else None,
        own=job.own.references(),
        origins={name: named[origin] for name, origin in job.origins},
    )
