"""A contender of `flower_apps.py`: the app's own work in two processes, without an engine between them.

Each process calls the ClientApp for its half of every round and sums what comes back; nobody waits for the other and
nothing travels; every reply is opened and summed, and the model is measured after every round.
"""

import multiprocessing
import sys
import time
from importlib import import_module
from typing import Any

import torch
from _app_stock import APP, WORKERS, config
from _workload import distance, report
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.apps.loading import at_hand, load
from fedsim.grid import FIRST_NODE, begin_run, stamp


def main() -> None:
    """Run the rounds and report when each ended, on average over the processes."""
    body, cohort, rounds = sys.argv[1:]
    settings = config(int(cohort), int(rounds), body)
    context = multiprocessing.get_context("fork")  # torch has run nothing yet, so has no threads to lose
    barrier, reports = context.Barrier(WORKERS), context.SimpleQueue()

    def work(number: int) -> None:
        barrier.wait()
        reports.put(rounds_ended(settings, range(number, int(cohort), WORKERS)))

    workers = [context.Process(target=work, args=(number,)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            sys.exit("a process that calls the app has failed")
    found = [reports.get() for _ in workers]
    report([sum(times) / WORKERS for times in zip(*(ended for ended, _ in found), strict=True)], found[0][1])


def rounds_ended(settings: dict[str, Any], clients: range) -> tuple[list[float], float]:
    """Do one process' share of every round: when each ended, and how far the model has moved."""
    at_hand(APP)
    app, task = load("images.client_app:app", APP, ClientApp, "clientapp"), import_module("images.task")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    begin_run()
    net, ended = task.Net(), []
    first = {name: value.clone() for name, value in net.state_dict().items()}
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
