"""Mods of this app's own."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable


def counting(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Tell the server how many messages this client has had, of any kind."""
    seen = context.state.setdefault("seen", MetricRecord({"messages": 0}))
    seen["messages"] += 1
    reply = call_next(msg, context)
    if reply.has_content():
        reply.content["metrics"]["messages"] = seen["messages"]
    return reply


def damping(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Go half the way only, in the reply's own records."""
    received = {name: array.numpy() for name, array in msg.content["arrays"].items()}
    reply = call_next(msg, context)
    if reply.has_content():
        arrays: ArrayRecord = reply.content["arrays"]
        for name, array in list(arrays.items()):
            arrays[name] = Array((received[name] + array.numpy()) / 2)
    return reply


def taking_apart(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Empty the message once the client has used it, and change its config: what came is this client's own."""
    reply = call_next(msg, context)
    msg.content["arrays"].clear()
    msg.content["config"]["lr"] = -1.0
    return reply
