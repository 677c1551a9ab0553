"""What `fedsim show` says: a run looked at from its folder, also while it goes on."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsim.overview import (
    Overview,
    Values,
    beside,
    figure,
    headline,
    judges,
    last_rounds,
    metrics_of,
    moment,
    named_headline,
    overview,
    personal,
    plain_scenario,
    rounds_of,
    rows_of,
    short,
)
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import WIDTH, shortened
from fedsim.reading import Records

SHOWN_ROUNDS = 5
SHOWN_CLIENTS = 5
SHOWN_CAUSES = 10


@dataclass(frozen=True)
class Cause:
    """Failures of clients whose messages differ in numbers only."""

    cause: str
    count: int
    rounds: list[int]
    clients: list[int]


@dataclass(frozen=True)
class Shown:
    """A run as `fedsim show` prints it.

    Attributes:
        overview: in a few figures.
        beside: the runs made beside it, likewise.
        events: in order, without the failures that `failures` counts.
        last_rounds: their figures; `metrics`, by full name, are those of a round's line while the run went on.
        failures: by cause, the most frequent first.
        recorded: the scenario's `records.clients`: all, failed, or a share of clients.
        mean_seconds, mean_norm: over all training that was recorded.
        slowest: clients by mean seconds of training.
        worst: clients by loss in the last round that evaluated clients, or else in the last training.
        largest: clients by the largest norm of an update.
    """

    overview: Overview
    beside: list[Overview]
    events: list[Values]
    last_rounds: list[Values]
    failures: list[Cause]
    recorded: str | float
    mean_seconds: float | None
    mean_norm: float | None
    slowest: list[Values]
    worst: list[Values]
    largest: list[Values]


def show(folder: Path) -> Shown:
    """Look at a run.

    Raises:
        RunFolderError: not a run folder, or one of a newer version.
    """
    with closing(Records(folder / "run.db")) as records:
        scenario = plain_scenario(folder)
        means = rows_of(records, "SELECT avg(seconds) AS seconds, avg(norm) AS norm FROM clients WHERE " + _TRAINED)[0]
        seen, judge = overview(folder, records, scenario), named_headline(records.summary(), scenario)
        return Shown(
            overview=seen,
            beside=beside(folder),
            events=[event._asdict() for event in records.events() if event.kind != _FAILED],
            last_rounds=_last_rounds(records, judge, alone=(seen.metric or "").startswith("personal/")),
            failures=_causes(records),
            recorded=scenario.get("records", {}).get("clients", "all"),
            mean_seconds=means["seconds"],
            mean_norm=means["norm"],
            slowest=rows_of(records, _SLOWEST, SHOWN_CLIENTS),
            worst=_worst(records, judge),
            largest=rows_of(records, _LARGEST, SHOWN_CLIENTS),
        )


def show_lines(shown: Shown) -> list[str]:
    """For people, at most 80 columns."""
    parts = [
        [*_heading(shown.overview), *_event_lines(shown.events)],
        _beside_lines(shown),
        _round_lines(shown.last_rounds),
        _cause_lines(shown.failures),
        *_client_tables(shown),
    ]
    lines = [line for part in parts if part for line in ("", *part)]
    return lines[1:]


def as_data(shown: Shown) -> Values:
    """For programs."""
    values = asdict(shown)
    return {**values.pop("overview"), **values}


_FAILED = "client failed"
_TRAINED = "phase = 'train' AND status = 'ok'"
_SLOWEST = f"""
SELECT client, avg(seconds) AS seconds, count(*) AS rounds, avg(rows) AS rows, max(stack) AS stack
FROM clients WHERE {_TRAINED} GROUP BY client ORDER BY 2 DESC, client LIMIT ?
"""
_LARGEST = """
SELECT client, max(norm) AS norm, round FROM clients WHERE norm IS NOT NULL GROUP BY client ORDER BY 2 DESC, client
LIMIT ?
"""
_WORST = """
SELECT client, round, phase, loss, rows, coalesce({}) AS personal FROM clients
WHERE round = ? AND phase = ? AND status = 'ok' AND rows > 0 ORDER BY loss IS NULL DESC, loss DESC, client LIMIT ?
"""
_FIGURE = re.compile(r"0x[0-9a-f]+|(?<![\w.])[-+]?\d[\d,]*(\.\d+)*(e[-+]?\d+)?(?!\w)", re.IGNORECASE)


def _last_rounds(records: Records, judge: str | None, *, alone: bool) -> list[Values]:
    rounds = last_rounds(records, SHOWN_ROUNDS)[::-1]
    for row in rounds:
        row["metrics"] = metrics_of(records, row["round"])
    measured = {name: value for row in rounds for name, value in row["metrics"].items()}
    shown = [name for name in _live_metrics(measured, judge, alone=alone) if name in measured]
    return [{**row, "metrics": {name: row["metrics"].get(name) for name in shown}} for row in rounds]


def _live_metrics(measured: Mapping[str, float | None], judge: str | None, *, alone: bool) -> list[str]:
    """What judges the global model; of clients' own the mean over clients, and all, where there is no other (alone)."""
    own, _ = personal("validation", measured, judge)
    first = own if alone else headline("validation", measured, judge)
    if first is None:
        return [own] if own is not None else []
    place, _, name = first.rpartition("/")
    worst = f"{first.partition('/')[0]}/client-validation/worst-10%/{name}"
    return list(dict.fromkeys([f"{place}/loss", first, worst, *([own] if own is not None else [])]))


def _worst(records: Records, judge: str | None) -> list[Values]:
    paths = [f'$."personal/{name}"' for name in judges(judge)]
    query = _WORST.format(", ".join(["json_extract(metrics, ?)"] * len(paths)))
    for phase in ("evaluate", "train"):
        last = "SELECT round FROM clients WHERE phase = ? ORDER BY round DESC LIMIT 1"
        for (round,) in records.select(last, phase):
            return rows_of(records, query, *paths, round, phase, SHOWN_CLIENTS)
    return []


def _causes(records: Records) -> list[Cause]:
    """Failures by cause; those of a round that was not committed are in its events."""
    counts: dict[str, int] = {}
    where: dict[str, tuple[set[int], set[int]]] = {}
    for round, client, error in _failures(records):
        cause = cause_of(error)
        counts[cause] = counts.get(cause, 0) + 1
        rounds, clients = where.setdefault(cause, (set(), set()))
        rounds.add(round)
        clients |= {client} if client is not None else set()
    order = sorted(counts, key=lambda cause: (-counts[cause], cause))
    return [Cause(cause, counts[cause], *(sorted(numbers) for numbers in where[cause])) for cause in order]


def _failures(records: Records) -> Iterator[tuple[int, int | None, str]]:
    for round, client, error in records.select("SELECT round, client, error FROM failures"):
        yield round, client, error or "no reason given"
    for round, error in records.select("SELECT round, message FROM events WHERE kind = ?", _FAILED):
        at = re.search(r"round (\d+), client (\d+)", error)
        yield (int(at[1]), int(at[2]), error) if at else (round + 1, None, error)


def cause_of(error: str) -> str:
    """A failure's message without who, when and how much: what it shares with others of its kind."""
    return _FIGURE.sub("N", re.sub(r"\bround \d+, client \d+: ?", "", error))


def _heading(run: Overview) -> list[str]:
    lines = textwrap.wrap(f"{run.title} · {run.status}", WIDTH)
    lines.append(f"  {rounds_of(run)} rounds in {run.seconds:.0f} s, started {moment(run.started)}")
    if run.reason:
        lines += textwrap.wrap(f"ended early: {run.reason}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    if run.best_round is not None:
        value = f", {run.chosen_by} {figure(run.best_value)}" if run.chosen_by else ", the last; nothing chose"
        lines.append(f"  best round {run.best_round}{value}")
    if run.metric:
        lines.append(f"  its {run.metric} {figure(run.value)}")
    if run.personal is not None and not (run.metric or "").startswith("personal/"):
        lines.append(f"  clients' own models, the mean over clients after the last round {figure(run.personal)}")
    if run.epsilon is not None:
        delta = f" at delta {run.delta:g}" if run.delta else ""
        lines.append(f"  epsilon {rounded_up(run.epsilon)}{delta} (largest client)")
        lines.append("  for the curator: epsilon covers less; to give away: fedsim export --public")
    if run.fingerprint:
        lines.append(f"  fingerprint {run.fingerprint}")
    for tag in run.tags:
        note = f": {tag['note']}" if tag["note"] else ""
        lines += textwrap.wrap(f"#{tag['name']}{note}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def _beside_lines(shown: Shown) -> list[str]:
    """The runs beside it, each with its test metric."""
    if not shown.beside:
        return []
    lines = ["runs beside it"]
    for run in shown.beside:
        place = Path(run.folder).relative_to(shown.overview.folder).as_posix()
        lines.append(f"  {shortened(place, 40):<40}  {run.status:<11}  {rounds_of(run):>9} rounds")
        lines += [f"    {run.metric} {figure(run.value)}"] if run.metric else []
    return lines


def _event_lines(events: Sequence[Values]) -> list[str]:
    texts = (f"after round {event['round']}: {event['kind']}, {event['message']}" for event in events)
    return [
        line for text in texts for line in textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    ]


def _round_lines(rounds: Sequence[Values]) -> list[str]:
    if not rounds:
        return ["no round has been committed"]
    private = any(row["epsilon"] is not None for row in rounds)
    heads = "".join(f"{short(name):>11}" for name in rounds[0]["metrics"])
    lines = [f" round{heads}  failed{' epsilon' if private else ''}   s/round"]
    for row in rounds:
        cells = "".join(f"{figure(value):>11}" for value in row["metrics"].values())
        spent = "" if not private else f" {'-' if row['epsilon'] is None else rounded_up(row['epsilon']):>7}"
        lines.append(f"{row['round']:6d}{cells}  {row['failed']:6d}{spent}   {row['seconds']:7.2f}")
    return lines


def _cause_lines(causes: Sequence[Cause]) -> list[str]:
    if not causes:
        return []
    lines = [f"{sum(cause.count for cause in causes)} failures of clients"]
    for cause in causes[:SHOWN_CAUSES]:
        where = f"{cause.count:6d} x in {_span('round', cause.rounds)}, {_listed('client', cause.clients)}"
        lines += [where, *textwrap.wrap(cause.cause, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)]
    rest = len(causes) - SHOWN_CAUSES
    return [*lines, f"       and {rest} more causes: fedsim export RUN --table failures"] if rest > 0 else lines


def _client_tables(shown: Shown) -> list[list[str]]:
    notes = []
    if shown.recorded != "all":
        kept = "failures alone" if shown.recorded == "failed" else f"a share of {shown.recorded:g} of the clients"
        notes = [f"records.clients keeps {kept}; what follows knows no others"]
    return [notes, _slowest_lines(shown), _worst_lines(shown.worst), _largest_lines(shown)]


def _slowest_lines(shown: Shown) -> list[str]:
    if not shown.slowest or not shown.mean_seconds:  # private nodes do not tell
        return []
    lines = [f"slowest clients, seconds of training (mean of all {figure(shown.mean_seconds)})", _SLOWEST_HEAD]
    for row in shown.slowest:
        stack = f"   an equal share of up to {row['stack']} at once" if row["stack"] > 1 else ""
        lines.append(f"{row['client']:>10d}{row['seconds']:>11.4f}{row['rounds']:>9d}{row['rows']:>9.0f}{stack}")
    return lines


_SLOWEST_HEAD = f"{'client':>10}{'seconds':>11}{'rounds':>9}{'rows':>9}"


def _worst_lines(worst: Sequence[Values]) -> list[str]:
    if not worst:
        return []
    if all(row["loss"] is None and row["personal"] is None for row in worst):
        return [f"no loss of a client in round {worst[0]['round']} is finite, or was told"]
    what = "on own held-out rows" if worst[0]["phase"] == "evaluate" else "in training"
    own = any(row["personal"] is not None for row in worst)
    lines = [f"worst clients, loss {what} in round {worst[0]['round']}{', of the global model' if own else ''}"]
    lines.append(f"{'client':>10}{'loss':>11}{'rows':>9}{'personal' if own else '':>11}".rstrip())
    for row in worst:
        loss = "not finite" if row["loss"] is None else figure(row["loss"])
        cell = f"{figure(row['personal']):>11}" if own else ""
        lines.append(f"{row['client']:>10d}{loss:>11}{row['rows']:>9d}{cell}")
    return lines


def _largest_lines(shown: Shown) -> list[str]:
    if not shown.largest:
        return []
    lines = [f"largest updates, Euclidean norm (mean of all {figure(shown.mean_norm)})"]
    lines.append(f"{'client':>10}{'norm':>11}{'round':>9}")
    return [*lines, *(f"{row['client']:>10d}{figure(row['norm']):>11}{row['round']:>9d}" for row in shown.largest)]


def _span(what: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    return f"{len(numbers)} {what}s from {numbers[0]} to {numbers[-1]}"


def _listed(what: str, numbers: Sequence[int]) -> str:
    some = ", ".join(map(str, numbers[:SHOWN_CLIENTS]))
    return f"{what}{'' if len(numbers) == 1 else 's'} {some}{', ...' if len(numbers) > SHOWN_CLIENTS else ''}"
