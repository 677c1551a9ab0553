"""Going on with a run that was interrupted, killed or is to be longer, to the bits of one that never stopped.

Everything that decides bits is compared first: data, own code and model must be the same; package versions and
processor too, unless the run says `[engine] bits = "not guaranteed"`.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fedsim import scenario as scenarios
from fedsim.companions import Companion, compared, folder_of
from fedsim.companions import scenarios as companion_scenarios
from fedsim.data.corpus import Folders
from fedsim.data.transform import Transform
from fedsim.engine import Engine, starting
from fedsim.environment import decisive_differences, numerical_differences
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.federating import DataSource
from fedsim.job import Job, ModelSource
from fedsim.observers import Observer
from fedsim.own import NOTHING, Loss, Metric, Own
from fedsim.planning import jobs, provenance, sources
from fedsim.progress import Progress, Silent
from fedsim.records import SCHEMA_VERSION
from fedsim.rounds import create_folder, execute
from fedsim.runs import RunFolder
from fedsim.scenario import Scenario
from fedsim.scenario_files import assignments, override
from fedsim.signals import Interrupts
from fedsim.stackable import settled
from fedsim.stock import TREES
from fedsim.stored import DEPLOYMENT, open_run, reading, source_hashes, stored_environment, stored_scenario
from fedsim.summary import Result, succeeded

FREE = ("engine", "checkpoint", "records", "stop")
"""Tables whose keys may change when a run goes on: no trained bit depends on them."""


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    settings: Sequence[str] = (),
    model: ModelSource | None = None,
    data: DataSource | None = None,
    loss: str | Loss | None = None,
    metrics: Sequence[str | Metric] = (),
    transform: str | Transform | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Go on with a run from its last sound checkpoint.

    Args:
        path: the run's folder.
        rounds: of the whole run, instead of the scenario's; more than it had, to extend a finished one.
        settings: "engine.workers=2" and the like, of the tables engine, checkpoint, records and stop.
        model, data, loss, metrics, transform: as they were given to `run`, if they were.
        data_dir, progress, observers: as for `run`.

    Raises:
        RunFolderError: no run folder, another process is writing it, or no checkpoint of it fits.
        ScenarioError: the run has finished, or what it was made with is not what there is now.
    """
    path = Path(path)
    progress = progress or Silent()
    scenario = stored(path, rounds, settings)
    check_unfinished(path, scenario)
    with starting(scenario.engine, progress.note) as started:
        progress.phase("loading the data")
        job, beside = restored_jobs(path, scenario, model, data, Own(loss, metrics, transform), data_dir)
        with reopened(path, job) as folder:
            progress.phase("starting the workers")
            engine = started()
            result = succeeded(execute(job, engine, folder, progress, observers, resumed=True))
            others = {
                place: _companion(each, engine, folder_of(place, path), progress, observers) for place, each in beside
            }
            result = compared(result, others)
            progress.end(result.lines)
            return result


def check_unfinished(path: Path, scenario: Scenario) -> None:
    """Refuse to go on with a run that has nothing left to do as its scenario now stands.

    Raises:
        RunFolderError: it was written by an earlier fedsim.
        ScenarioError: it has finished, or has done more rounds already.
    """
    with closing(open_run(path)) as records, reading(path):
        done = max((row.number for row in records.rounds()), default=0)
        summary, version = records.summary(), records.version
    if version < SCHEMA_VERSION:
        raise RunFolderError(
            f"{path} was written by an earlier fedsim, with schema {version}; it can be read, not resumed"
        )
    _check_rounds(path, scenario, done)
    unchanged = scenario.to_toml() == scenarios.parse(stored_scenario(path), scenario.folder, "before").to_toml()
    if unchanged and summary.get("status") == "done" and _all_finished(path, scenario):
        early = f" early ({summary['stop']['reason']}); change that rule by --set" if summary.get("stop") else ""
        if scenario.model.name == TREES:
            raise ScenarioError(
                f"{path} has finished{early}; trees are grown in one go: for more rounds begin a new run"
            )
        more = f"fedsim resume {path} --rounds {2 * scenario.rounds}"
        raise ScenarioError(f"{path} has finished{early}; for more rounds: {more}")


def _companion(job: Job, engine: Engine, path: Path, progress: Progress, observers: Sequence[Observer]) -> Result:
    """A run beside the run: gone on with, or begun."""
    begun = path.exists()
    job, reason = (job, "") if begun else settled(job)
    with reopened(path, job) if begun else create_folder(job, path) as folder:
        return execute(job, engine, folder, progress, observers, resumed=begun, reason=reason)


def begun_or_resumed(
    job: Job,
    engine: Engine,
    path: Path,
    progress: Progress,
    observers: Sequence[Observer] = (),
    interrupts: Interrupts | None = None,
) -> Result:
    """A run of a program that makes many: begun, or gone on with where its folder is there already.

    Raises:
        ScenarioError: the folder's was made with something else.
    """
    job, reason = settled(job)
    if begun := path.exists():
        check_same(path, job)
        reason = ""  # which was recorded as it began
    with reopened(path, job) if begun else create_folder(job, path) as folder:
        return execute(job, engine, folder, progress, observers, resumed=begun, reason=reason, interrupts=interrupts)


def reopened(path: Path, job: Job) -> RunFolder:
    """A run's folder, claimed; its scenario is the one with which it goes on."""
    folder = RunFolder(path, job.scenario.checkpoint.keep)
    if (text := job.scenario.to_toml()) != (path / "scenario.toml").read_text(encoding="utf-8"):
        folder.write_scenario(text)
    return folder


def stored(path: Path, rounds: int | None = None, settings: Sequence[str] = ()) -> Scenario:
    """The scenario of a run as it is to go on.

    Raises:
        RunFolderError: no run folder.
        ScenarioError: a setting on which trained bits depend.
    """
    changes = assignments(settings)
    for key in changes:
        if key.partition(".")[0] not in FREE:
            tables = ", ".join(FREE)
            raise ScenarioError(f"--set {key}: a run goes on as it began; only keys of {tables} may change")
        if key == "stop.metric":
            raise ScenarioError(
                f"--set {key}: it also says which round is best, so it stays; other keys of stop may change"
            )
    if rounds is not None:
        changes["rounds"] = rounds
    content = override(stored_scenario(path), changes)
    folder = Path(stored_environment(path).get("scenario_folder", "."))
    scenario = scenarios.parse(content, folder, str(path / "scenario.toml"))
    before, now = (_deciding(engine) for engine in (stored_scenario(path).get("engine", {}), dict(scenario.engine)))
    if changed := [key for key in before if before[key] != now[key]]:
        raise ScenarioError(
            f"--set engine.{changed[0]}: trained bits depend on it, so it stays; engine's keys may change but for "
            f"{', '.join(before)}"
        )
    return scenario


def _deciding(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of engine on which trained bits depend; of devices whether stacks are trained on cores or on GPUs."""
    width = engine.get("stack") or 1
    cores = width == 1 or engine.get("devices") == ["cpu"]
    return {"stack": width, "devices": cores, "compile": engine.get("compile", False)}


def restored_jobs(
    path: Path,
    scenario: Scenario,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
    data_dir: Path | None = None,
) -> tuple[Job, list[Companion]]:
    """The job of a run and those beside it, made anew and compared with what they were.

    Raises:
        ScenarioError: they are not the same.
    """
    then = stored_environment(path)
    if DEPLOYMENT in then:
        text = "nodes keep their rows, so nothing of it can be done again here; `fedsim resume` goes on with it there"
        raise ScenarioError(f"{path} was deployed: {text}")
    _check_objects(path, scenario, then, model, data, own)
    job, beside = jobs(scenario, Folders.of(data_dir, scenario.folder), model, data, own)
    check_same(path, job)
    return job, beside


def check_same(path: Path, job: Job) -> None:
    """Compare what a run was made with and what there is now.

    Raises:
        ScenarioError: they are not the same.
    """
    then, scenario = stored_environment(path), job.scenario
    now = {**provenance(job), "sources": source_hashes(sources(job))}
    if others := list(decisive_differences(then, now)):
        raise ScenarioError(f"{path} was made with something else, {'; '.join(others)}. Its own files are in sources/.")
    if then.get("noise") != now["noise"]:
        keys = "noise_multiplier"
        if job.privacy is not None and not job.privacy.by_round:
            keys += " and max_participations"
        raise ScenarioError(
            f"{path}: the noise of privacy.{scenario.privacy.level} was solved for other rounds. Start a new run, or "
            f"one that gives {keys} from the start"
        )
    odd = list(numerical_differences(then, now))
    if scenario.engine.devices not in (None, ["cpu"]) and then.get("gpus") != now.get("gpus"):
        odd.append(f"GPUs {then.get('gpus')} then, {now.get('gpus')} now")
    if odd and scenario.engine.bits == "guaranteed":
        raise ScenarioError(
            f"{path}: {'; '.join(odd)}: the bits would perhaps not be those of an uninterrupted run. To go on all the "
            "same: --set 'engine.bits=not guaranteed'"
        )


def _check_objects(
    path: Path,
    scenario: Scenario,
    then: Mapping[str, Any],
    model: ModelSource | None,
    data: DataSource | None,
    own: Own,
) -> None:
    """Ask for the Python objects that took the place of what the scenario names."""
    task = scenario.task
    parts = {
        "model": (model, scenario.model.name),
        "data": (data, scenario.data.name),
        "loss": (own.loss, task.loss),
        "metrics": (own.metrics or None, task.metrics or None),
        "transform": (own.transform, scenario.data.transform),
    }
    for key, (given, named) in parts.items():
        used = then.get(key)
        if given is None and used != named:
            what = ", ".join(used) if isinstance(used, list) else used
            raise ScenarioError(
                f"{path} used the {key} {what} of a Python program; go on there with fedsim.resume(path, {key}=...)"
            )


def _check_rounds(path: Path, scenario: Scenario, done: int) -> None:
    if scenario.rounds < done:
        raise ScenarioError(f"--rounds {scenario.rounds}: {path} has done {done} rounds already; give more")
    schedule = scenario.train.schedule
    if scenario.rounds != stored_scenario(path).get("rounds") and schedule is not None and schedule.kind == "cosine":
        raise ScenarioError("--rounds: the cosine schedule of this run's learning rate was made for its own rounds")


def _all_finished(path: Path, scenario: Scenario) -> bool:
    """Whether all runs beside a run have finished too."""
    return all(_finished(folder_of(place, path)) for place in companion_scenarios(scenario))


def _finished(path: Path) -> bool:
    if not path.exists():
        return False
    with closing(open_run(path)) as records, reading(path):
        return bool(records.summary())
