"""The stock contenders' client; a module of its own, so that Ray's workers import it.

Two kinds, because a stock user writes the client himself. "usual" is that of Flower's PyTorch template: a new
net, DataLoader and optimiser for every message. "tight" trains by the same loop as the bare contender on a net
that its process keeps, so what differs from bare is Flower's engine alone.
"""

from functools import cache

import torch
from _workload import BATCH, LEARNING_RATE, NETS, ROWS, client_rows, mean_loss, train
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def usual(name: str, client: int, received: ArrayRecord) -> nn.Module:
    """The received model after one local epoch, trained as Flower's PyTorch template does."""
    net = NETS[name]()
    net.load_state_dict(received.to_torch_state_dict())
    loader = DataLoader(TensorDataset(*client_rows(client, name)), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    net.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.autograd.backward(mean_loss(net(inputs), targets))
        optimizer.step()
    return net


def tight(name: str, client: int, received: ArrayRecord) -> nn.Module:
    """The received model after one local epoch, trained as the bare contender does."""
    net = net_of_this_process(name)
    net.load_state_dict(received.to_torch_state_dict())
    train(net, *client_rows(client, name))
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
