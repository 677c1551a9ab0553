"""What a client does, and the mods around it."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod

from clipped import task
from clipped.mods import counting, damping, taking_apart

app = ClientApp(mods=[counting])


@app.train(mods=[fixedclipping_mod, damping])
def train(msg: Message, context: Context) -> Message:
    """Train what came on this client's rows; the update is damped, then clipped."""
    x, y = own(context)
    model = task.train(received(msg), x, y, msg.content["config"]["lr"])
    arrays = ArrayRecord({name: Array(value) for name, value in model.items()})
    metrics = MetricRecord({"num-examples": len(x)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate(mods=[taking_apart])
def evaluate(msg: Message, context: Context) -> Message:
    """Measure what came on this client's rows."""
    x, y = own(context)
    loss = task.loss(received(msg), x, y)
    metrics = MetricRecord({"eval_loss": loss, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


def received(msg: Message) -> task.Arrays:
    """The model that came."""
    return {name: array.numpy() for name, array in msg.content["arrays"].items()}


def own(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """This client's rows."""
    return task.client_rows(context.node_config["partition-id"], context.node_config["num-partitions"])
