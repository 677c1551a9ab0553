"""What the server does: rows' moments by hand, FedAvg, and at last everybody's head."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Three phases, all with everybody."""
    config = context.run_config
    nodes = everybody(grid, config["clients"])
    start = {"weight": np.zeros((64, 10), np.float32), **scaling(grid, nodes)}
    clients = len(nodes)
    strategy = FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in start.items()}),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
    )
    content = RecordDict({"arrays": result.arrays, "config": ConfigRecord({"steps": 5})})
    heads = asked(grid, nodes, content, f"{MessageType.TRAIN}.head")
    if config["result"]:
        told = {
            "arrays": {name: array.numpy().tolist() for name, array in result.arrays.items()},
            "train": {round: dict(record) for round, record in result.train_metrics_clientapp.items()},
            "evaluate": {round: dict(record) for round, record in result.evaluate_metrics_clientapp.items()},
            "heads": {str(int(head["metrics"]["partition"])): dict(head["metrics"]) for head in heads},
        }
        Path(config["result"]).write_text(json.dumps(told))


def everybody(grid: Grid, wanted: int) -> list[int]:
    """All nodes, as soon as as many as wanted are there."""
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        time.sleep(0.1)
    return nodes


def scaling(grid: Grid, nodes: Sequence[int]) -> dict[str, np.ndarray]:
    """Mean and standard deviation of all rows, from each client's sums."""
    replies = list(asked(grid, nodes, RecordDict(), MessageType.QUERY))
    number = sum(reply["metrics"]["num-examples"] for reply in replies)
    mean, square = (
        sum(reply["sums"][name].numpy().astype(np.float64) for reply in replies) / number for name in ("sum", "squares")
    )
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return {"mean": mean.astype(np.float32), "scale": np.maximum(deviation, 1).astype(np.float32)}


def asked(grid: Grid, nodes: Sequence[int], content: RecordDict, kind: str) -> Iterable[RecordDict]:
    """What all nodes reply to one message; the ids of messages are looked after by hand here."""
    waiting = set(grid.push_messages([Message(content, node, kind) for node in nodes]))
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply.content
        time.sleep(0.01)
