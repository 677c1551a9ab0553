"""The bare contender: FedAvg as a torch loop on one core, without engine, messages or records.

With two processes each does half of every round, training and measuring, and nobody waits for the other: what two
cores could do at best.
"""

import random
import sys
import time
from collections.abc import Callable

import torch
from _at_once import at_once
from _workload import CLIENTS, NETS, arguments, client_rows, distance, measure, parameters_data, train


def main() -> None:
    """Run the rounds in as many processes as the last argument says."""
    processes = int(sys.argv[4])
    at_once(processes, lambda number, begin: rounds_ended(*arguments(), number, processes, begin))


def rounds_ended(
    name: str, cohort: int, rounds: int, number: int, processes: int, begin: Callable[[], object]
) -> tuple[list[float], float]:
    """Do one process' share of every round: when each ended, and how far the model has moved."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    net = NETS[name]()
    own = parameters_data(list(net.parameters()))
    initial = [value.clone() for value in own]
    model, sampler, ended = initial, random.Random(number), []
    begin()
    for _ in range(rounds):
        total = [torch.zeros_like(value) for value in own]
        for client in sampler.sample(range(CLIENTS), cohort // processes):
            torch._foreach_copy_(own, model)
            train(net, *client_rows(client, name))
            torch._foreach_add_(total, own)
        model = [value / (cohort // processes) for value in total]
        torch._foreach_copy_(own, model)
        measure(net, name, processes)
        ended.append(time.time())
    return ended, distance(model, initial)


if __name__ == "__main__":
    main()
