"""A run, from a scenario to its folder. Read this file first.

    run       scenario -> job -> engine -> folder
    Run.round sample, train, aggregate, evaluate, commit
    Run.restore the run as a checkpoint has it; `resuming.py` goes on from there

Everything between server and clients goes through Flower's types: a `Strategy` configures messages and
aggregates replies, a `Grid` carries them.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message

from fedsim.background import InOrder
from fedsim.checkpoints import Snapshot
from fedsim.companions import compared, folder_of
from fedsim.data import holdings
from fedsim.data.corpus import Folders
from fedsim.data.federation import Part
from fedsim.data.transform import Transform
from fedsim.driving import quick_collections, strategy_for
from fedsim.engine import Workforce, starting
from fedsim.errors import ClientError, FedsimError, Interrupted, ScenarioError, StoppedByPolicy
from fedsim.federating import DataSource
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import DROPPED_OUT, Asked, NumberedGrid, client_number
from fedsim.job import Job, ModelSource
from fedsim.local import Work, one_thread
from fedsim.measuring import Measuring, on_central_rows, on_clients_rows, together
from fedsim.observers import Observer
from fedsim.own import Loss, Metric, Own
from fedsim.parameters import Weights, fingerprint, to_record
from fedsim.planning import as_scenario, jobs, provenance, sources
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.ledger import EVERYBODY, Ledger
from fedsim.progress import Progress, Silent
from fedsim.records import ClientRow, Event, LedgerRow, RoundRecord, cohort_digest, keep_rows, measured_rows
from fedsim.replies import client_rows, sketches_of
from fedsim.runs import Best, Restored, RunFolder, check_out
from fedsim.scenario import Scenario
from fedsim.signals import Interrupts
from fedsim.stackable import settled
from fedsim.states import ClientStates
from fedsim.stock import TREES
from fedsim.stopping import Stop, Watch, after_replies, largest_updates
from fedsim.summary import Ending, Result, heading, live_figures, model_card, notes, succeeded, summarise
from fedsim.trees import running as trees


def run(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    loss: str | Loss | None = None,
    metrics: Sequence[str | Metric] = (),
    transform: str | Transform | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run a scenario.

    Args:
        scenario: a scenario, its values, a TOML file, or the name of one that comes with fedsim.
        model: a class or function to use instead of the scenario's model.
        data: instead of the scenario's data source, a function that gives a `Corpus`, and is given `folders` and
            `seed` as far as it has parameters of these names; or arrays (x, y) or (x, y, client).
        loss: instead of the task's, (output, target) -> each row's loss [B].
        metrics: beside the task's.
        transform: of inputs, x [N, ...] -> x [N, ...], each row by itself.
        data_dir: where data sets are looked for first.
        out: the run folder, which must not exist; runs/<time>-<scenario>-<id>/ by default.
        progress: is told what goes on; nothing is printed by default.
        observers: are called after each committed round, and at the end; what they raise ends the run, which can
            be resumed.

    Raises:
        FedsimError: the scenario cannot be run as it is; nothing has been written.
        StoppedByPolicy: the run ended by its failure rules; its committed rounds stay.
        Interrupted: by Ctrl-C; its committed rounds stay.
    """
    scenario = as_scenario(scenario)
    progress = progress or Silent()
    check_out(out)
    own = Own(loss, metrics, transform)
    if model is None and scenario.model.name == TREES:
        if own.parts():
            raise ScenarioError(f"model.name = {TREES!r}: trees take no loss, metrics or transform of one's own")
        return trees.run(scenario, data=data, data_dir=data_dir, out=out, progress=progress, observers=observers)
    with starting(scenario.engine, progress.note) as started:
        progress.phase("loading the data")
        job, beside = jobs(scenario, Folders.of(data_dir, scenario.folder), model, data, own)
        progress.phase("starting the workers")
        engine = started()
        job, reason = settled(job)
        with create_folder(job, out) as folder:
            result = succeeded(execute(job, engine, folder, progress, observers, reason=reason))
            others = {}
            for place, (each, why) in [(place, settled(each)) for place, each in beside]:
                with create_folder(each, folder_of(place, folder.path)) as inner:
                    others[place] = execute(each, engine, inner, progress, observers, reason=why)
            result = compared(result, others)
            progress.end(result.lines)
            return result


def run_job(
    job: Job, engine: Workforce, out: Path | None, progress: Progress, observers: Sequence[Observer] = ()
) -> Result:
    """Run a prepared job on a running engine and leave its folder."""
    job, reason = settled(job)
    with create_folder(job, out) as folder:
        return succeeded(execute(job, engine, folder, progress, observers, reason=reason))


@one_thread()
def create_folder(job: Job, out: Path | None, more: Mapping[str, Any] = {}) -> RunFolder:
    """The folder of a new run; `more` is what `environment.json` says besides."""
    scenario = job.scenario
    return RunFolder.create(
        out,
        Path(scenario.origin).stem,
        scenario.to_toml(),
        sources(job),
        {**provenance(job), **more},
        partition=holdings.record(job.federation),
        keep=scenario.checkpoint.keep,
    )


@one_thread()
def execute(
    job: Job,
    engine: Workforce,
    folder: RunFolder,
    progress: Progress,
    observers: Sequence[Observer] = (),
    *,
    resumed: bool = False,
    reason: str = "",
    interrupts: Interrupts | None = None,
) -> Result:
    """Do what is left of a run in its folder: all of a new one, or what comes after the last sound checkpoint.

    A run that its failure rules end has a result too, whose status is "stopped". `reason` says why clients that should
    be trained at once are not, and is recorded. `interrupts` are those of several runs, after each of which it can be
    seen whether to go on.
    """
    scenario, interrupts = job.scenario, interrupts or Interrupts()
    work = Work(job)
    clients, start = job.federation.clients, work.initial
    restored = folder.restore(work.layout, clients, start, progress.note) if resumed else None
    told = (*notes(work), *([reason] if reason else []))
    progress.begin(scenario.title, heading(work, engine.description), told, scenario.rounds)
    progress.phase("installing the job on the workers")
    grid = engine.grid(job, ClientStates(clients, folder.checkpoints))
    watch = Watch.of(scenario, work.problem, job.federation)
    with Run(work, grid, folder, watch, interrupts, progress, observers) as running:
        running.tell(reason)
        stop = running.restore(restored) if restored is not None else None
        with interrupts.listening(progress.note), quick_collections():
            number = running.done
            while stop is None and number < scenario.rounds:
                stop = running.round(number := number + 1)
                if interrupts.asked and stop is None and running.resumable == running.done < scenario.rounds:
                    raise KeyboardInterrupt
        result = running.finish(stop)
    for observer in observers:
        observer.run_finished(result)
    return result


@dataclass(frozen=True)
class Model:
    """The global model: as Flower sends it, and flat."""

    record: ArrayRecord
    weights: Weights


@dataclass(frozen=True)
class OpenRound:
    """A round that has trained, whose evaluation goes on while the next one begins.

    Attributes:
        number: its own.
        model: the global model after it.
        measuring: its validation.
        rows: of its clients; evaluation adds its own.
        replies: to its training.
        accounts: what it has spent.
        sketches: of its clients' updates.
        epsilon: the largest, with it.
        snapshot: what the next round depends on.
    """

    number: int
    model: Model
    measuring: Measuring
    rows: list[ClientRow]
    replies: Sequence[Message]
    accounts: Sequence[LedgerRow]
    sketches: Mapping[int, Sequence[float]]
    epsilon: float | None
    snapshot: Snapshot


class Run:
    """A run in progress; a context, which waits for what is being committed and says what an interrupt leaves.

    Attributes:
        done: number of rounds done; the last of them may still be on its way to the disk.
        resumable: the last round with a checkpoint, likewise.
        model: the global model after them.
        best: the best round so far on validation and its model.
    """

    def __init__(
        self,
        work: Work,
        grid: NumberedGrid,
        folder: RunFolder,
        watch: Watch,
        interrupts: Interrupts,
        progress: Progress,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.scenario = work.job.scenario
        self.strategy = strategy_for(work)
        self.ledger = Ledger(work.job.privacy, work.job.identity) if work.job.privacy is not None else None
        self.model = Model(to_record(work.layout, work.initial), work.initial)
        self.best = Best(0, work.initial)
        self.done = self.resumable = 0
        self._work, self._grid, self._folder, self._watch = work, grid, folder, watch
        self._interrupts, self._progress, self._observers = interrupts, progress, observers
        self._commits = InOrder()
        self._leaving = self._uncommitted = False
        self._open: OpenRound | None = None
        self._events: list[Event] = []
        self._started = self._clock = time.perf_counter()

    def tell(self, reason: str) -> None:
        """Have a reason recorded with the first round; none that is empty."""
        if reason:
            self._events.append(Event("one by one", reason))

    def restore(self, restored: Restored) -> Stop | None:
        """Take over a run as it was after a checkpoint; the reason for which it had ended there, if it had."""
        self.strategy.restore(restored.round, restored.snapshot)
        if self.ledger is not None:
            self.ledger.restore(restored.snapshot.participations, restored.round)
        self._grid.states.restore(restored.places)
        self.model = Model(to_record(self._work.layout, self.strategy.weights), self.strategy.weights)
        self.best = restored.best
        self.done = self.resumable = restored.round
        stop = None
        for row, metrics in restored.history:
            clients = restored.clients if row.number == self.done else ()
            self._watch.spent += row.seconds
            stop = self._watch.after(row.number, metrics, clients)
        if self.best.round != self._watch.best_round:  # another one stands for a model that is lost
            self._watch.best_round, self._watch.best_value = self.best.round, math.nan
        self._started -= self._watch.spent
        self._progress.note(f"resumed after round {restored.round}")
        return stop

    def round(self, number: int) -> Stop | None:
        """One round; or a reason to end the run, whose rounds until then are committed.

        The round's own evaluation and commit may be left to go on while the next one trains.
        """
        try:
            stop = self._round(number)
        except StoppedByPolicy as error:
            stop = Stop("failure", str(error), failed=True)
        last = stop is not None or number == self.scenario.rounds or self._interrupts.asked
        if last or not isinstance(self.strategy, AlgorithmStrategy):  # Flower's may change with what is measured
            return self._complete(last=last) or stop
        if self._released_once:
            stop = self._complete()
            self._settle()
            return stop
        return None

    @property
    def _released_once(self) -> bool:
        """Whether a round's model must be on the disk before clients get it.

        Under secret noise a round that a kill undid would be noised anew, and two models of it be out for one charge.
        """
        level = self.scenario.privacy.level
        return level == "client" and not self._grid.sums

    def _round(self, number: int) -> Stop | None:
        model = self._open.model if self._open is not None else self.model
        messages = self.strategy.configure_train(number, model.record, ConfigRecord(), self._grid)
        if (stop := self._spent_budget(number)) is not None:
            return stop
        if self.ledger is not None:
            self.ledger.charge(self.strategy.drawn)
        absent = self._work.job.absent(number, [client_number(message) for message in messages])
        asked = Asked(self._grid, messages, absent, stacked=self._work.width > 1)
        if (stop := self._complete()) is not None:
            asked.drop()
            return stop
        self._progress.phase(f"round {number}: training")
        replies = self.strategy.received(number, asked.answers())
        if (stop := self._failed(number, replies)) is not None:
            return stop
        accounts = self.ledger.rows(self.strategy.drawn) if self.ledger is not None else []
        rows = self._rows(number, messages, replies, accounts)
        try:
            arrays, _ = self.strategy.aggregate_train(number, replies)
        except (StoppedByPolicy, ClientError) as error:
            return self._not_committed(error, rows)
        self._unused(self.strategy.unused)
        model = Model(arrays, self.strategy.weights) if arrays is not None else model
        epsilon = self.ledger.largest() if self.ledger is not None else None
        measuring = self._validate(number, model, rows)
        sketches = sketches_of(messages, replies)
        now = self.strategy.snapshot()
        self._open = OpenRound(number, model, measuring, rows, replies, accounts, sketches, epsilon, now)
        return None

    def _complete(self, *, last: bool = False) -> Stop | None:
        """Wait for the evaluation of the round that is open, if one is, and commit it; a reason to end the run then.

        With `last` no round comes after it.
        """
        opened, self._open = self._open, None
        if opened is None:
            return None
        try:
            metrics = opened.measuring()
        except ClientError as error:
            stop: Stop | None = self._not_committed(error, opened.rows)
        else:
            stop = self._watch.after(opened.number, metrics, opened.rows)
            self._commit(opened, metrics, last=last or stop is not None or self._interrupts.asked)
        if stop is not None:  # the next round may have been drawn already
            self.strategy.restore(opened.number, opened.snapshot)
            if self.ledger is not None:
                self.ledger.restore(opened.snapshot.participations, opened.number)
        return stop

    def _not_committed(self, error: FedsimError, rows: Sequence[ClientRow]) -> Stop:
        """The end of a run whose round cannot be committed."""
        self._uncommitted = True
        return Stop("failure", f"{error}{largest_updates(rows)}", failed=True)

    def finish(self, stop: Stop | None) -> Result:
        """Test the last and the best model, and write the summary."""
        self._settle()
        self._progress.phase("testing the last and the best model")
        clients: list[ClientRow] = []
        personal = self._work.algorithm.personalised and not self._uncommitted  # clients' states are of that round
        last = self._test(self.model.record, personal, clients)
        same = self.best.round == self.done
        best = last if same else self._test(to_record(self._work.layout, self.best.weights), False, [])
        seconds = time.perf_counter() - self._started
        ending = Ending(stop, self.done, seconds, self.model.weights, last, best, clients)
        result = summarise(self._work, self._folder.path, self._watch, self.ledger, ending)
        events = [*self._events, *([Event(stop.kind, stop.reason)] if stop is not None else [])]
        self._folder.finish(
            result.values,
            model_card(self._work, result),
            self._work.layout,
            self.model.weights,
            self.best,
            constants=self._work.plain.constants,
            ledger=self.ledger.rows() if self.ledger is not None else (),
            events=events,
            tests=measured_rows(keep_rows(clients, self.scenario.records.clients, self.scenario.seed)),
        )
        return result

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._commits.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            path, kept = self._folder.path, self._folder.committed
            advice = f"go on with: fedsim resume {self._folder.whole}"
            raise Interrupted(f"interrupted; {path} keeps {kept} committed rounds; {advice}") from None

    def _spent_budget(self, number: int) -> Stop | None:
        """A reason not to run the round whose cohort has just been sampled."""
        if self.ledger is None:
            return None
        if self.ledger.exhausted:
            return Stop("budget", "every client has spent its privacy budget")
        limit = self.scenario.stop.epsilon
        if limit is not None and (epsilon := self.ledger.after(self.strategy.drawn).largest()) > limit:
            return Stop("budget", f"round {number} would spend epsilon {rounded_up(epsilon, 3)}, more than {limit:g}")
        return None

    def _failed(self, number: int, replies: Sequence[Message]) -> Stop | None:
        """A reason to end the run because of what clients answered; none at client level, which does not cover that."""
        if self.scenario.privacy.client is not None:
            return None
        errors = [reply.error for reply in replies if reply.has_error()]
        reasons = [str(error.reason) for error in errors if error.code != DROPPED_OUT]
        stop = after_replies(number, reasons, len(replies), self.scenario.cohort, len(errors) - len(reasons))
        if stop is not None:
            self._events += [Event("client failed", reason) for reason in reasons]  # no round will record them
        return stop

    def _unused(self, reason: str | None) -> None:
        """Note a round whose answers were too few for what combines them."""
        if reason is not None:
            self._events.append(Event("round unused", reason))
            self._progress.note(reason)

    def _rows(
        self, number: int, messages: Sequence[Message], replies: Sequence[Message], accounts: Sequence[LedgerRow]
    ) -> list[ClientRow]:
        spent = {account.client: account.epsilon for account in accounts}
        epsilons = [spent.get(client_number(message), spent.get(EVERYBODY)) for message in messages]
        return client_rows(number, messages, replies, self._work, epsilons)

    def _validate(self, number: int, model: Model, rows: list[ClientRow]) -> Measuring:
        """Begin to measure a round's model on validation rows; clients' own rows are added to `rows`."""
        last, settings = number == self.scenario.rounds, self.scenario.evaluate
        begun: list[Measuring] = []
        if last or number % settings.every == 0:
            self._progress.phase(f"round {number}: evaluating on the central validation set")
            begun.append(on_central_rows(self._work, self._grid, model.record, "validation"))
        if settings.clients_every and (last or number % settings.clients_every == 0):
            self._progress.phase(f"round {number}: evaluating on clients' own rows")
            personal = self._work.algorithm.personalised
            begun.append(self._on_clients(number, model.record, "validation", rows, personal))
        return together(begun)

    def _test(self, model: ArrayRecord, personal: bool, rows: list[ClientRow]) -> dict[str, float]:
        """Test metrics of a model, and of clients' own beside the last; clients' rows are added to `rows`.

        Nothing where it cannot be measured, which then is why the run has ended.
        """
        begun = [on_central_rows(self._work, self._grid, model, "test")]
        if self.scenario.evaluate.clients_every:
            begun.append(self._on_clients(self.done, model, "test", rows, personal))
        try:
            return together(begun)()
        except ClientError:
            return {}

    def _on_clients(
        self, number: int, model: ArrayRecord, part: Part, rows: list[ClientRow], personal: bool
    ) -> Measuring:
        config = ConfigRecord({"part": part, "personal": personal})
        messages = self.strategy.configure_evaluate(number, model, config, self._grid)
        return on_clients_rows(self._work, self._grid, self.strategy, number, messages, rows)

    def _commit(self, opened: OpenRound, metrics: dict[str, float], *, last: bool) -> None:
        """Have a round made durable while the next one trains, and only then have it said that it is done."""
        self._settle()
        number, model, now = opened.number, opened.model, time.perf_counter()
        kept = keep_rows(opened.rows, self.scenario.records.clients, self.scenario.seed)
        clients = {row.client for row in kept}
        record = RoundRecord(
            number=number,
            seconds=now - self._clock,
            cohort=len(opened.replies),
            failed=sum(reply.has_error() for reply in opened.replies),
            metrics=metrics,
            epsilon=opened.epsilon,
            fingerprint="",  # found while it is being committed, as the cohort's digest is
            clients=kept,
            sketches={client: sketch for client, sketch in opened.sketches.items() if client in clients},
        )
        self.done, self.model, self._clock = number, model, now
        if self._watch.best_round == number:
            self.best = Best(number, model.weights)
        states, leaving = self._grid.states, None
        states.settle(opened.snapshot.accepted)
        if last or number == self.scenario.rounds or number % self.scenario.checkpoint.every == 0:
            leaving, self._leaving, self.resumable = states.leave(), True, number
        layout, best = self._work.layout, self.best

        whole: list[RoundRecord] = []

        def commit() -> None:
            asked = cohort_digest(row.client for row in opened.rows if row.phase == "train")
            whole.append(replace(record, fingerprint=fingerprint(model.weights), cohort_sha256=asked))
            self._folder.commit(whole[0], layout, opened.snapshot, best, states=leaving, ledger=opened.accounts)
            self._progress.round(whole[0], live_figures(self._work, record.metrics))

        self._commits.start(commit)
        if self._observers:
            self._settle()
        for observer in self._observers:
            observer.round_finished(whole[0])

    def _settle(self) -> None:
        """Wait until the last round is on the disk."""
        self._commits.wait()
        if self._leaving:
            self._grid.states.left(self.resumable)
            self._leaving = False
