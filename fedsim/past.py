"""A run gone back to: server and client as they were before a round, from what the run's folder keeps.

The nearest checkpoint before the round is read, or the initial model taken, and the rounds in between are run again in
this process. The folder is only read, and the run may still be going on.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from flwr.app import ConfigRecord

from fedsim.driving import Driven, StockStrategy, strategy_for
from fedsim.engine.inline import InlineEngine
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.federating import DataSource
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import NumberedGrid, client_number, silenced
from fedsim.job import Job, ModelSource
from fedsim.local import Received, Work, one_thread
from fedsim.own import NOTHING, Own
from fedsim.parameters import fingerprint, to_record
from fedsim.progress import Progress
from fedsim.reading import Records, RoundRow
from fedsim.resuming import restored_jobs, stored
from fedsim.states import ClientStates
from fedsim.stored import Checkpoint, kept_checkpoints, open_run, read_checkpoint
from fedsim.together import Member

PATIENCE = 2.0
"""Seconds of running rounds again after which a person is told how long it will take."""
_SPANS = 12


@dataclass(frozen=True)
class Past:
    """A run whose rounds can be done again.

    Attributes:
        path: its folder.
        job: as it was, but for the time limit of clients: who looks on takes longer.
        work: on that job.
        rounds: committed when it was opened.
    """

    path: Path
    job: Job
    work: Work
    rounds: int


class Before(NamedTuple):
    """What a client had before its round.

    Attributes:
        start: the round whose checkpoint was gone back to; 0 is the initial model.
        received: what the server sent.
        stack: the clients that were trained with it, itself among them, in order, and what they kept; alone where
            clients are trained one by one. Those that failed are silent.
    """

    start: int
    received: Received
    stack: list[Member]


@one_thread()
def reopen(
    path: str | Path,
    *,
    settings: Sequence[str] = (),
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
    data_dir: Path | None = None,
) -> Past:
    """Open a run to go back to.

    Args:
        path: the run's folder.
        settings, model, data, data_dir: as for `resume`.
        own: loss, metrics and transform, as for `resume`.

    Raises:
        RunFolderError: no run folder, or one of an earlier version.
        ScenarioError: what the run was made with is not what there is now.
    """
    path = Path(path)
    with closing(open_run(path)) as records:
        rounds, version = len(records.rounds()), records.version
    if version < 2:
        raise RunFolderError(
            f"{path} was written by an earlier fedsim, with schema {version}; show and export read it, nothing else"
        )
    job, _ = restored_jobs(path, stored(path, None, settings), model, data, own, data_dir)
    cohort = job.scenario.cohort.model_copy(update={"client_timeout": None})
    job = replace(job, scenario=job.scenario.model_copy(update={"cohort": cohort}))
    return Past(path, job, Work(job), rounds)


@one_thread()
def before(past: Past, round: int, client: int, progress: Progress) -> Before:
    """What a client had before a round that it took part in.

    Args:
        past: the run.
        round: a committed one, or the next, such as one whose failures ended the run.
        client: its number.
        progress: is told which rounds are run again, and for how long.

    Raises:
        ScenarioError: no such round or client, the client was not in that cohort, or the rounds in between are not
            those of the run.
    """
    _check(past, round, client)
    with closing(open_run(past.path)) as records:
        for row in kept_checkpoints(past.path, records):
            if row.number < round:
                try:
                    return _since(past, records, row, round, client, progress)
                except RunFolderError as error:  # damaged, or gone while it was read: the run goes on
                    progress.note(f"{error}; what is before it is used")
        return _since(past, records, None, round, client, progress)


def cohorts(job: Job, last: int, since: Checkpoint | None = None) -> Iterator[list[int]]:
    """The cohort of every round up to `last`, from the first or the one after a checkpoint; nobody trains for it.

    A Flower Strategy draws them as it would if nobody had trained: a user's that looks at replies may draw others.
    """
    if job.build_algorithm().flower is not None:
        yield from _driven_cohorts(job, last, since)
        return
    drawn, first = job.cohorts(), 1
    if since is not None:
        first, last_drawn = since.round + 1, since.snapshot.vectors.get("privacy/last")
        drawn.restore(since.snapshot.participations, last_drawn.numpy() if last_drawn is not None else None)
    for number in range(first, last + 1):
        yield drawn.draw(number)


def _driven_cohorts(job: Job, last: int, since: Checkpoint | None) -> Iterator[list[int]]:
    work, grid = Work(job), InlineEngine().grid(job)
    strategy = StockStrategy(work)
    if since is not None:
        strategy.restore(since.round, since.snapshot)
    for number in range(since.round + 1 if since is not None else 1, last + 1):
        yield _drawn(work, strategy, number, grid)


def _drawn(work: Work, strategy: StockStrategy, round: int, grid: NumberedGrid) -> list[int]:
    strategy.configure_train(round, to_record(work.layout, strategy.weights), ConfigRecord(), grid)
    return strategy.cohort


def checkpoint_at(past: Past, records: Records, row: RoundRow) -> Checkpoint:
    """A kept checkpoint; raises as `read_checkpoint` does."""
    stateful = bool(past.work.algorithm.client_state) or past.work.personal is not None
    clients = past.job.federation.clients
    return read_checkpoint(past.path, records, row, past.work.layout, clients, stateful=stateful)


def check_client(past: Past, client: int) -> None:
    """Refuse the number of a client that there is not."""
    clients = past.job.federation.clients
    if not 0 <= client < clients:
        raise ScenarioError(f"client {client}: {past.path} has {clients} clients, 0 to {clients - 1}")


def ranges(what: str, numbers: Sequence[int]) -> str:
    """Numbers in rising order, for people: "rounds 1 to 3, 7", cut after a dozen spans."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts = [text for span in spans for text in (map(str, span) if len(span) < 3 else [f"{span[0]} to {span[-1]}"])]
    more = ["..."] if len(texts) > _SPANS else []
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join([*texts[:_SPANS], *more])}"


def _check(past: Past, round: int, client: int) -> None:
    check_client(past, client)
    last = min(past.rounds + 1, past.job.scenario.rounds)
    if not 1 <= round <= last:
        raise ScenarioError(
            f"round {round}: {past.path} has {past.rounds} committed rounds; 1 to {last} can be done again"
        )


def _since(past: Past, records: Records, row: RoundRow | None, round: int, client: int, progress: Progress) -> Before:
    """From one checkpoint, or the initial model."""
    strategy = strategy_for(past.work)
    states = ClientStates(past.job.federation.clients, past.path / "checkpoints")
    point = checkpoint_at(past, records, row) if row is not None else None
    if point is not None:
        strategy.restore(point.round, point.snapshot)
        states.restore(point.places)
    start = point.round if point is not None else 0
    cohort: Sequence[int] = ()
    if isinstance(strategy, AlgorithmStrategy):
        *_, cohort = cohorts(past.job, round, point)
        _check_cohort(past, round, client, cohort)
    _run_again(past, records, strategy, states, range(start + 1, round), progress)
    if isinstance(strategy, StockStrategy):  # whom it draws may depend on what it has seen
        cohort = _drawn(past.work, strategy, round, InlineEngine().grid(past.job))
        _check_cohort(past, round, client, cohort)
    if client in past.job.absent(round, [client]):
        raise ScenarioError(f"round {round}, client {client}: it dropped out, so there is no work to do again")
    shared = {name: vector.clone() for name, vector in strategy.server.shared.items()}
    clip = strategy.clip if isinstance(strategy, AlgorithmStrategy) else None
    received = Received(strategy.weights, shared, clip)
    failed = (_failed(records, round) | set(past.job.absent(round, cohort))) - {client}
    first = cohort.index(client) // past.work.width * past.work.width
    stack = [
        Member(number, states.get(number, int(strategy.accepted[number])), number in failed)
        for number in cohort[first : first + past.work.width]
    ]
    return Before(start, received, stack)


def _check_cohort(past: Past, round: int, client: int, cohort: Sequence[int]) -> None:
    if client not in cohort:
        took_part = [number for number, each in enumerate(cohorts(past.job, past.rounds), 1) if client in each]
        where = f"it was in {ranges('round', took_part)}" if took_part else "nor in that of any other round"
        raise ScenarioError(f"round {round}, client {client}: it was not in the cohort; {where}")


def _run_again(
    past: Past, records: Records, strategy: Driven, states: ClientStates, rounds: range, progress: Progress
) -> None:
    """Train rounds as they were trained, and nothing else: no evaluation, nothing written."""
    if not rounds:
        return
    many = f"{len(rounds)} rounds, {rounds[0]} to {rounds[-1]}, are" if len(rounds) > 1 else f"round {rounds[0]} is"
    progress.note(f"{many} run again first; no nearer checkpoint is kept")
    prints, same = {row.number: row.fingerprint for row in records.rounds()}, True
    grid, began = InlineEngine().grid(past.job, states), time.perf_counter()
    for done, number in enumerate(rounds):
        spent = time.perf_counter() - began
        if done and spent > PATIENCE:
            left = spent / done * (len(rounds) - done)
            progress.phase(f"round {number} of {rounds[0]} to {rounds[-1]}: about {left:.0f} s left")
        _train(number, records, strategy, grid, past.work)
        states.settle(strategy.accepted)
        if same and (found := fingerprint(strategy.weights)) != prints.get(number):
            same = False
            _say_other(past, number, prints.get(number, "none"), found, progress)
    progress.phase("")


def _say_other(past: Past, round: int, then: str, now: str, progress: Progress) -> None:
    """Say that a round came out otherwise, and go no further where the run promises its bits."""
    text = f"the replay is not the run: after round {round} its fingerprint is {now[:12]}, recorded is {then[:12]}"
    if past.job.scenario.engine.bits == "guaranteed":
        raise ScenarioError(
            f"{text}. Another processor, another version, or code that draws past fedsim.seeds? To see it all the "
            "same: --set 'engine.bits=not guaranteed'"
        )
    progress.note(text)


def _train(number: int, records: Records, strategy: Driven, grid: NumberedGrid, work: Work) -> None:
    """One round's training and server step.

    Clients that failed are not asked: perhaps they were late, or their worker died, and here they would not fail. In
    a stack they keep their places.
    """
    failed = _failed(records, number)
    messages = strategy.configure_train(number, to_record(work.layout, strategy.weights), ConfigRecord(), grid)
    asked = [
        message if client_number(message) not in failed else silenced(message)
        for message in messages
        if work.width > 1 or client_number(message) not in failed
    ]
    strategy.aggregate_train(number, strategy.received(number, grid.send_and_receive(messages=asked)))


def _failed(records: Records, round: int) -> set[int]:
    """The clients of which no training came in a round."""
    return {row.client for row in records.clients(round) if row.phase == "train" and row.status == "failed"}
