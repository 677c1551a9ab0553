"""What a worker does with an app's messages: the ClientApp is called as it is, each client in its own context."""

import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import seeds
from fedsim.apps.loading import at_hand, load, place_of
from fedsim.apps.project import Value
from fedsim.errors import ClientError, FedsimError, one_line
from fedsim.grid import CLIENT_FAILED, Chunk, ChunkProgram, ChunkResult, client_number, failure, with_content
from fedsim.signals import time_limit
from fedsim.states import State

RUN_ID = 1
"""Flower's number of the run."""
UNKNOWN, NOT_LOADED, LATE = 0, 1, 4
"""Flower's error codes: for what has none of its own, for a ClientApp that cannot be loaded, for no reply in time."""
CLIENT_MODULES = "flower app: client's modules"
"""For which the generators are seeded while they are imported."""
_FIXED = ("run_id", "node_id", "run_config", "series_id")
_KEPT = "context"
_SETTABLE = 2
"""Parts of a context beside the fixed ones: node_config and state."""


class App(NamedTuple):
    """All that a worker must know of an app.

    Attributes:
        folder: of the app.
        client: where its ClientApp is, as module:attribute.
        config: the run's settings.
        nodes: how many clients there are.
        seed: of the run.
    """

    folder: Path
    client: str
    config: Mapping[str, Value]
    nodes: int
    seed: int


def program(app: App) -> ChunkProgram:
    """What a worker runs for an app; the ClientApp is loaded first, and where that fails messages are answered so.

    The global generators are left as they happen to be: nothing else in a worker draws from them.
    """
    with seeds.scope(app.seed, CLIENT_MODULES):
        at_hand(app.folder)
        try:
            call: ClientApp | FedsimError = load(app.client, app.folder, ClientApp, "clientapp")
        except FedsimError as error:
            call = error

    def run(chunk: Chunk) -> ChunkResult:
        replies, states, seconds = [], dict(chunk.states), []
        for message in chunk.messages:
            started, client = time.perf_counter(), client_number(message)
            reply, state = _answered(app, call, message, states.get(client))
            replies.append(reply)
            states[client] = state
            seconds.append(time.perf_counter() - started)
        new = {client: state for client, state in states.items() if state is not chunk.states.get(client)}
        return ChunkResult(replies, {client: state for client, state in new.items() if state is not None}, seconds)

    return run


def _answered(
    app: App, call: ClientApp | FedsimError, message: Message, kept: State | None
) -> tuple[Message, State | None]:
    """The reply to a message, and the context that its client has afterwards; after a failure it is the old one."""
    if isinstance(call, FedsimError):
        return failure(message, NOT_LOADED, str(call)), kept
    client = client_number(message)
    seeds.seed_globals(app.seed, "flower app: client", int(message.metadata.message_id.rpartition(":")[2]), client)
    usual = {"partition-id": client, "num-partitions": app.nodes}
    context = Context(RUN_ID, message.metadata.dst_node_id, dict(usual), RecordDict(), dict(app.config))
    try:
        if kept is not None:
            vars(context).update(pickle.loads(kept[_KEPT].numpy().data))
        with time_limit(message.metadata.ttl, "the message's time to live"):
            reply = call(with_content(message, isolated(message.content)), context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ValueError("the ClientApp returned a message that is no reply to the one it got")
        if reply.has_content():
            reply.content = isolated(reply.content)
        state = _kept(context, usual, kept)
    except ClientError as error:
        return failure(message, LATE, str(error)), kept
    except (Exception, SystemExit) as error:
        return failure(message, CLIENT_FAILED, f"{one_line(error)}{place_of(error, app.folder)}"), kept
    if context.run_config != app.config:
        return failure(message, UNKNOWN, "the ClientApp changed context.run_config, which is the whole run's"), kept
    return reply, state


def isolated(content: RecordDict) -> RecordDict:
    """The same content in containers of its own, so that nobody else sees what is put in or taken out; no array is
    copied."""
    mine = content.copy()
    for name, record in content.items():
        mine[name] = own = record.copy()
        if isinstance(own, ConfigRecord | MetricRecord):
            for key, value in record.items():
                if isinstance(value, list):
                    own[key] = list(value)  # type: ignore[assignment]
    return mine


def _kept(context: Context, usual: Mapping[str, Any], before: State | None) -> State | None:
    """What is kept of a context: nothing where it is as at first, and what was kept before where it is that."""
    values = {name: value for name, value in vars(context).items() if name not in _FIXED}
    if before is None and not context.state and context.node_config == usual and len(values) == _SETTABLE:
        return None
    content = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)
    if before is not None and content == before[_KEPT].numpy().tobytes():
        return before
    return {_KEPT: torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.uint8))}
