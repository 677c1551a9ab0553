"""Flower's private names on a node's side: tasks of a SuperNode, taken and answered by a process of our own.

A SuperNode with `--isolation process` offers its messages at a Runtime API on loopback, where Flower's own executor
would take them to start a program with the server's code. `Runtime` takes them instead, so that nothing of a FAB ever
runs: its bytes are handed out, and the message as Flower's public type. A test watches names and version.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import httpx
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fedsim.errors import DeployError, one_line

CRASHED = int(ErrorCode.CLIENT_APP_CRASHED)
"""Flower's error code for a client whose process died."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_PULSE = 10.0  # seconds between signs of life; a SuperNode gives a task up after 60 without one


class Asked(NamedTuple):
    """A message that waits for its answer.

    Attributes:
        message: what is asked.
        fab: the run's FAB, a zip's bytes, neither unpacked nor read.
        node: the node's id.
    """

    message: Message
    fab: bytes
    node: int


class Task:
    """One task of a SuperNode, from the moment it is taken to its answer; signs of life are sent in between."""

    def __init__(self, address: str, token: str) -> None:
        self._client = _client(address, [RuntimeTokenHttpInterceptor(token)])
        self._done = threading.Event()
        self._pulse = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._pulse.start()

    def asked(self) -> Asked:
        """Fetch what is asked.

        Raises:
            DeployError: the SuperNode does not say.
        """
        try:
            given = self._client.PullTaskInput(PullTaskInputRequest())
            context, fab = context_from_proto(given.context), fab_from_proto(given.fab)
            pulled = self._client.PullMessages(PullAppMessagesRequest())
            if not pulled.messages_list:
                raise DeployError("the SuperNode gave a task without a message")
            tree, node = pulled.message_object_trees[0], Node(node_id=context.node_id)
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id),
                make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id),
                return_type=Message,
            )
        except DeployError:
            raise
        except Exception as error:  # Flower's objects have errors of their own, and a node survives them all
            raise DeployError(f"a message could not be fetched from the SuperNode: {one_line(error)}") from error
        message.metadata.__dict__["_message_id"] = tree.object_id  # which no message carries itself
        return Asked(message, fab.content, context.node_id)

    def answer(self, asked: Asked, reply: Message) -> None:
        """Send the answer; the task is done then.

        Raises:
            DeployError: the SuperNode does not take it.
        """
        try:
            self._push(asked, reply)
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        except Exception as error:
            raise DeployError(f"an answer could not be given to the SuperNode: {one_line(error)}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Send no more signs of life: a task without an answer fails at the SuperNode after a minute."""
        self._done.set()
        self._pulse.join()
        self._client.close()

    def _push(self, asked: Asked, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        described = message_to_proto(remove_content_from_message(reply))
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            pushed = self._client.PushMessages(
                PushAppMessagesRequest(messages_list=[described], message_object_trees=[tree])
            )
            push_object = make_push_object_fn_protobuf(
                self._client.PushObject, Node(node_id=asked.node), asked.message.metadata.run_id, pushed.session_id
            )
            push_objects(objects, push_object, object_ids_to_push=set(pushed.objects_to_push))

    def _live(self) -> None:
        while not self._done.wait(_PULSE):
            with suppress(httpx.HTTPError, ValueError):  # one that is given up is noticed with its answer
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


class Runtime:
    """The tasks of one SuperNode."""

    def __init__(self, address: str, secret: bytes) -> None:
        """Of the SuperNode at HOST:PORT, which gives its tasks to whoever knows its secret."""
        self._address = address
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
        self._client = _client(address, [signed])

    def next(self) -> Task | None:
        """The task that has waited longest, or None where none does, or the SuperNode does not answer now."""
        try:
            taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except (httpx.HTTPError, ValueError):
            return None
        return Task(self._address, taken.token) if taken.HasField("task") and taken.token else None

    def close(self) -> None:
        """Ask no more."""
        self._client.close()


def crashed(message: Message, reason: str) -> Message:
    """The answer to a message whose process died."""
    return Message(Error(CRASHED, reason), reply_to=message)


def _client(address: str, interceptors: Sequence[ProtobufClientInterceptor]) -> RuntimeHttpClient:
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=[version, *interceptors]
    )
