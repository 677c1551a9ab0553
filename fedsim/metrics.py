"""Statistics that add, and what metrics made of them are called.

A client reports sums (of losses, of rows, of confusion counts); sums of many clients are added and only then
divided. A metric's full name is model/data/weighting/metric, such as `global/central-test/rows/accuracy`.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from fedsim import seeds
from fedsim.errors import ClientError, ScenarioError

if TYPE_CHECKING:
    from flwr.app import MetricRecord  # imported where one is made: a trained model is asked without Flower

Statistics = dict[str, np.ndarray]
"""Sums by name, each a float64 vector."""

EvaluatedModel = Literal["global", "personal"]
HeldOut = Literal["central-validation", "central-test", "client-validation", "client-test"]
Weighting = Literal["rows", "clients", "worst-10%", "spread"]
"""rows: pooled over all rows; clients: every client counts the same; worst-10%: of the clients, the worst tenth;
spread: the standard deviation over clients."""

_PREFIXES: Mapping[EvaluatedModel, str] = {"global": "stat/", "personal": "personal-stat/"}
_MOST_DRAWS = 1_000
_CLIENTS_DRAWN = 1_000_000


class MetricName(NamedTuple):
    """The four parts of a metric's full name; `str` joins them."""

    model: EvaluatedModel
    data: HeldOut
    weighting: Weighting
    metric: str

    def __str__(self) -> str:
        return "/".join(self)


def add(many: Iterable[Statistics]) -> Statistics:
    """The sum of many clients' or blocks' statistics: a left fold in the order given, {} of nothing.

    Raises:
        ClientError: names or lengths differ.
    """
    total: Statistics = {}
    for statistics in many:
        if not total:
            total = {name: values.copy() for name, values in statistics.items()}
            continue
        if _shape(statistics) != _shape(total):
            raise ClientError(f"statistics {_shape(statistics)} do not add to {_shape(total)}")
        for name, values in statistics.items():
            total[name] += values
    return total


def _shape(statistics: Statistics) -> dict[str, int]:
    return {name: len(statistics[name]) for name in sorted(statistics)}


def to_record(statistics: Statistics, model: EvaluatedModel = "global") -> "MetricRecord":
    """Statistics as Flower sends them, under keys of their own so that other metrics can stand beside them."""
    from flwr.app import MetricRecord

    return MetricRecord({_PREFIXES[model] + name: values.tolist() for name, values in statistics.items()})


def from_record(record: "MetricRecord", model: EvaluatedModel = "global") -> Statistics:
    """The statistics of a model in a record, to the bit what `to_record` was given; other keys are left alone."""
    prefix = _PREFIXES[model]
    return {
        key.removeprefix(prefix): np.array(values, dtype=np.float64, ndmin=1)
        for key, values in record.items()
        if key.startswith(prefix)
    }


def full_names(metrics: Iterable[str]) -> list[MetricName]:
    """Every full name of a problem's metrics. A central set has one weighting and no personal model."""
    return [
        MetricName(model, data, weighting, metric)
        for metric in metrics
        for model in get_args(EvaluatedModel)
        for data in get_args(HeldOut)
        for weighting in get_args(Weighting)
        if not data.startswith("central-") or (model == "global" and weighting == "rows")
    ]


def parse_name(name: str, metrics: Iterable[str], what: str) -> MetricName:
    """The parts of a full name.

    Args:
        name: as a scenario gives it.
        metrics: the problem's metric names.
        what: the scenario's key, for messages: "stop.metric".

    Raises:
        ScenarioError: there is no such metric; the message names the nearest.
    """
    known = {str(full): full for full in full_names(metrics)}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Names are such as {next(iter(known), 'none')}."
        raise ScenarioError(f"{what}: there is no metric {name!r}. {hint}")
    return known[name]


def with_full_names(
    model: EvaluatedModel, data: HeldOut, weighting: Weighting, values: Mapping[str, float]
) -> dict[str, float]:
    """The same values under their full names."""
    return {str(MetricName(model, data, weighting, metric)): value for metric, value in values.items()}


def mean_over_clients(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over the clients for which it is defined (not nan), nan where it is for none.

    Args:
        values: one mapping per client, all with the same names.
    """
    return {metric: _mean(column[~np.isnan(column)]) for metric, column in _columns(values).items()}


def worst_tenth(
    values: Sequence[Mapping[str, float]],
    rows: Sequence[int] | np.ndarray,
    min_rows: int,
    lower: Collection[str],
) -> dict[str, float]:
    """Each metric's mean over the worst tenth (rounded down) of the counted clients.

    Args:
        values: one mapping per client, all with the same names.
        rows: [K] held-out rows of these clients.
        min_rows: a client with fewer is not counted: with two rows it would be worst or best by luck.
        lower: metrics that are better when they are lower.

    Returns:
        Metrics that are defined for at least ten counted clients; of fewer, a tenth is nobody.
    """
    chosen = counted(rows, min_rows)
    worst: dict[str, float] = {}
    for metric, column in _columns(values).items():
        defined = column[chosen & ~np.isnan(column)]
        if len(defined) >= 10:
            ascending = np.sort(defined)
            worst[metric] = _mean((ascending[::-1] if metric in lower else ascending)[: len(defined) // 10])
    return worst


def spread(values: Sequence[Mapping[str, float]], rows: Sequence[int] | np.ndarray, min_rows: int) -> dict[str, float]:
    """Each metric's standard deviation over the counted clients (of the sample: n - 1), of two at least.

    Args:
        values: one mapping per client, all with the same names.
        rows: [K] held-out rows of these clients.
        min_rows: a client with fewer is not counted.
    """
    chosen = counted(rows, min_rows)
    defined = {metric: column[chosen & ~np.isnan(column)] for metric, column in _columns(values).items()}
    return {metric: float(column.std(ddof=1)) for metric, column in defined.items() if len(column) > 1}


def counted(rows: Sequence[int] | np.ndarray, min_rows: int) -> np.ndarray:
    """[K] bool: the clients with enough held-out rows to be compared; their number is printed with the worst 10 %."""
    return np.asarray(rows) >= max(min_rows, 1)


def worst_tenth_by_chance(accuracy: float, trials: Sequence[int] | np.ndarray, seed: int) -> float | None:
    """The worst 10 % accuracy that is expected when all clients are equal.

    Every client's count of right answers is drawn from Binomial(trials, accuracy), independently; the mean
    of the lowest tenth is averaged over up to 1,000 draws (standard error below 0.005 from ten clients on).
    For text the trials are bytes, which are not independent, so that the true figure lies somewhat lower.

    Args:
        accuracy: that all clients would share: pooled over everybody's rows, in [0, 1].
        trials: [n] rows (or bytes) of each counted client, all >= 1.
        seed: of the run.

    Returns:
        The accuracy, or None for fewer than ten clients.
    """
    number = np.asarray(trials)
    tenth = len(number) // 10
    if tenth == 0:
        return None
    generator = seeds.numpy_generator(seed, "worst tenth by chance")
    draws = int(np.clip(_CLIENTS_DRAWN // len(number), 10, _MOST_DRAWS))
    lowest = [np.sort(generator.binomial(number, accuracy) / number)[:tenth].mean() for _ in range(draws)]
    return float(np.mean(lowest))


def _columns(values: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    names = values[0] if values else ()
    return {metric: np.array([client[metric] for client in values], dtype=np.float64) for metric in names}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
