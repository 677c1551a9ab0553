"""One client's work in a past round, done again in this process, to the same bits: `fedsim replay`."""

import bdb
import pdb
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fedsim import seeds
from fedsim.algorithm import Local, Upload
from fedsim.errors import ClientError, Interrupted
from fedsim.federating import DataSource
from fedsim.job import ModelSource
from fedsim.local import Contribution, Work, one_thread
from fedsim.overview import figure
from fedsim.own import NOTHING, Own
from fedsim.past import Before, Past, before, reopen
from fedsim.progress import Progress, Silent, wrapped
from fedsim.records import ClientRow, finite
from fedsim.stored import open_run
from fedsim.together import train_together
from fedsim.training import Step


class Verdict(NamedTuple):
    """Whether a replay is what was recorded.

    Attributes:
        same: norm, loss and steps, or the failure; None with nothing to compare.
        text: what differs, or why there is nothing.
    """

    same: bool | None
    text: str


@dataclass(frozen=True)
class Replay:
    """A client's work in a round, done again.

    Attributes:
        folder: of the run.
        round, client: their numbers.
        name: of the client.
        start: the round whose checkpoint was gone back to; 0 is the initial model.
        private: whether gradients were clipped and noised, by example-level privacy.
        steps: of the local optimiser, up to a failure.
        contribution: what the client sent; None where it failed.
        update: [D] by which it moved the model's parameters; None where it failed.
        error: why it failed; None where it did not.
        recorded: its row in `run.db`; None where there is none.
        verdict: whether it is what was recorded.
    """

    folder: Path
    round: int
    client: int
    name: str
    start: int
    private: bool
    steps: Sequence[Step]
    contribution: Contribution | None
    update: Tensor | None
    error: str | None
    recorded: ClientRow | None
    verdict: Verdict


def replay(
    path: str | Path,
    round: int,
    client: int,
    *,
    settings: Sequence[str] = (),
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Replay:
    """Do a client's work in a round again.

    Args:
        path: the run's folder.
        round: a committed one, or the next, such as one whose failures ended the run.
        client: its number.
        settings, model, data, data_dir: as for `resume`.
        own: loss, metrics and transform, as for `resume`.
        progress: is told which rounds are run again, and for how long.
        debug: start pdb at the first line of the client half, and where the client fails.

    Raises:
        RunFolderError: no run folder, or one of an earlier version.
        ScenarioError: no such round or client, the client was not in that cohort, what the run was made with is not
            what there is now, or the rounds in between are not those of the run.
        Interrupted: the debugger was quit.
    """
    progress = progress or Silent()
    progress.phase("loading the data")
    past = reopen(path, settings=settings, model=model, data=data, own=own, data_dir=data_dir)
    return done_again(past, round, client, progress, debug=debug)


@one_thread()
def done_again(past: Past, round: int, client: int, progress: Progress, *, debug: bool = False) -> Replay:
    """Do a client's work in a round of an opened run again; arguments and errors are those of `replay`."""
    was = before(past, round, client, progress)
    progress.phase("")
    steps: list[Step] = []
    made, failure = None, None
    with seeds.preserved(), _halting(past.work) if debug else nullcontext():
        try:
            made = _trained(past.work, round, client, was, steps)
        except ClientError as raised:
            failure = raised
        except _Quit:
            raise Interrupted("the debugger was quit before the client's work was done") from None
    if failure is not None and debug:
        _post_mortem(failure, progress)
    error = str(failure) if failure is not None else None
    recorded, failed_then = _recorded(past, round, client)
    return Replay(
        folder=past.path,
        round=round,
        client=client,
        name=past.job.federation.names[client],
        start=was.start,
        private=past.job.scenario.privacy.example is not None,
        steps=steps,
        contribution=made,
        update=made.vector[: past.work.layout.size] if made is not None else None,
        error=error,
        recorded=recorded,
        verdict=_verdict(past, round, recorded, failed_then, made, error),
    )


def _trained(work: Work, round: int, client: int, was: Before, steps: list[Step]) -> Contribution:
    """The client's work, with that of the clients that were trained with it."""
    place = [member.number for member in was.stack].index(client)
    if work.width == 1:
        return work.train(client, round, was.received, was.stack[place].state, steps)
    result = train_together(work, was.stack, round, was.received, {client: steps})[place]
    if isinstance(result, ClientError):
        raise result
    return result


def replay_lines(done: Replay) -> list[str]:
    """For people, at most 80 columns."""
    name = f" ({done.name})" if done.name != str(done.client) else ""
    origin = f"the checkpoint of round {done.start}" if done.start else "the initial model"
    lines = wrapped(f"round {done.round}, client {done.client}{name}, again from {origin}")
    if done.private:
        lines.append("gradient: as the optimiser took it, clipped row by row, summed and noised")
    lines += ["", *_step_lines(done.steps), ""]
    if (made := done.contribution) is not None:
        steps = f"{made.steps} step{'' if made.steps == 1 else 's'}"
        lines.append(f"update: norm {figure(made.norm)}, mean loss {figure(made.loss)}, {steps}")
    else:
        lines += wrapped(f"failed: {done.error}")
    return [*lines, *wrapped(done.verdict.text)]


def as_data(done: Replay) -> dict[str, Any]:
    """For programs."""
    made, row = done.contribution, done.recorded
    return {
        "folder": str(done.folder),
        "round": done.round,
        "client": done.client,
        "name": done.name,
        "from_round": done.start,
        "private": done.private,
        "steps": [step._asdict() for step in done.steps],
        "update": {name: getattr(made, name) for name in _FIGURES} if made is not None else None,
        "error": done.error,
        "recorded": {name: getattr(row, name) for name in ("status", "error", *_FIGURES)} if row is not None else None,
        "same": done.verdict.same,
        "verdict": done.verdict.text,
    }


_FIGURES = ("norm", "loss", "steps")
"""What is recorded of a client's training and comes out again; its seconds do not."""


class _Quit(BaseException):
    """The debugger was quit: no failure of a client, after which others of its stack would be tried."""


@contextmanager
def _halting(work: Work) -> Iterator[None]:
    """Have pdb stop at the first line of the client half."""
    algorithm = work.algorithm

    def halted(local: Local) -> Upload:
        debugger = pdb.Pdb(nosigint=True)  # Ctrl-C ends the command, as ever
        debugger.reset()
        sys.settrace(debugger.trace_dispatch)  # `runcall` would swallow that the user quits
        try:
            return algorithm.client(local)
        except bdb.BdbQuit:
            raise _Quit from None
        finally:
            sys.settrace(None)

    work.algorithm = replace(algorithm, client=halted)
    try:
        yield
    finally:
        work.algorithm = algorithm


def _post_mortem(failure: ClientError, progress: Progress) -> None:
    cause = failure.__cause__ or failure
    progress.note(str(failure))
    pdb.post_mortem(cause.__traceback__)


def _recorded(past: Past, round: int, client: int) -> tuple[ClientRow | None, str | None]:
    """A client's row of a round, and what it failed with: by the row, or the events of a round that ended the run."""
    with closing(open_run(past.path)) as records:
        row = next((row for row in records.clients(round, client) if row.phase == "train"), None)
        if row is not None:
            return row, row.error
        told = [event.message for event in records.events() if event.kind == "client failed"]
    own = f"round {round}, client {client}: "
    return None, next((text for text in told if text.startswith(own)), None)


def _verdict(
    past: Past,
    round: int,
    row: ClientRow | None,
    failed_then: str | None,
    made: Contribution | None,
    error: str | None,
) -> Verdict:
    if failed_then is not None and failed_then == error:
        return Verdict(True, "failed as recorded, in the same words")
    if failed_then is not None:
        return Verdict(False, f"not as recorded: then it failed, {failed_then}")
    if row is not None:
        return _figures_verdict(row, made)
    if round > past.rounds:
        return Verdict(None, f"nothing to compare with: round {round} has not been committed")
    choice = past.job.scenario.records.clients
    return Verdict(None, f"nothing to compare with: records.clients = {choice!r} left this client's row out")


def _figures_verdict(row: ClientRow, made: Contribution | None) -> Verdict:
    if made is None:
        return Verdict(False, "not as recorded: then it did not fail")
    pairs = {name: (getattr(row, name), finite(getattr(made, name))) for name in _FIGURES}
    odd = [f"{name} {then!r} then, {now!r} now" for name, (then, now) in pairs.items() if then != now]
    if not odd:
        return Verdict(True, "same as recorded, to the bit: norm, loss and steps")
    stack = f"; then {row.stack} clients were trained at once" if row.stack > 1 else ""
    return Verdict(False, f"not as recorded: {'; '.join(odd)}{stack}")


def _step_lines(steps: Sequence[Step]) -> list[str]:
    if not steps:
        return ["no step was taken"]
    several = len({step.training for step in steps}) > 1
    lines = [f"{'step':>6}{'  training' if several else ''}{'loss':>12}{'gradient':>12}{'rate':>12}"]
    for number, step in enumerate(steps, 1):
        training = f"{step.training:>10}" if several else ""
        figures = "".join(f"{figure(value):>12}" for value in (step.loss, step.norm, step.learning_rate))
        lines.append(f"{number:>6}{training}{figures}")
    return lines
