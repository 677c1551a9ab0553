"""A run, from a scenario to its folder. Read this file first.

    run       scenario -> job -> engine -> folder
    Run.round sample, train, aggregate, evaluate, commit

Everything between server and clients goes through Flower's types: a `Strategy` configures messages and
aggregates replies, a `Grid` carries them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message

from fedsim import scenario as scenarios
from fedsim.data.corpus import Folders
from fedsim.data.federation import CentralPart, Part
from fedsim.engine import Engine, start_engine
from fedsim.environment import environment
from fedsim.errors import ClientError, Interrupted, StoppedByPolicy
from fedsim.evaluation import central_metrics
from fedsim.flower import AlgorithmStrategy, central_messages
from fedsim.forecast import Line
from fedsim.forecast import forecast as forecast_work
from fedsim.grid import SimulatedGrid
from fedsim.job import CorpusSource, Job, ModelSource, check_algorithm, named, prepare
from fedsim.local import Work, one_thread
from fedsim.machine import cores
from fedsim.model import model_files, model_reference
from fedsim.parameters import Weights, fingerprint, layout_of, to_record
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.ledger import Ledger
from fedsim.progress import Progress, Silent
from fedsim.records import ClientRow, Event, RoundRecord
from fedsim.replies import client_row, total_statistics
from fedsim.runs import RunFolder, check_out
from fedsim.scenario import Scenario
from fedsim.stopping import Stop, Watch
from fedsim.summary import Ending, Result, heading, live_figures, model_card, notes, summarise, with_price


def run(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    model: ModelSource | None = None,
    data: CorpusSource | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a scenario.

    Args:
        scenario: a scenario, its values, a TOML file, or the name of one that comes with fedsim.
        model: a class or function to use instead of the scenario's model.
        data: a function (folders) -> Corpus to use instead of the scenario's data source.
        data_dir: where data sets are looked for first.
        out: the run folder, which must not exist; runs/<time>-<scenario>-<id>/ by default.
        progress: is told what goes on; nothing is printed by default.

    Raises:
        FedsimError: the scenario cannot be run as it is; nothing has been written.
        StoppedByPolicy: the run ended by its failure rules; its committed rounds stay.
        Interrupted: by Ctrl-C; its committed rounds stay.
    """
    scenario = as_scenario(scenario)
    progress = progress or Silent()
    progress.phase("loading the data")
    job, plain_job = _jobs(scenario, Folders.of(data_dir, scenario.folder), model, data)
    check_out(out)
    progress.phase("starting the workers")
    engine = start_engine(scenario.engine)
    try:
        result = run_job(job, engine, out, progress)
        if plain_job is not None:
            plain = run_job(plain_job, engine, result.folder / "without-privacy", progress)
            result = with_price(result, plain)
        progress.end(result.lines)
        return result
    finally:
        engine.close()


def as_scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    """A scenario from what `run` takes."""
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return scenarios.parse(scenario, Path.cwd(), "scenario")
    return scenarios.load(str(scenario))


def forecast(scenario: Scenario, data_dir: Path | None) -> list[Line]:
    """What a scenario would cost; one client is trained to measure it, nothing is written."""
    job, _ = _jobs(scenario, Folders.of(data_dir, scenario.folder))
    workers = 1 if scenario.engine.kind == "inline" else scenario.engine.workers or cores()
    return forecast_work(Work(job), workers)


def fast(scenario: Scenario) -> Scenario:
    """The same scenario cut down to a check of all its parts: two clients, two batches, one evaluation."""
    cuts = {
        "rounds": 1,
        "cohort.size": 1 if scenario.data.partition.get("clients") == 1 else 2,
        "train.steps": 2,
        "stop": {},
        "privacy": scenario.privacy.model_copy(update={"without": None}).model_dump(exclude_none=True),
    }
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


def _jobs(
    scenario: Scenario, folders: Folders, model: ModelSource | None = None, data: CorpusSource | None = None
) -> tuple[Job, Job | None]:
    """The job, and the one without privacy to be run beside it; whatever is wrong is told before anything starts."""
    job = prepare(scenario, folders, model, data)
    Watch.of(scenario, job.build_problem(), job.federation)
    return job, without_privacy(job) if scenario.privacy.without is not None else None


@one_thread()
def run_job(job: Job, engine: Engine, out: Path | None, progress: Progress) -> Result:
    """Run a prepared job on a running engine and leave its folder."""
    scenario = job.scenario
    work = Work(job)
    watch = Watch.of(scenario, work.problem, job.federation)
    folder = RunFolder.create(
        out,
        Path(scenario.origin).stem,
        scenario.to_toml(),
        [*scenario.own_files(), *model_files(job.model)],
        environment(job.federation.digest, corpus=job.federation.corpus, model=model_reference(job.model)),
        keep=scenario.checkpoint.keep,
    )
    with folder:
        progress.begin(scenario.title, heading(work, engine.description), notes(work), scenario.rounds)
        progress.phase("installing the job on the workers")
        running = Run(work, engine.grid(job), folder, watch, progress)
        stop = None
        with running.interruptible():
            while stop is None and running.done < scenario.rounds:
                stop = running.round(running.done + 1)
            result = running.finish(stop)
    if stop is not None and stop.failed:
        raise StoppedByPolicy(f"{stop.reason} {folder.path} keeps {running.done} committed rounds.")
    return result


@dataclass(frozen=True)
class Model:
    """The global model: as Flower sends it, and flat."""

    record: ArrayRecord
    weights: Weights


class Run:
    """A run in progress.

    Attributes:
        done: number of committed rounds.
        model: the global model after them.
        best: the model of the best round so far on validation.
    """

    def __init__(self, work: Work, grid: SimulatedGrid, folder: RunFolder, watch: Watch, progress: Progress) -> None:
        self.scenario = work.job.scenario
        self.strategy = AlgorithmStrategy(work)
        self.ledger = Ledger(work.job.privacy) if work.job.privacy is not None else None
        self.model = self.best = Model(to_record(work.layout, work.initial), work.initial)
        self.done = 0
        self._work, self._grid, self._folder, self._watch, self._progress = work, grid, folder, watch, progress
        self._failures: list[Event] = []
        self._started = time.perf_counter()

    def round(self, number: int) -> Stop | None:
        """One round, committed; or a reason to end the run before or after it."""
        clock = time.perf_counter()
        self._progress.phase(f"round {number}: training")
        messages = self.strategy.configure_train(number, self.model.record, ConfigRecord(), self._grid)
        if (stop := self._spent_budget(number)) is not None:
            return stop
        if self.ledger is not None:
            self.ledger.charge(self.strategy.cohort)
        replies = self._grid.send_and_receive(messages=messages)
        if (stop := self._failed(number, replies)) is not None:
            return stop
        rows = [client_row(number, *pair, self._work) for pair in zip(messages, replies, strict=True)]
        try:
            arrays, _ = self.strategy.aggregate_train(number, replies)
            model = Model(arrays, self.strategy.weights) if arrays is not None else self.model
            metrics = self._validate(number, model, rows)
        except (StoppedByPolicy, ClientError) as error:
            return Stop("failure", str(error), failed=True)
        record = RoundRecord(
            number=number,
            seconds=time.perf_counter() - clock,
            cohort=len(messages),
            failed=sum(reply.has_error() for reply in replies),
            metrics=metrics,
            epsilon=self.ledger.largest() if self.ledger is not None else None,
            fingerprint=fingerprint(model.weights),
            clients=rows,
        )
        stop = self._watch.after(number, metrics)
        self._commit(record, model)
        return stop

    def finish(self, stop: Stop | None) -> Result:
        """Test the last and the best model, and write the summary."""
        self._progress.phase("testing the last and the best model")
        last = self._test(self.model)
        best = last if self.best is self.model else self._test(self.best)
        seconds = time.perf_counter() - self._started
        ending = Ending(stop, self.done, seconds, self.model.weights, last, best)
        result = summarise(self._work, self._folder.path, self._watch, self.ledger, ending)
        events = [*self._failures, *([Event(stop.kind, stop.reason)] if stop is not None else [])]
        card = model_card(self._work, result)
        self._folder.finish(
            result.values,
            card,
            self._work.layout,
            self.model.weights,
            constants=self._work.plain.constants,
            ledger=self.ledger.rows() if self.ledger is not None else (),
            events=events,
        )
        return result

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Say what stays when the user interrupts."""
        try:
            yield
        except KeyboardInterrupt:
            kept = self._folder.committed  # perhaps one more than `done`: the interrupt may follow a commit at once
            raise Interrupted(f"interrupted; {self._folder.path} keeps {kept} committed rounds") from None

    def _spent_budget(self, number: int) -> Stop | None:
        """A reason not to run the round whose cohort has just been sampled."""
        if self.ledger is None:
            return None
        if self.ledger.exhausted:
            return Stop("budget", "every client has spent its privacy budget")
        limit = self.scenario.stop.epsilon
        if limit is not None and (epsilon := self.ledger.after(self.strategy.cohort).largest()) > limit:
            return Stop("budget", f"round {number} would spend epsilon {rounded_up(epsilon, 3)}, more than {limit:g}")
        return None

    def _failed(self, number: int, replies: Sequence[Message]) -> Stop | None:
        """A reason to end the run because of what clients answered."""
        reasons = [reply.error.reason for reply in replies if reply.has_error()]
        if not reasons:
            return None
        everyone, fails = len(reasons) == len(replies), self.scenario.cohort.on_client_error == "fail"
        if not everyone and not fails:
            return None
        self._failures = [Event("client failed", str(reason)) for reason in reasons]  # no round will record them
        if everyone:
            return Stop("failure", f"round {number}: all {len(replies)} clients failed, e.g. {reasons[0]}", failed=True)
        return Stop("failure", f"{reasons[0]} (cohort.on_client_error is fail)", failed=True)

    def _validate(self, number: int, model: Model, rows: list[ClientRow]) -> dict[str, float]:
        """The round's validation metrics; clients' own rows are added to `rows`."""
        last = number == self.scenario.rounds
        metrics: dict[str, float] = {}
        if last or number % self.scenario.evaluate.every == 0:
            self._progress.phase(f"round {number}: evaluating on the central validation set")
            metrics |= self._centrally(model, "validation")
        every = self.scenario.evaluate.clients_every
        if every and (last or number % every == 0):
            self._progress.phase(f"round {number}: evaluating on clients' own rows")
            metrics |= self._on_clients(number, model, "validation", rows)
        return metrics

    def _test(self, model: Model) -> dict[str, float]:
        """Test metrics of a model; none where it cannot be measured, which then is why the run has ended."""
        try:
            metrics = self._centrally(model, "test")
            if self.scenario.evaluate.clients_every:
                metrics |= self._on_clients(self.done, model, "test", [])
        except ClientError:
            return {}
        return metrics

    def _centrally(self, model: Model, part: CentralPart) -> dict[str, float]:
        rows = len(self._work.federation.central[part].x)
        if not rows:
            return {}
        messages = central_messages(model.record, part, rows, self.scenario.evaluate.batch_size)
        statistics = total_statistics(self._grid.send_and_receive(messages=messages))
        return central_metrics(self._work.problem, statistics, part)

    def _on_clients(self, number: int, model: Model, part: Part, rows: list[ClientRow]) -> dict[str, float]:
        config = ConfigRecord({"part": part})
        messages = self.strategy.configure_evaluate(number, model.record, config, self._grid)
        replies = self._grid.send_and_receive(messages=messages)
        failed = next((str(reply.error.reason) for reply in replies if reply.has_error()), None)
        if failed is not None and self.scenario.cohort.on_client_error == "fail":
            raise ClientError(f"{failed} (cohort.on_client_error is fail)")
        rows += [client_row(number, *pair, self._work) for pair in zip(messages, replies, strict=True)]
        metrics = self.strategy.aggregate_evaluate(number, replies)
        return {name: float(value) for name, value in metrics.items()} if metrics is not None else {}  # type: ignore[arg-type]

    def _commit(self, record: RoundRecord, model: Model) -> None:
        """Make the round durable, and only then say that it is done."""
        best = self._watch.best_round == record.number
        ledger = self.ledger.rows(self.strategy.cohort) if self.ledger is not None else ()
        self._folder.commit(
            record,
            self._work.layout,
            model.weights,
            self.strategy.vectors,
            constants=self._work.plain.constants,
            ledger=ledger,
            best=best,
        )
        self.done, self.model = record.number, model
        if best:
            self.best = model
        self._progress.round(record, live_figures(self._work, record.metrics))
