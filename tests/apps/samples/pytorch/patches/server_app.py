"""What the server does."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from torch.utils.data import DataLoader, TensorDataset

from patches.task import Net, digits, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg from a net whose start is fixed, with everybody in each round."""
    torch.manual_seed(1)
    net = Net()
    clients = context.run_config["clients"]
    strategy = FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=central,
    )
    if context.run_config["result"]:
        Path(context.run_config["result"]).write_text(json.dumps(told(result)))


def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the global model on the rows that no client owns."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    x, y = digits()
    loss, accuracy = test(net, DataLoader(TensorDataset(x[:200], y[:200]), batch_size=256))
    return MetricRecord({"loss": loss, "accuracy": accuracy})


def told(result: Result) -> dict[str, object]:
    """The result as JSON has it."""
    return {
        "arrays": {name: array.numpy().tolist() for name, array in result.arrays.items()},
        "train": {round: dict(record) for round, record in result.train_metrics_clientapp.items()},
        "evaluate": {round: dict(record) for round, record in result.evaluate_metrics_clientapp.items()},
        "central": {round: dict(record) for round, record in result.evaluate_metrics_serverapp.items()},
    }
