"""What a Flower Strategy came to: its ServerApp keeps that to itself, so `Strategy.start` is listened to."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

Measured = Callable[[int, ArrayRecord, MetricRecord | None], None]
"""Is told what a ServerApp's `evaluate_fn` said of the model after a round."""


@contextmanager
def listening(measured: Measured) -> Iterator[list[Result]]:
    """Inside the block the results of every `Strategy.start` are appended to a list; nothing else changes."""
    results: list[Result] = []
    usual = Strategy.start

    @wraps(usual)
    def start(self: Strategy, *args: Any, **kwargs: Any) -> Result:
        given = inspect.signature(usual).bind(self, *args, **kwargs)
        evaluate = given.arguments.get("evaluate_fn")
        if evaluate is not None:

            @wraps(evaluate)
            def told(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
                found: MetricRecord | None = evaluate(server_round, arrays)
                measured(server_round, arrays, found)
                return found

            given.arguments["evaluate_fn"] = told
        result = usual(*given.args, **given.kwargs)
        results.append(result)
        return result

    Strategy.start = start  # type: ignore[method-assign]
    try:
        yield results
    finally:
        Strategy.start = usual  # type: ignore[method-assign]
