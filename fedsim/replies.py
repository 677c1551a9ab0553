"""What is read out of messages and replies: figures, vectors, statistics, and the rows of a run's records."""

import math
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedsim import metrics
from fedsim.errors import ClientError
from fedsim.evaluation import headline
from fedsim.grid import client_number
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel, Statistics, add
from fedsim.parameters import view
from fedsim.records import ClientRow, finite


def client_row(round: int, message: Message, reply: Message, work: Work, epsilon: float | None = None) -> ClientRow:
    """What is recorded of one client's part in a round; `epsilon` is what it has spent so far."""
    training = message.metadata.message_type == "train"
    figures = MetricRecord() if reply.has_error() else metrics_of(reply)
    values = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    if not training and not reply.has_error():
        measured, name = work.problem.metrics(metrics.from_record(figures)), headline(work.federation.task)
        values["loss"] = measured["loss"]
        values |= {f"scalar/{name}": measured[name]} if math.isfinite(measured[name]) else {}
        if own := metrics.from_record(figures, "personal"):
            mine = work.problem.metrics(own)[name]
            values |= {f"scalar/personal/{name}": mine} if math.isfinite(mine) else {}
    number = client_number(message)
    return ClientRow(
        round=round,
        client=number,
        phase="train" if training else "evaluate",
        status="failed" if reply.has_error() else "ok",
        rows=int(values.get("num-examples", work.federation.train_rows[number] if training else 0)),
        loss=finite(values.get("loss")),
        steps=int(values.get("steps", 0)),
        seconds=values.get("seconds", 0.0),
        bytes_down=work.bytes_down(training),
        bytes_up=work.bytes_up if training and not reply.has_error() else 0,
        error=reply.error.reason if reply.has_error() else None,
        metrics={key.removeprefix("scalar/"): value for key, value in values.items() if key.startswith("scalar/")},
        norm=finite(values.get("norm")),
        stack=int(values.get("stack", 1)),
        epsilon=epsilon,
    )


def statistics_of(replies: Iterable[Message], model: EvaluatedModel = "global") -> list[Statistics]:
    """The additive statistics of a model in sound evaluation replies, in order."""
    found = [metrics.from_record(metrics_of(reply), model) for reply in replies if not reply.has_error()]
    return [statistics for statistics in found if statistics]


def total_statistics(replies: Sequence[Message]) -> Statistics:
    """The sum of all blocks' statistics.

    Raises:
        ClientError: a block could not be measured.
    """
    failed = next((reply for reply in replies if reply.has_error()), None)
    if failed is not None:
        raise ClientError(str(failed.error.reason))
    return add(statistics_of(replies))


def training_figures(reported: Sequence[MetricRecord]) -> MetricRecord:
    """Rows of all clients, and their mean training loss by rows (of those that took a step)."""
    pairs = [(int(metrics["num-examples"]), float(metrics["loss"])) for metrics in reported]  # type: ignore[arg-type]
    stepped = [(rows, loss) for rows, loss in pairs if math.isfinite(loss)]
    total = sum(rows for rows, _ in stepped)
    loss = sum(rows * loss for rows, loss in stepped) / total if total else math.nan
    return MetricRecord({"num-examples": sum(rows for rows, _ in pairs), "loss": loss})


def metrics_of(reply: Message) -> MetricRecord:
    """The figures in a sound reply."""
    metrics = reply.content["metrics"]
    assert isinstance(metrics, MetricRecord)
    return metrics


def vector_of(reply: Message) -> Tensor | None:
    """[D + E + extras] a client's contribution, or a chunk's sum; None where another reply carries it."""
    record = arrays_of(reply, "update")
    return torch.from_numpy(view(record["vector"])) if "vector" in record else None


def arrays_of(message: Message, name: str) -> ArrayRecord:
    """A message's arrays, empty if it has none of that name; `array_records` would copy them at every call."""
    record = message.content.get(name)
    return record if isinstance(record, ArrayRecord) else ArrayRecord()
