"""What a run's report tells, read from its folder: also while the run goes on, and of any size.

Torch and the data are not needed: a folder that was copied from another machine is enough.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.overview import HEADLINES, Overview, Values, headline, plain_scenario, rows_of
from fedsim.reading import Records
from fedsim.records import being_written
from fedsim.report.page import thinned
from fedsim.show import Shown, show

SHOWN_ROUNDS = 120
"""Of clients' figures by round; of more every n-th."""
SHOWN_CLIENTS = 60
"""Rows of the heat map; of more clients those for whom the model is worst."""
_MOST_VALUES = 400_000
"""Of single clients' figures that are read; of a longer run fewer rounds."""
_LOWER = frozenset({"loss", "rmse", "mae", "mse", "bits-per-character", "perplexity"})
"""Metrics that are better when they are lower, of a run that has not said so yet."""


class Own(NamedTuple):
    """How the model does for single clients, on their own rows.

    Attributes:
        metric: by which the task is judged, or "loss".
        place: "own validation rows"; "own train rows, in training" of a run that measures no clients.
        personal: whether it is each client's own model.
        lower: whether less is better.
        rounds: [(round, clients [n], values [n])] in order; values are finite.
    """

    metric: str
    place: str
    personal: bool
    lower: bool
    rounds: Sequence[tuple[int, np.ndarray, np.ndarray]]


class Sketches(NamedTuple):
    """Clients on a map on which those lie together whose updates point alike.

    Attributes:
        clients: [K] their numbers.
        places: [K, 2] first principal components of the mean direction of a client's updates.
        updates: [K] how many that is the mean of.
        shares: of the variance that each of the two axes shows.
        width: numbers in a sketch.
    """

    clients: np.ndarray
    places: np.ndarray
    updates: np.ndarray
    shares: tuple[float, float]
    width: int


class Beside(NamedTuple):
    """A run made beside the run.

    Attributes:
        title: its folder in the run's: "without-privacy", "references/local".
        overview: in a few figures.
        metrics: by full name and round.
        tests: test metrics after the last round.
        own: client -> figure on its own test rows after the last round.
    """

    title: str
    overview: Overview
    metrics: Mapping[str, Mapping[int, float]]
    tests: Mapping[str, float | None]
    own: Mapping[int, float]


@dataclass(frozen=True)
class Chronicle:
    """A run as its report tells it.

    Attributes:
        folder: of the run.
        shown: what `fedsim show` says.
        going_on: whether a process is writing the run, or one beside it.
        scenario, scenario_text: resolved; empty where it has gone.
        environment: what it was made with; likewise.
        summary: what it said at its end; empty before.
        judged: the last part of the name of the metric by which the task is judged; None where none was measured.
        lower: whether that is better when it is lower.
        metrics: by full name and round.
        rounds: every round's number, seconds, cohort, failed, epsilon, loss (mean over train rows, in training), and
            of all that was recorded of clients that trained: down, up (bytes) and busy (their seconds).
        own: how the model does for single clients; None where nothing is known of any.
        tests: client -> figure on its own test rows after the last round.
        beside: runs made beside it.
        partition: `partition.json`; None where there is none.
        sketches: of clients' updates; None where none were kept.
    """

    folder: Path
    shown: Shown
    going_on: bool
    scenario: Values
    scenario_text: str
    environment: Values
    summary: Values
    judged: str | None
    lower: bool
    metrics: Mapping[str, Mapping[int, float]]
    rounds: Sequence[Values]
    own: Own | None
    tests: Mapping[int, float]
    beside: Sequence[Beside]
    partition: Values | None
    sketches: Sketches | None

    @property
    def overview(self) -> Overview:
        """The run in a few figures."""
        return self.shown.overview

    @property
    def validated(self) -> str | None:
        """The full name of the validation metric that belongs to `judged`."""
        names = [
            f"global/central-validation/rows/{self.judged}",
            f"global/client-validation/rows/{self.judged}",
            f"personal/client-validation/clients/{self.judged}",
        ]
        return next((name for name in names if name in self.metrics), None)


def chronicle(folder: Path) -> Chronicle:
    """Read a run.

    Raises:
        RunFolderError: not a run folder, or one that cannot be read.
    """
    going_on = being_written(folder) if folder.is_dir() else False  # before the rest: a run that ends has told all then
    shown = show(folder)
    scenario = plain_scenario(folder)
    with closing(Records(folder / "run.db")) as records:
        summary, metrics = records.summary(), records.metrics()
        judged, lower = _judged(summary, metrics)
        return Chronicle(
            folder=folder,
            shown=shown,
            going_on=going_on,
            scenario=scenario,
            scenario_text=_read(folder / "scenario.toml"),
            environment=_json(folder / "environment.json") or {},
            summary=summary,
            judged=judged,
            lower=lower,
            metrics=metrics,
            rounds=rows_of(records, _ROUNDS),
            own=_own(records, judged, lower),
            tests=_tests(records, judged),
            beside=[_beside(folder, each, judged) for each in shown.beside],
            partition=_json(folder / "partition.json"),
            sketches=_sketches(records),
        )


_ROUNDS = """
SELECT number AS round, rounds.seconds, cohort, failed, epsilon, down, up, trained.loss, busy FROM rounds LEFT JOIN (
    SELECT round, sum(bytes_down) AS down, sum(bytes_up) AS up, sum(seconds) AS busy,
        sum(loss * rows) / sum(CASE WHEN loss IS NOT NULL THEN rows END) AS loss
    FROM clients WHERE phase = 'train' GROUP BY round
) AS trained ON trained.round = number ORDER BY number
"""


def _judged(summary: Values, metrics: Mapping[str, Mapping[int, float]]) -> tuple[str | None, bool]:
    """The last part of the name of the metric that judges a run, and whether less of it is better."""
    said = summary.get("headline") or {}
    full = said.get("metric") or headline("validation", metrics)
    if full is None:
        own = (name for name in HEADLINES if f"personal/client-validation/clients/{name}" in metrics)
        full = next(own, None)
    name = full.split("/", 3)[-1] if full is not None else None
    return name, bool(said.get("lower_is_better", name in _LOWER))


def _own(records: Records, judged: str | None, lower: bool) -> Own | None:
    """Figures of single clients: of the task's metric where clients were asked, else of the loss in training."""
    if judged is not None:
        for key in (f"personal/{judged}", judged):
            found = _by_round(records, "evaluate", "json_extract(metrics, ?)", f'$."{key}"')
            if found:
                return Own(judged, "own validation rows", key != judged, lower, found)
    for phase, place in (("evaluate", "own validation rows"), ("train", "own train rows, in training")):
        if found := _by_round(records, phase, "loss"):
            return Own("loss", place, False, True, found)
    return None


def _by_round(records: Records, phase: str, value: str, *bound: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """An SQL value of every client that has one, by round; `bound` takes the place of its question mark."""
    where = f"phase = ? AND status = 'ok' AND {value} IS NOT NULL"
    counting = f"SELECT round, count(*) AS clients FROM clients WHERE {where} GROUP BY round"
    counts = rows_of(records, counting, phase, *bound)
    if not counts:
        return []
    total = sum(row["clients"] for row in counts)
    most = min(SHOWN_ROUNDS, max(2, int(len(counts) * min(1.0, _MOST_VALUES / total))))
    query = f"SELECT client, {value} FROM clients WHERE round = ? AND {where} ORDER BY client"
    found = []
    for row in thinned(counts, most):
        pairs = np.array(
            [tuple(pair) for pair in records.select(query, *bound, row["round"], phase, *bound)], dtype=float
        ).reshape(-1, 2)
        found.append((row["round"], pairs[:, 0].astype(int), pairs[:, 1]))
    return found


def _tests(records: Records, judged: str | None) -> dict[int, float]:
    """Own figures on test rows, where the run keeps them."""
    if judged is None:
        return {}
    figures: dict[int, float] = {}
    for row in records.tests():
        value = row.metrics.get(f"personal/{judged}", row.metrics.get(judged, math.nan))
        if math.isfinite(value):
            figures[row.client] = value
    return figures


def _beside(whole: Path, seen: Overview, judged: str | None) -> Beside:
    folder = Path(seen.folder)
    with closing(Records(folder / "run.db")) as records:
        return Beside(
            title=folder.relative_to(whole).as_posix(),
            overview=seen,
            metrics=records.metrics(),
            tests=records.summary().get("metrics_last_round", {}),
            own=_tests(records, judged),
        )


def _sketches(records: Records) -> Sketches | None:
    """The mean direction of every client's updates, on two axes.

    A direction is a sketch at length one: clients that take longer steps do not lie further out.
    """
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    for client, sketch in records.select("SELECT client, vector FROM sketches ORDER BY round, client"):
        vector = np.array(json.loads(sketch), dtype=float)
        length = float(np.linalg.norm(vector))
        if length > 0 and math.isfinite(length):
            sums[client] = sums.get(client, 0.0) + vector / length
            counts[client] = counts.get(client, 0) + 1
    if len(sums) < 3:  # two points lie on a line whatever they are
        return None
    clients = np.array(sorted(sums))
    means = np.stack([sums[client] / counts[client] for client in clients])
    places, shares = principal(means)
    return Sketches(clients, places, np.array([counts[client] for client in clients]), shares, means.shape[1])


def principal(points: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Points [n, d] on their first two principal axes [n, 2], and the shares of the variance that these show.

    An axis points to where its largest coordinate is, so that the same points give the same map.
    """
    centred = points - points.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = (left * lengths)[:, :2]
    places = places * np.where(places[np.abs(places).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    total = float((lengths**2).sum())
    first, second = (float(length**2) / total if total else 0.0 for length in lengths[:2])
    return places, (first, second)


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")
    return ""


def _json(path: Path) -> Values | None:
    with suppress(OSError, ValueError):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None
