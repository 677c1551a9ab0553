"""The bare contender: FedAvg as a torch loop on one core, without engine, messages or records."""

import random
import time

import torch
from _workload import CLIENTS, NETS, arguments, client_rows, parameters_data, report, train


def main() -> None:
    """Run the rounds and report when each ended."""
    torch.set_num_threads(1)
    name, cohort, rounds = arguments()
    net = NETS[name]()
    own = parameters_data(list(net.parameters()))
    model = [value.clone() for value in own]
    sampler, ended = random.Random(1), []
    for _ in range(rounds):
        total = [torch.zeros_like(value) for value in own]
        for client in sampler.sample(range(CLIENTS), cohort):
            torch._foreach_copy_(own, model)
            train(net, *client_rows(client))
            torch._foreach_add_(total, own)
        model = [value / cohort for value in total]
        ended.append(time.time())
    report(ended)


if __name__ == "__main__":
    main()
