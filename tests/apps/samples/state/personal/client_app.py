"""What a client does; what it keeps between messages is in its context's state."""

from collections.abc import Iterator

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from personal import task

app = ClientApp()


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:
    """Before a message the head is there; after it one more is counted."""
    counts = context.state.setdefault("counts", MetricRecord({"begun": 0, "ended": 0, "trained": 0}))
    context.state.setdefault("head", ArrayRecord({"bias": Array(np.zeros(10, np.float32))}))
    counts["begun"] += 1
    yield
    counts["ended"] += 1


@app.query()
def moments(msg: Message, context: Context) -> Message:
    """Number, sum and sum of squares of this client's rows."""
    x, _ = rows(context)
    sums = ArrayRecord({"sum": Array(x.sum(0)), "squares": Array(np.square(x).sum(0))})
    return Message(RecordDict({"sums": sums, "metrics": MetricRecord({"num-examples": len(x)})}), reply_to=msg)


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the weight that came together with this client's own bias, which stays here."""
    x, y = scaled(msg, context)
    weight, bias, rate = received(msg, "weight"), own_bias(context), msg.content["config"]["lr"]
    for _ in range(3):
        down, along = task.gradients(weight, bias, x, y)
        weight, bias = weight - np.float32(rate) * down, bias - np.float32(rate) * along
    keep(context, bias)
    context.state["counts"]["trained"] += 1
    metrics = MetricRecord({"bias": float(np.abs(bias).sum()), "num-examples": len(x)})
    arrays = ArrayRecord({**msg.content["arrays"], "weight": Array(weight)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.train("head")
def train_head(msg: Message, context: Context) -> Message:
    """Train the bias alone; nothing but figures is sent."""
    x, y = scaled(msg, context)
    weight, bias = received(msg, "weight"), own_bias(context)
    for _ in range(msg.content["config"]["steps"]):
        bias = bias - np.float32(0.5) * task.gradients(weight, bias, x, y)[1]
    keep(context, bias)
    partition = context.node_config["partition-id"]
    counts = {f"{name}-before": count for name, count in context.state["counts"].items()}
    metrics = MetricRecord({"partition": partition, "loss": task.loss(weight, bias, x, y), **counts})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Measure the weight that came with this client's own bias."""
    x, y = scaled(msg, context)
    loss = task.loss(received(msg, "weight"), own_bias(context), x, y)
    return Message(RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": len(x)})}), reply_to=msg)


def rows(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """This client's rows as they are."""
    return task.client_rows(context.node_config["partition-id"], context.node_config["num-partitions"])


def scaled(msg: Message, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """This client's rows, scaled as the server says."""
    x, y = rows(context)
    return (x - received(msg, "mean")) / received(msg, "scale"), y


def received(msg: Message, name: str) -> np.ndarray:
    """An array of the message."""
    return msg.content["arrays"][name].numpy()


def own_bias(context: Context) -> np.ndarray:
    """This client's bias."""
    return context.state["head"]["bias"].numpy()


def keep(context: Context, bias: np.ndarray) -> None:
    """Keep a bias for the messages to come."""
    context.state["head"] = ArrayRecord({"bias": Array(bias)})
