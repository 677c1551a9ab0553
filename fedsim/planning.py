"""What is to be run: from what a caller gives to checked jobs, and what they would cost."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim import scenario as scenarios
from fedsim.data.corpus import Folders
from fedsim.environment import environment
from fedsim.forecast import Line
from fedsim.forecast import forecast as forecast_work
from fedsim.job import CorpusSource, Job, ModelSource, check_algorithm, named, prepare
from fedsim.local import Work
from fedsim.machine import cores
from fedsim.model import model_reference
from fedsim.parameters import layout_of
from fedsim.scenario import Scenario
from fedsim.stopping import Watch


def as_scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    """A scenario from what `run` takes."""
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return scenarios.parse(scenario, Path.cwd(), "scenario")
    return scenarios.load(str(scenario))


def forecast(scenario: Scenario, data_dir: Path | None) -> list[Line]:
    """What a scenario would cost; one client is trained to measure it, nothing is written."""
    job, plain = jobs(scenario, Folders.of(data_dir, scenario.folder))
    workers = 1 if scenario.engine.kind == "inline" else scenario.engine.workers or cores()
    with named(scenario.origin):
        return forecast_work(Work(job), workers, Work(plain) if plain is not None else None)


def fast(scenario: Scenario) -> Scenario:
    """The same scenario cut down to a check of all its parts: two clients, two batches, one evaluation."""
    cuts: dict[str, Any] = {
        "rounds": 1,
        "cohort.size": 1 if scenario.data.partition.get("clients") == 1 else 2,
        "train.steps": 2,
        "stop": {},
        "privacy": scenario.privacy.model_copy(update={"without": None}).model_dump(exclude_none=True),
    }
    if scenario.cohort.min_replies is not None:
        cuts["cohort.min_replies"] = 1
    return scenario.changed(cuts)


def without_privacy(job: Job) -> Job:
    """The same job, promising nothing; `privacy.without` says what else differs (a learning rate that suits).

    Raises:
        FedsimError: what differs is not known or does not fit.
    """
    scenario = job.scenario
    changes = scenario.privacy.changes
    kept = scenario.stop.model_copy(update={"epsilon": None}).model_dump(exclude_none=True)  # nothing is spent
    title = ", ".join([f"{scenario.title}, without privacy", *(f"{key} = {value}" for key, value in changes.items())])
    changed = scenario.changed(
        {"stop": kept, **changes, "title": title, "privacy": {}}, f"{scenario.origin}: privacy.without"
    )
    plain = replace(job, scenario=changed, privacy=None)
    with named(changed.origin):
        check_algorithm(plain.build_algorithm(), changed, layout_of(plain.build_model()))
    Watch.of(changed, plain.build_problem(), plain.federation)
    return plain


def jobs(
    scenario: Scenario, folders: Folders, model: ModelSource | None = None, data: CorpusSource | None = None
) -> tuple[Job, Job | None]:
    """The job, and the one without privacy to be run beside it; whatever is wrong is told before anything starts."""
    job = prepare(scenario, folders, model, data)
    Watch.of(scenario, job.build_problem(), job.federation)
    return job, without_privacy(job) if scenario.privacy.without is not None else None


def provenance(job: Job) -> dict[str, Any]:
    """What a run's bits depend on besides its scenario; `environment.json`."""
    return environment(
        job.federation.digest,
        corpus=job.federation.corpus,
        data=job.data,
        model=model_reference(job.model),
        scenario_folder=job.scenario.folder,
        noise=(job.privacy.noise_multiplier, job.privacy.max_participations) if job.privacy is not None else None,
    )
