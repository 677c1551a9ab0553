"""A model measured on held-out rows, while other work goes on: begun at once, and waited for when it is wanted."""

from collections.abc import Callable, Sequence

from flwr.app import ArrayRecord, Message

from fedsim.data.federation import CentralPart
from fedsim.driving import Driven
from fedsim.errors import ClientError
from fedsim.evaluation import attack_success, central_metrics
from fedsim.flower import central_messages
from fedsim.grid import NumberedGrid
from fedsim.local import Work
from fedsim.records import ClientRow
from fedsim.replies import client_rows, total_statistics

Measuring = Callable[[], dict[str, float]]
"""Waits for an evaluation that goes on, and gives its metrics under their full names.

Raises:
    ClientError: the model fails on some rows.
"""


def on_central_rows(work: Work, grid: NumberedGrid, model: ArrayRecord, part: CentralPart) -> Measuring:
    """Begin to measure the global model on a central set, and on its rows with an adversary's trigger."""
    rows, most = len(work.federation.central[part].x), work.job.scenario.evaluate.batch_size
    if not rows:
        return together([])
    target = work.adversary.target if work.adversary is not None else None
    clean = grid.push_messages(central_messages(model, part, rows, most))
    marked = central_messages(model, part, rows, most, triggered=True) if target is not None else []
    triggered = grid.push_messages(marked)

    def measured() -> dict[str, float]:
        metrics = central_metrics(work.problem, total_statistics(grid.pull_messages(clean)), part)
        if target is not None:
            statistics = total_statistics(grid.pull_messages(triggered))
            metrics |= attack_success(statistics, target, len(work.federation.classes), part)
        return metrics

    return measured


def on_clients_rows(
    work: Work,
    grid: NumberedGrid,
    strategy: Driven,
    round: int,
    messages: Sequence[Message],
    rows: list[ClientRow],
) -> Measuring:
    """Begin to measure models on clients' own rows.

    Args:
        work: of the run.
        grid: where the clients are.
        strategy: makes metrics of what they answer.
        round: its number.
        messages: that the strategy has made for it.
        rows: gets what is recorded of every client.
    """
    pushed = grid.push_messages(messages)

    def measured() -> dict[str, float]:
        replies = grid.pull_messages(pushed)
        failed = next((str(reply.error.reason) for reply in replies if reply.has_error()), None)
        if failed is not None and work.job.scenario.cohort.on_client_error == "fail":
            raise ClientError(f"{failed} (cohort.on_client_error is fail)")
        rows.extend(client_rows(round, messages, replies, work))
        metrics = strategy.aggregate_evaluate(round, replies)
        return {name: float(value) for name, value in metrics.items()} if metrics is not None else {}  # type: ignore[arg-type]

    return measured


def together(begun: Sequence[Measuring]) -> Measuring:
    """Several evaluations as one."""
    return lambda: {name: value for measured in begun for name, value in measured().items()}
