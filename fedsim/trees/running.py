"""A run of trees: its rounds, its folder, its summary.

The folder has what every run's has, but no checkpoints: `model/last.json` and `model/best.json` are XGBoost's own, of
a strategy that leaves every client alone `model/clients/NUMBER.json`. Clients work in threads of this process.
"""

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedsim import checkpoints, companions, records
from fedsim.data import given, holdings
from fedsim.data.corpus import Folders
from fedsim.data.federation import CentralPart, Federation
from fedsim.environment import environment
from fedsim.errors import Interrupted, RunFolderError, ScenarioError, named
from fedsim.evaluation import asked, central_metrics, client_metrics
from fedsim.federating import DataSource, federate
from fedsim.job import check_rows, problem_of
from fedsim.machine import cores
from fedsim.metrics import Statistics
from fedsim.observers import Observer
from fedsim.origins import reference
from fedsim.parameters import Weights
from fedsim.problem import Problem
from fedsim.progress import Progress
from fedsim.records import ClientRow, Event, RoundRecord, Writer, keep_rows
from fedsim.runs import RunFolder
from fedsim.scenario import Scenario
from fedsim.signals import Interrupts
from fedsim.stock import TREES
from fedsim.stopping import Stop, Watch, after_replies
from fedsim.summary import SHORT_NAMES, Result, closing_block, judged, outcome, succeeded
from fedsim.trees.growing import Forest, Model, available
from fedsim.trees.ways import Growing, Way, way

_NO_EFFECT: Mapping[str, Sequence[str]] = {
    "train": ("optimizer", "epochs", "steps", "momentum", "weight_decay", "clip", "schedule", "precision"),
    "cohort": ("size", "fraction", "poisson", "dropout", "client_timeout"),
    "engine": ("address", "stack", "devices", "compile", "memory", "gpu_memory"),
    "strategy": ("combine", "server"),
    "task": ("loss", "metrics", "headline"),
}
"""Keys that mean nothing for trees: a client grows one a round, and Flower's strategy draws the cohort."""


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        scenario: what is run.
        federation: every client's rows.
        problem: loss and metrics.
        way: how trees come together.
        watch: which round is best, and when to stop.
        data: where the rows came from.
    """

    scenario: Scenario
    federation: Federation
    problem: Problem
    way: Way
    watch: Watch
    data: str


def run(
    scenario: Scenario,
    *,
    data: DataSource | None,
    data_dir: Path | None,
    out: Path | None,
    progress: Progress,
    observers: Sequence[Observer],
) -> Result:
    """Run a scenario whose model is trees, and its references; the arguments are those of `rounds.run`.

    Raises:
        FedsimError: the scenario cannot be run as it is; nothing has been written.
        StoppedByPolicy: the run ended by its failure rules; its committed rounds stay.
        Interrupted: by Ctrl-C; its committed rounds stay.
    """
    available()
    with named(scenario.origin):
        _check(scenario)
    beside = companions.scenarios(scenario)
    progress.phase("loading the data")
    federation = federate(scenario, Folders.of(data_dir, scenario.folder), data)
    plans = {place: _plan(each, federation, data) for place, each in beside.items()}
    result = succeeded(_execute(_plan(scenario, federation, data), out, progress, observers))
    others = {
        place: _execute(plan, companions.folder_of(place, result.folder), progress, observers)
        for place, plan in plans.items()
    }
    result = companions.compared(result, others)
    progress.end(result.lines)
    return result


def _check(scenario: Scenario) -> None:
    """Refuse keys that would have no effect."""
    for table, keys in _NO_EFFECT.items():
        values = getattr(scenario, table)
        for key in keys:
            if getattr(values, key) != type(values).model_fields[key].default:
                raise ScenarioError(f"{table}.{key} has no effect on trees; leave it out")
    if scenario.privacy.level is not None:
        raise ScenarioError(
            f"privacy.{scenario.privacy.level}: trees tell thresholds of rows; no private form is known"
        )
    if scenario.adversary is not None:
        raise ScenarioError("adversary: attacks change nets, and these are trees; leave it out")


def _plan(scenario: Scenario, federation: Federation, data: DataSource | None) -> Plan:
    """Check what a scenario says of trees against the data."""
    with named(scenario.origin):
        _check(scenario)
        if federation.task != "classification":
            raise ScenarioError(
                f"model.name = {TREES!r} classifies rows, and data {federation.corpus!r} are for "
                f"{federation.task}; take another model"
            )
        problem = problem_of(federation, scenario.folder)
        check_rows(problem, federation)
        grower = way(Growing(scenario, federation, problem), scenario)
    measured = scenario.changed({"strategy": {"name": "local" if grower.alone else "fedavg"}})  # it says which model
    source = scenario.data.name if data is None else reference(data) if callable(data) else given.NAME
    return Plan(scenario, federation, problem, grower, Watch.of(measured, problem, federation), source)


class _Measured(NamedTuple):
    """Models on held-out rows: metrics by full name, and what is recorded of clients."""

    metrics: dict[str, float]
    rows: list[ClientRow]


def _execute(plan: Plan, out: Path | None, progress: Progress, observers: Sequence[Observer]) -> Result:
    """Do all rounds of a run in a folder of its own."""
    scenario, begun, interrupts, done, stop = plan.scenario, time.perf_counter(), Interrupts(), 0, None
    path = _folder(plan, out)
    progress.begin(scenario.title, _facts(plan), (), scenario.rounds)
    best, events = plan.way.models, list[Event]()
    with _writing(path), closing(records.connect(path / "run.db")) as database, _told(path, database):
        with interrupts.listening(progress.note):
            while stop is None and done < scenario.rounds:
                clock = time.perf_counter()
                rows = plan.way.round(number := done + 1)
                reasons = [str(row.error) for row in rows if row.status == "failed"]
                stop = after_replies(number, reasons, len(rows), scenario.cohort)
                if stop is not None:
                    events += [Event("client failed", reason) for reason in reasons]
                    break
                measured = _measure(plan, plan.way.models, "validation", number)
                stop = plan.watch.after(number, measured.metrics, rows)
                record = _record(plan, number, rows, measured, time.perf_counter() - clock)
                best = plan.way.models if plan.watch.best_round == number else best
                records.insert_round(database, record, None, best=plan.watch.best_round == number, ledger=())
                done = number
                progress.round(record, {short: measured.metrics.get(full) for short, full in _live(plan).items()})
                for observer in observers:
                    observer.round_finished(record)
                if interrupts.asked:
                    raise KeyboardInterrupt
        progress.phase("testing the last and the best model")
        result, tested = _finished(plan, path, best, stop, done, time.perf_counter() - begun)
        events += [Event(stop.kind, stop.reason)] if stop is not None else []
        kept = keep_rows(tested, scenario.records.clients, scenario.seed)
        tests = records.measured_rows(kept)
        records.insert_summary(database, result.values, ledger=(), events=events, tests=tests)
    for observer in observers:
        observer.run_finished(result)
    return result


def _folder(plan: Plan, out: Path | None) -> Path:
    """Make the run's folder."""
    scenario, federation = plan.scenario, plan.federation
    about = environment(
        federation.digest, corpus=federation.corpus, data=plan.data, model=TREES, scenario_folder=scenario.folder
    )
    slug = Path(scenario.origin).stem
    kept = holdings.record(federation)
    with RunFolder.create(out, slug, scenario.to_toml(), scenario.own_files(), about, partition=kept) as made:
        return made.path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise RunFolderError(f"run folder {path} cannot be written ({error}); make room, then run it again") from error


@contextmanager
def _told(path: Path, database: Writer) -> Iterator[None]:
    """Say what an interrupt leaves."""
    try:
        yield
    except KeyboardInterrupt:
        (kept,) = database.execute("SELECT count(*) FROM rounds").fetchone()
        raise Interrupted(
            f"interrupted; {path} keeps {kept} committed rounds; trees begin anew: run it again"
        ) from None


def _facts(plan: Plan) -> list[str]:
    """The facts after a run's title."""
    scenario = plan.scenario
    workers = f"{scenario.engine.workers or cores()} threads"
    model = "personal" if plan.way.alone else "global"
    return [
        f"{plan.federation.clients} clients",
        TREES,
        scenario.strategy.name,
        workers,
        f"seed {scenario.seed}",
        f"live: {model}/{_place(plan, 'validation')}/...",
    ]


def _place(plan: Plan, part: CentralPart) -> str:
    """The central set where there is one and one model, else clients' own."""
    central = not plan.way.alone and len(plan.federation.central[part].x)
    return f"{'central' if central else 'client'}-{part}"


def _full(plan: Plan, part: CentralPart, metric: str) -> str:
    """The full name of the figure that a person wants to know first."""
    model, weighting = ("personal", "clients") if plan.way.alone else ("global", "rows")
    return f"{model}/{_place(plan, part)}/{weighting}/{metric}"


def _live(plan: Plan) -> dict[str, str]:
    """Full names of the metrics in a round's line, by column."""
    name = plan.problem.headline
    return {"loss": _full(plan, "validation", "loss"), SHORT_NAMES.get(name, name): _full(plan, "validation", name)}


def _measure(plan: Plan, models: Sequence[Model], part: CentralPart, number: int) -> _Measured:
    """Models on the central set and on clients' own rows, as far as `[evaluate]` asks for it in this round."""
    settings, last = plan.scenario.evaluate, number == plan.scenario.rounds or part == "test"
    central, metrics, rows = plan.federation.central[part], dict[str, float](), list[ClientRow]()
    if not plan.way.alone and len(central.x) and (last or number % settings.every == 0):
        metrics |= central_metrics(plan.problem, _statistics(plan, models[0], central.x, central.y), part)
    if settings.clients_every and (last or number % settings.clients_every == 0):
        each: list[Statistics] = []
        for client in asked(plan.scenario, plan.federation, part).tolist():
            clock, (x, y) = time.perf_counter(), plan.federation.rows(client, part)
            each.append(_statistics(plan, models[client if plan.way.alone else 0], x, y))
            rows.append(_evaluated(plan, number, client, each[-1], time.perf_counter() - clock))
        model, least = "personal" if plan.way.alone else "global", settings.min_rows
        metrics |= client_metrics(plan.problem, each, part, least, model) if each else {}  # type: ignore[arg-type]
    return _Measured(metrics, rows)


def _statistics(plan: Plan, model: Model, x: Any, y: Any) -> Statistics:
    return plan.problem.statistics(model.logits(x), plan.problem.targets(y))


def _evaluated(plan: Plan, number: int, client: int, statistics: Statistics, seconds: float) -> ClientRow:
    values, name = plan.problem.metrics(statistics), plan.problem.headline
    figures = {f"personal/{name}" if plan.way.alone else name: values[name]}
    rows = int(statistics["rows"][0])
    return ClientRow(number, client, "evaluate", "ok", rows, values["loss"], 0, seconds, 0, 0, None, figures)


def _record(plan: Plan, number: int, rows: Sequence[ClientRow], measured: _Measured, seconds: float) -> RoundRecord:
    kept = keep_rows([*rows, *measured.rows], plan.scenario.records.clients, plan.scenario.seed)
    failed = sum(row.status == "failed" for row in rows)
    digest, asked = _fingerprint(plan.way.models), records.cohort_digest(row.client for row in rows)
    return RoundRecord(number, seconds, len(rows), failed, measured.metrics, None, digest, kept, asked)


def _fingerprint(models: Sequence[Model]) -> str:
    """SHA-256 of the models' files."""
    return hashlib.sha256(b"".join(model.content for model in models)).hexdigest()


def _finished(
    plan: Plan, path: Path, best: Sequence[Model], stop: Stop | None, rounds: int, seconds: float
) -> tuple[Result, list[ClientRow]]:
    """Test the last and the best models, write them, and say what the run came to; and the last at each client."""
    models, watch = plan.way.models, plan.watch
    last = _measure(plan, models, "test", rounds)
    chosen = last if best is models else _measure(plan, best, "test", rounds)
    name, shown = plan.problem.headline, last if plan.way.alone else chosen
    full = _full(plan, "test", name)
    digest, measured = _fingerprint(models), (chosen.metrics, last.metrics)
    values = outcome(watch, path, stop, rounds, seconds, measured, digest)
    values["headline"] = judged(full, shown.metrics.get(full, math.nan), watch)
    values["clients_counted"] = sum(row.rows >= plan.scenario.evaluate.min_rows for row in last.rows)
    values["clients_asked"] = plan.scenario.evaluate.clients
    _write(plan, path, best, values)
    which = f"round {rounds}, the last" if plan.way.alone else f"round {watch.best_round}"
    least = plan.scenario.evaluate.min_rows
    own = {row.client: next(iter(row.metrics.values())) for row in last.rows if row.rows >= least}
    return Result(path, Weights(torch.empty(0), torch.empty(0)), values, closing_block(values, which), own), last.rows


def _write(plan: Plan, path: Path, best: Sequence[Model], values: Mapping[str, Any]) -> None:
    """The models and `model.json`."""
    folder, models = path / "model", plan.way.models
    files = {"last.json": models[0], "best.json": best[0]}
    if plan.way.alone:
        (folder / "clients").mkdir()
        files = {f"clients/{client}.json": model for client, model in enumerate(models)}
    for name, model in files.items():
        if model.content:
            checkpoints.write(folder / name, model.content)
    card = {
        "architecture": {
            "model": TREES,
            "settings": plan.scenario.model.settings,
            "input_shape": list(plan.federation.x.shape[1:]),
            "trees": max(_trees(model) for model in models),
        },
        "task": plan.federation.task,
        "classes": list(plan.federation.classes),
        "preprocessing": dict(plan.federation.preprocessing),
        "metrics": {
            "protocol": "model/data/weighting/metric",
            "round_chosen_by": values["chosen_by"],
            **values["metrics"],
        },
        "best_round": values["best_round"],
        "privacy": None,
        "fingerprint": values["fingerprint"],
    }
    checkpoints.write(folder / "model.json", (records.to_json(card, indent=2) + "\n").encode())


def _trees(model: Model) -> int:
    """How many trees a model has, one for each class where there are more than two."""
    if not isinstance(model, Forest) or not model.content:
        return 0
    per_round = model.classes if model.classes > 2 else 1
    return int(model.booster.num_boosted_rounds()) * per_round
