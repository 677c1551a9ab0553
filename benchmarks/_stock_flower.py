"""The stock contenders: Flower's own simulation with two Ray actors of one core each, and its own FedAvg."""

import logging
import sys
import time
from collections.abc import Iterable

import torch
from _stock_client import client_app
from _workload import CLIENTS, NETS, arguments, distance, measure, report
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

WORKERS = 2


class FailSafeFedAvg(FedAvg):
    """FedAvg that does not pass over failed clients: they would make a round look fast."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate, after making sure that every client has trained."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"round {server_round}: {reply.error.reason}")
        return super().aggregate_train(server_round, replies)


def server_app(net: nn.Module, name: str, cohort: int, rounds: int, ended: list[float]) -> ServerApp:
    """FedAvg; leaves the last model in the net, and appends the Unix time at which every round ended."""
    app = ServerApp()

    def measured(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if round == 0:
            return None
        net.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = measure(net, name)
        ended.append(time.time())
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(WORKERS)  # the actors wait while the server measures
        strategy = FailSafeFedAvg(fraction_train=cohort / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=rounds, evaluate_fn=measured)

    return app


def main(kind: str) -> None:
    """Run the rounds and report when each ended."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    name, cohort, rounds = arguments()
    ended: list[float] = []
    net = NETS[name]()
    initial = [value.clone() for value in net.parameters()]
    run_simulation(
        server_app(net, name, cohort, rounds, ended),
        client_app(name, kind),
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS, "logging_level": logging.CRITICAL, "log_to_driver": False},
        },
    )
    report(ended, distance(list(net.parameters()), initial))


if __name__ == "__main__":
    main(sys.argv[4])
