"""The stock contenders: Flower's own simulation with two Ray actors of one core each, and its own FedAvg.

Two clients, because a stock user writes the client himself. "usual" is that of Flower's PyTorch template: a
new net, DataLoader and optimiser for every message. "tight" trains by the same loop as the bare contender on
a net that its process keeps, so what differs from bare is Flower's engine alone. Neither evaluates.
"""

import logging
import sys
import time
from collections.abc import Iterable
from functools import cache

import torch
from _workload import BATCH, CLIENTS, LEARNING_RATE, NETS, ROWS, arguments, client_rows, report, train
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WORKERS = 2


def usual(name: str, client: int, received: ArrayRecord) -> nn.Module:
    """The received model after one local epoch, trained as Flower's PyTorch template does."""
    net = NETS[name]()
    net.load_state_dict(received.to_torch_state_dict())
    loader = DataLoader(TensorDataset(*client_rows(client)), batch_size=BATCH, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    net.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        criterion(net(inputs), targets).backward()
        optimizer.step()
    return net


def tight(name: str, client: int, received: ArrayRecord) -> nn.Module:
    """The received model after one local epoch, trained as the bare contender does."""
    net = net_of_this_process(name)
    net.load_state_dict(received.to_torch_state_dict())
    train(net, *client_rows(client))
    return net


@cache
def net_of_this_process(name: str) -> nn.Module:
    """A net that the clients of one actor use in turn."""
    return NETS[name]()


def client_app(name: str, kind: str) -> ClientApp:
    """The client as Flower runs it."""
    app = ClientApp()
    local_epoch = {"usual": usual, "tight": tight}[kind]

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        received = message.content.array_records["arrays"]
        net = local_epoch(name, int(context.node_config["partition-id"]), received)
        metrics = MetricRecord({"num-examples": ROWS})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    return app


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


def server_app(name: str, cohort: int, rounds: int, ended: list[float]) -> ServerApp:
    """FedAvg; appends the Unix time at which every round ended."""
    app = ServerApp()

    def note_the_time(round: int, arrays: ArrayRecord) -> None:
        if round > 0:
            ended.append(time.time())

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FailSafeFedAvg(fraction_train=cohort / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        strategy.start(grid, ArrayRecord(NETS[name]().state_dict()), num_rounds=rounds, evaluate_fn=note_the_time)

    return app


def main(kind: str) -> None:
    """Run the rounds and report when each ended."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    name, cohort, rounds = arguments()
    ended: list[float] = []
    run_simulation(
        server_app(name, cohort, rounds, ended),
        client_app(name, kind),
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS, "logging_level": logging.CRITICAL, "log_to_driver": False},
        },
    )
    report(ended)


if __name__ == "__main__":
    main(sys.argv[4])
