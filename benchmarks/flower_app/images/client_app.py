"""What a client does."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from images import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """One local epoch, by the body that the run's config names."""
    torch.set_num_threads(1)
    x, y = task.client_rows(context.node_config["partition-id"])
    body = {"tight": task.tight, "template": task.template, "nothing": task.nothing}[context.run_config["body"]]
    net = body(msg.content["arrays"].to_torch_state_dict(), x, y)
    metrics = MetricRecord({"num-examples": len(x)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=msg)
