"""What the server does: FedAvg with everybody; it prints the Unix time at which each round ended."""

import json
import time
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from images.task import Net, measure

app = ServerApp()


class AllMustReply(FedAvg):
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


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds without evaluation by clients."""
    torch.manual_seed(1)
    start = Net()
    clients, ended = context.run_config["clients"], []

    def measured(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net = Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = measure(net)
        if server_round > 0:
            ended.append(time.time())
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = AllMustReply(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(start.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=measured,
    )
    last = result.arrays.to_torch_state_dict()
    squares = [(last[name] - value).square().sum() for name, value in start.state_dict().items()]
    print(json.dumps({"ended": ended, "moved": float(sum(squares)) ** 0.5}), flush=True)
