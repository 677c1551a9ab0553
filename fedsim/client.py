"""One client of a run: its rows, its part in every round, and where its updates pointed: `fedsim client`."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fedsim.data.federation import Federation
from fedsim.errors import FedsimError
from fedsim.examples import PARTS, Example, example_data, example_lines, examples, picture
from fedsim.federating import DataSource
from fedsim.job import ModelSource
from fedsim.overview import HEADLINES, figure
from fedsim.own import NOTHING, Own
from fedsim.past import Past, check_client, checkpoint_at, cohorts, ranges, reopen
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.ledger import EVERYBODY
from fedsim.progress import WIDTH, Progress, Silent, wrapped
from fedsim.reading import Records, RoundRow
from fedsim.records import ClientRow
from fedsim.replay import done_again
from fedsim.stored import kept_checkpoints, open_run

SHOWN_FAILURES = 10


class Part(NamedTuple):
    """A client's part in one round, as it is recorded; None where nothing is.

    Attributes:
        round: the round.
        status: of its training: "ok" or "failed".
        loss, steps, seconds, norm: of its training, and of its update.
        own_loss, own_metric: of the global model after the round, on the client's own validation rows.
        epsilon: spent so far.
        cosine: of the angle between its update and what the global model became.
    """

    round: int
    status: str | None
    loss: float | None
    steps: int | None
    seconds: float | None
    norm: float | None
    own_loss: float | None
    own_metric: float | None
    epsilon: float | None
    cosine: float | None


@dataclass(frozen=True)
class Client:
    """A client of a run.

    Attributes:
        folder: of the run.
        number, name: of the client.
        rows: by part.
        labels: for classification by part the rows of every class that it has.
        examples: a few rows.
        metric: what `Part.own_metric` is.
        history: every recorded round.
        rounds: that it took part in, recorded or not.
        epsilon: spent so far, with `delta`; None without privacy, or while a slow accountant leaves it to the end.
        failures: what it failed with, in order.
        recorded: the scenario's `records.clients`.
        notes: why some cosines are missing.
    """

    folder: Path
    number: int
    name: str
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]] | None
    examples: Sequence[Example]
    metric: str
    history: Sequence[Part]
    rounds: Sequence[int]
    epsilon: float | None
    delta: float | None
    failures: Sequence[str]
    recorded: str | float
    notes: Sequence[str]
    federation: Federation


def look(
    path: str | Path,
    client: int,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> Client:
    """Look at a client of a run, also while the run goes on.

    Rounds whose checkpoints before and after are kept are replayed for the client, to see where its update pointed.

    Args:
        path: the run's folder.
        client: its number.
        model, data, data_dir: as for `resume`.
        own: loss, metrics and transform, as for `resume`.
        progress: is told what takes a while.

    Raises:
        RunFolderError: no run folder, or one of an earlier version.
        ScenarioError: no such client, or the data or the model are not those of the run.
    """
    progress = progress or Silent()
    progress.phase("loading the data")
    # Other versions change last bits at most, and a replay that is not the run's is not used.
    past = reopen(path, settings=["engine.bits=not guaranteed"], model=model, data=data, own=own, data_dir=data_dir)
    check_client(past, client)
    federation, privacy, headline = past.job.federation, past.job.privacy, past.job.build_problem().headline
    with closing(open_run(past.path)) as records:
        rows = records.clients(client=client)
        accounts = {row.client: row for row in records.privacy()}
        account = accounts.get(client, accounts.get(EVERYBODY))
        charged = records.select(f"SELECT round, epsilon FROM privacy WHERE client = {EVERYBODY}")
        everybody: dict[int, float] = {row["round"]: row["epsilon"] for row in charged}
        failures = [*_failures(rows), *_uncommitted(records, client)]
        cosines, notes = _cosines(past, records, rows, client, progress)
    progress.phase("")
    return Client(
        folder=past.path,
        number=client,
        name=federation.names[client],
        rows={part: len(federation.rows(client, part).x) for part in PARTS},
        labels=_labels(federation, client),
        examples=examples(federation, client),
        metric=headline,
        history=_history(rows, headline, cosines, everybody),
        rounds=[number for number, cohort in enumerate(cohorts(past.job, past.rounds), 1) if client in cohort],
        epsilon=account.epsilon if account is not None else None,
        delta=privacy.delta if privacy is not None else None,
        failures=failures,
        recorded=past.job.scenario.records.clients,
        notes=notes,
        federation=federation,
    )


def draw(client: Client, path: Path) -> None:
    """Draw some of its images; raises as `examples.picture` does."""
    picture(client.federation, client.number, path)


def client_lines(client: Client) -> list[str]:
    """For people, at most 80 columns."""
    name = f" ({client.name})" if client.name != str(client.number) else ""
    head = wrapped(f"client {client.number}{name} of {client.folder}")
    took_part = ranges("round", client.rounds) if client.rounds else "no round so far"
    parts = [
        [*head, *wrapped(f"took part in {took_part}", 2), *_epsilon_lines(client)],
        ["rows: " + ", ".join(f"{count} {part}" for part, count in client.rows.items()), *_label_lines(client.labels)],
        example_lines(client.federation, client.examples),
        _history_lines(client),
        _failure_lines(client.failures),
    ]
    lines = [line for part in parts if part for line in ("", *part)]
    return lines[1:]


def as_data(client: Client) -> dict[str, Any]:
    """For programs."""
    left_out = ("federation", "examples", "history", "folder")
    plain = {name: value for name, value in vars(client).items() if name not in left_out}
    return {
        "folder": str(client.folder),
        **plain,
        "participations": len(client.rounds),
        "examples": example_data(client.federation, client.examples),
        "history": [part._asdict() for part in client.history],
    }


def _labels(federation: Federation, client: int) -> dict[str, dict[str, int]] | None:
    if not federation.labelled:
        return None
    counts = {part: np.bincount(federation.rows(client, part).y) for part in PARTS}
    return {
        part: {str(federation.classes[label]): int(many[label]) for label in np.flatnonzero(many).tolist()}
        for part, many in counts.items()
    }


def _failures(rows: Sequence[ClientRow]) -> list[str]:
    return [row.error or "no reason given" for row in rows if row.status == "failed"]


def _uncommitted(records: Records, client: int) -> list[str]:
    """Failures in a round that ended the run: it has no rows."""
    told = [event.message for event in records.events() if event.kind == "client failed"]
    return [text for text in told if f", client {client}: " in text]


def _history(
    rows: Sequence[ClientRow], metric: str, cosines: Mapping[int, float], everybody: Mapping[int, float]
) -> list[Part]:
    """What the records say of a client, round by round; `everybody` is epsilon where a round charges all alike."""
    trained = {row.round: row for row in rows if row.phase == "train"}
    measured = {row.round: row for row in rows if row.phase == "evaluate"}
    history = []
    for number in sorted({*trained, *measured}):
        row, own = trained.get(number), measured.get(number)
        history.append(
            Part(
                round=number,
                status=row.status if row else None,
                loss=row.loss if row else None,
                steps=row.steps if row else None,
                seconds=row.seconds if row else None,
                norm=row.norm if row else None,
                own_loss=own.loss if own else None,
                own_metric=own.metrics.get(metric) if own else None,
                epsilon=row.epsilon if row else everybody.get(number),
                cosine=cosines.get(number),
            )
        )
    return history


def _cosines(
    past: Past, records: Records, rows: Sequence[ClientRow], client: int, progress: Progress
) -> tuple[dict[int, float], list[str]]:
    """Where updates pointed, by round, and why that is not known of others."""
    kept = {row.number: row for row in kept_checkpoints(past.path, records)}
    trained = [row.round for row in rows if row.phase == "train" and row.status == "ok"]
    known: dict[int, float] = {}
    notes: list[str] = []
    for number in trained:
        if number not in kept or number - 1 not in {0, *kept}:
            continue
        progress.phase(f"round {number}: replaying client {client}")
        try:
            before, after = (_model(past, records, kept.get(each)) for each in (number - 1, number))
            done = done_again(past, number, client, Silent())
        except FedsimError as error:  # a checkpoint that has gone while the run goes on, or damage
            notes.append(f"round {number}: {error}")
            continue
        if done.update is None or done.verdict.same is False:
            notes.append(f"round {number} cannot be replayed: {done.verdict.text}")
        elif (cosine := _cosine(done.update, after - before)) is not None:
            known[number] = cosine
    if set(trained) - set(known):
        settings = past.job.scenario.checkpoint
        notes.append(
            "cosine, of the angle between its update and what the global model became, is known where the checkpoints "
            f"before and after the round are kept: raise checkpoint.keep ({settings.keep})"
            + (f" with checkpoint.every = 1 (it is {settings.every})" if settings.every > 1 else "")
        )
    return known, notes


def _model(past: Past, records: Records, row: RoundRow | None) -> Tensor:
    """[D] the global model of a kept checkpoint, or the initial one."""
    return checkpoint_at(past, records, row).snapshot.weights.vector if row is not None else past.work.initial.vector


def _cosine(update: Tensor, change: Tensor) -> float | None:
    a, b = update.double(), change.double()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 and math.isfinite(lengths) else None


def _epsilon_lines(client: Client) -> list[str]:
    if client.delta is None or not client.rounds:
        return []
    spent = rounded_up(client.epsilon) if client.epsilon is not None else "not yet known: the accountant is slow"
    return [
        f"  epsilon {spent} at delta {client.delta:g}",
        "  for the curator: epsilon covers nothing of what follows",
    ]


def _label_lines(labels: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    lines = []
    for part, counts in (labels or {}).items():
        text = ", ".join(f"{label}: {count}" for label, count in counts.items()) or "no rows"
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {part:<12}", subsequent_indent=" " * 14)
    return lines


def _history_lines(client: Client) -> list[str]:
    if not client.history:
        kept = "" if client.recorded == "all" else f": records.clients = {client.recorded!r} leaves it out"
        return [f"no round of this client is recorded{kept}"]
    short = HEADLINES.get(client.metric, client.metric)
    columns = [column for column in _COLUMNS if any(getattr(part, column) is not None for part in client.history)]
    names = {**_COLUMNS, "own_metric": short}
    lines = ["in training; and the global model on its own validation rows", " round"]
    lines[1] += "".join(f"{names[column]:>{_WIDTHS.get(column, 10)}}" for column in columns)
    for part in client.history:
        cells = (_cell(part, column).rjust(_WIDTHS.get(column, 10)) for column in columns)
        lines.append(f"{part.round:6d}{''.join(cells)}")
    return [*lines, *(line for note in client.notes for line in wrapped(note))]


_COLUMNS = {
    "loss": "loss",
    "steps": "steps",
    "seconds": "seconds",
    "norm": "norm",
    "own_loss": "own loss",
    "own_metric": "own",
    "epsilon": "epsilon",
    "cosine": "cosine",
}
_WIDTHS = {"steps": 7, "seconds": 9, "own_metric": 10, "epsilon": 8, "cosine": 8}


def _cell(part: Part, column: str) -> str:
    value = getattr(part, column)
    if column == "loss" and part.status == "failed":
        return "failed"
    if value is None:
        return "-"
    if column == "epsilon":
        return rounded_up(value)
    return {"steps": f"{value}", "seconds": f"{value:.3f}", "cosine": f"{value:.3f}"}.get(column) or figure(value)


def _failure_lines(failures: Sequence[str]) -> list[str]:
    if not failures:
        return []
    lines = [f"{len(failures)} failure{'s' if len(failures) > 1 else ''}"]
    for failure in failures[:SHOWN_FAILURES]:
        lines += wrapped(failure, 2)
    rest = len(failures) - SHOWN_FAILURES
    return [*lines, f"  and {rest} more: fedsim export RUN --table failures"] if rest > 0 else lines
