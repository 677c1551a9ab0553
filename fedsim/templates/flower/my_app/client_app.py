"""What a client does with a message."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from my_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came on this client's rows, and send it back."""
    net = _received(message)
    rows, _ = _own_rows(context)
    loss = task.train(net, rows, context.run_config["local-epochs"], message.content["config"]["learning-rate"])
    metrics = MetricRecord({"loss": loss, "num-examples": len(rows.dataset)})  # FedAvg weights by num-examples
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that came on this client's held-out rows."""
    _, rows = _own_rows(context)
    loss, accuracy, number = task.measure(_received(message), rows)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": number})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _received(message: Message) -> task.Net:
    """The model that came."""
    net = task.Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _own_rows(context: Context) -> tuple[task.Loader, task.Loader]:
    """This client's loaders. In a simulation a node is a number; on a real one, read the node's own files here.

    What a client is to remember from message to message belongs into `context.state`.
    """
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    return task.client_loaders(partition, partitions, context.run_config["batch-size"])
