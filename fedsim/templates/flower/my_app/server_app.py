"""What the server does."""

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from my_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of FedAvg; after each the global model is measured. Another strategy of Flower's goes in its place."""
    config = context.run_config
    clients = config["min-clients"]
    strategy = FedAvg(
        fraction_train=config["fraction-train"],
        fraction_evaluate=config["fraction-evaluate"],
        min_train_nodes=clients,
        min_evaluate_nodes=clients,
        min_available_nodes=clients,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.Net().state_dict()),
        train_config=ConfigRecord({"learning-rate": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=_measured,
    )


def _measured(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the global model on rows that no client owns."""
    net = task.Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy, _ = task.measure(net, task.central_loader())
    return MetricRecord({"loss": loss, "accuracy": accuracy})
