"""What the server does: FedAvg with clipped updates, and noise where it is asked for."""

import json
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

from clipped.task import start

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Everybody in each round."""
    config = context.run_config
    clients = config["clients"]
    strategy = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients),
        noise_multiplier=config["noise-multiplier"],
        clipping_norm=config["clipping-norm"],
        num_sampled_clients=clients,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in start().items()}),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        evaluate_config=ConfigRecord({"lr": 0.0}),
    )
    if config["result"]:
        told = {
            "arrays": {name: array.numpy().tolist() for name, array in result.arrays.items()},
            "train": {round: dict(record) for round, record in result.train_metrics_clientapp.items()},
            "evaluate": {round: dict(record) for round, record in result.evaluate_metrics_clientapp.items()},
        }
        Path(config["result"]).write_text(json.dumps(told))
