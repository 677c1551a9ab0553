"""What is read out of messages and replies: figures, vectors, statistics, and the rows of a run's records."""

import math
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedsim import metrics
from fedsim.arrays import view
from fedsim.errors import ClientError
from fedsim.grid import client_number
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel, Statistics, add
from fedsim.records import ClientRow, finite

_NUMBERS = (int, float)  # a tuple is asked faster than a union, and there are ten thousand replies


def client_rows(
    round: int,
    messages: Sequence[Message],
    replies: Sequence[Message],
    work: Work,
    epsilons: Sequence[float | None] | None = None,
) -> list[ClientRow]:
    """What is recorded of clients' parts in a round.

    Args:
        round: its number.
        messages: all to train, or all to evaluate.
        replies: to these messages, in order.
        work: of the run.
        epsilons: what each client has spent so far; None without privacy and in evaluation.
    """
    training = bool(messages) and messages[0].metadata.message_type == "train"
    down, up = work.bytes_down(training), work.bytes_up if training else 0
    rows = []
    for message, reply, epsilon in zip(messages, replies, epsilons or (None,) * len(messages), strict=True):
        number, sound = client_number(message), not reply.has_error()
        values = (_trained if training else _measured)(reply, work) if sound else {}
        rows.append(
            ClientRow(
                round=round,
                client=number,
                phase="train" if training else "evaluate",
                status="ok" if sound else "failed",
                rows=int(values["num-examples"] if "num-examples" in values else _asked(number, training, work)),
                loss=finite(values.get("loss")),
                steps=int(values.get("steps", 0)),
                seconds=values.get("seconds", 0.0),
                bytes_down=down,
                bytes_up=up if sound else 0,
                error=None if sound else reply.error.reason,
                metrics={key[7:]: value for key, value in values.items() if key.startswith("scalar/")},
                norm=finite(values.get("norm")),
                stack=int(values.get("stack", 1)),
                epsilon=epsilon,
            )
        )
    return rows


def sketches_of(messages: Sequence[Message], replies: Sequence[Message]) -> dict[int, list[float]]:
    """The sketches of updates in sound replies to training messages, by client; none of an update that is zero."""
    found = {}
    for message, reply in zip(messages, replies, strict=True):
        sketch = None if reply.has_error() else metrics_of(reply).get("sketch")
        if isinstance(sketch, list) and any(sketch):
            found[client_number(message)] = [float(value) for value in sketch]
    return found


def _trained(reply: Message, work: Work) -> dict[str, float]:
    """The figures of a reply."""
    return {key: float(value) for key, value in metrics_of(reply).items() if isinstance(value, _NUMBERS)}


def _measured(reply: Message, work: Work) -> dict[str, float]:
    """The figures of a reply, and loss and headline of the models that it measured."""
    values, figures = _trained(reply, work), metrics_of(reply)
    measured, name = work.problem.metrics(metrics.from_record(figures)), work.problem.headline
    values["loss"] = measured["loss"]
    values |= {f"scalar/{name}": measured[name]} if math.isfinite(measured[name]) else {}
    if own := metrics.from_record(figures, "personal"):
        mine = work.problem.metrics(own)[name]
        values |= {f"scalar/personal/{name}": mine} if math.isfinite(mine) else {}
    return values


def _asked(number: int, training: bool, work: Work) -> int:
    """The rows that a client was to train on."""
    return int(work.federation.train_rows[number]) if training else 0


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
    record = reply.content.get("update")
    return torch.from_numpy(view(record["vector"])) if isinstance(record, ArrayRecord) and "vector" in record else None


def arrays_of(message: Message, name: str) -> ArrayRecord:
    """A message's arrays, empty if it has none of that name; `array_records` would copy them at every call."""
    record = message.content.get(name)
    return record if isinstance(record, ArrayRecord) else ArrayRecord()
