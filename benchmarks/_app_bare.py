"""A contender of `flower_apps.py`: the app's own work in two processes, without an engine between them.

Each process calls the ClientApp for its half of every round, opens and sums the replies and measures their mean. Nobody
waits for the other, and nothing travels.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from _app_stock import APP, WORKERS, config
from _at_once import at_once
from _workload import distance
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.apps.loading import at_hand, load
from fedsim.grid import FIRST_NODE, begin_run, stamp


def main() -> None:
    """Run the rounds."""
    body, cohort, rounds = sys.argv[1:]
    settings = config(int(cohort), int(rounds), body)
    at_once(WORKERS, lambda number, begin: rounds_ended(settings, range(number, int(cohort), WORKERS), begin))


def rounds_ended(settings: dict[str, Any], clients: range, begin: Callable[[], object]) -> tuple[list[float], float]:
    """Do one process' share of every round: when each ended, and how far the model has moved."""
    at_hand(APP)
    app, task = load("images.client_app:app", APP, ClientApp, "clientapp"), import_module("images.task")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    begin_run()
    net, ended = task.Net(), []
    first = {name: value.clone() for name, value in net.state_dict().items()}
    begin()
    for _ in range(settings["num-server-rounds"]):
        arrays, total = ArrayRecord(net.state_dict()), {name: torch.zeros_like(value) for name, value in first.items()}
        for client in clients:
            reply = app(*asked(client, arrays, settings))
            for name, value in reply.content.array_records["arrays"].to_torch_state_dict().items():
                total[name] += value
        net.load_state_dict({name: value / len(clients) for name, value in total.items()})
        task.measure(net)
        ended.append(time.time())
    return ended, distance(list(net.state_dict().values()), list(first.values()))


def asked(client: int, arrays: ArrayRecord, settings: dict[str, Any]) -> tuple[Message, Context]:
    """A train message to a client, and the client's context."""
    node = client + FIRST_NODE
    message = Message(RecordDict({"arrays": arrays}), node, "train")
    stamp(message, str(node))
    return message, Context(1, node, {"partition-id": client}, RecordDict(), settings)


if __name__ == "__main__":
    main()
