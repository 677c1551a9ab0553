"""What a client does."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from patches.task import Loader, Net, loaders, test
from patches.task import train as train_net

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train what came on this client's rows."""
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    config = msg.content["config"]
    rows, _ = own(context, config["server-round"])
    loss = train_net(net, rows, context.run_config["local-epochs"], config["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(rows.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Measure what came on this client's held-out rows."""
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, rows = own(context, 0)
    loss, accuracy = test(net, rows)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(rows.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


def own(context: Context, round: int) -> tuple[Loader, Loader]:
    """This client's loaders; a round has an order of its own."""
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    return loaders(partition, partitions, context.run_config["batch-size"], seed=1000 * round + partition)
