"""Names that Flower keeps to itself, of the coordinator's side: what its Control API is asked and answers.

Flower's public way to that API is the command `flwr ... --format json`. It takes a second of processor time for every
question, and tells neither a node's public key nor when it was last heard of; the API's own answer has both.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.proto import control_pb2, fab_pb2, transport_pb2

MEDIA_TYPE = "application/protobuf"
HEARTBEATS = 2
"""A node is online for so many of its heartbeat intervals after the last heartbeat."""
MESSAGES = {  # by method of the API: what is asked, what is answered
    "list-nodes": (control_pb2.ListNodesRequest, control_pb2.ListNodesResponse),
    "register-node": (control_pb2.RegisterNodeRequest, control_pb2.RegisterNodeResponse),
    "unregister-node": (control_pb2.UnregisterNodeRequest, control_pb2.UnregisterNodeResponse),
    "list-runs": (control_pb2.ListRunsRequest, control_pb2.ListRunsResponse),
    "start-run": (control_pb2.StartRunRequest, control_pb2.StartRunResponse),
    "stop-run": (control_pb2.StopRunRequest, control_pb2.StopRunResponse),
}


def path(method: str) -> str:
    """Where a method of the API is asked."""
    return f"/v1/control/{method}"


def question(method: str, **fields: Any) -> bytes:
    """What is sent to a method of the API."""
    asked: bytes = MESSAGES[method][0](**fields).SerializeToString()
    return asked


def answer(method: str, content: bytes) -> Any:
    """What a method of the API answered.

    Raises:
        google.protobuf.message.DecodeError: it is no such answer.
    """
    told = MESSAGES[method][1]()
    told.ParseFromString(content)
    return told


def app(folder: Path) -> fab_pb2.Fab:
    """The Flower app in a folder, as it travels."""
    content = build_fab_from_disk(folder)
    return fab_pb2.Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)


def settings(values: Mapping[str, str]) -> dict[str, transport_pb2.Scalar]:
    """Values of an app's configuration as they travel."""
    return {key: transport_pb2.Scalar(string=value) for key, value in values.items()}
