"""A SuperNode's Runtime API in this process, without a server: messages are put in, and answers taken out."""

import socket
import threading
import time

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

RUN, NODE = 1, 4711


class SuperNode:
    """What a SuperNode keeps between the server and whoever takes its tasks.

    Attributes:
        address: of the Runtime API.
        secret: for whom its tasks are.
    """

    def __init__(self, fab: bytes) -> None:
        """Serve the tasks of one run."""
        self.secret = b"a secret of 32 bytes, more or less"
        store = ObjectStoreFactory()
        factory = NodeStateFactory(objectstore_factory=store)
        self._state, self._store = factory.state(), store.store()
        self._state.set_node_id(NODE)
        run = Run.create_empty(RUN)
        run.fab_hash = self._state.store_fab(Fab("", fab, {}))
        self._run = run
        self._state.store_run(run)
        context = Context(RUN, NODE, {}, RecordDict(), {})
        self._state.set_run_series_context(run.series_id, context)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        app = create_app(factory, self.secret)
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def put(self, message: Message) -> None:
        """Have a message wait for whoever takes tasks."""
        self._state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=self._run.fab_hash)
        name = message.object_id
        message.metadata.__dict__["_message_id"] = name
        self._store.preregister(RUN, get_object_tree(message))
        for key, value in get_all_nested_objects(message).items():
            self._store.put(key, value.deflate())
        self._state.store_message(remove_content_from_message(message))

    def answer(self) -> Message | None:
        """The answer that was given, if one was."""
        given = self._state.get_messages_legacy(is_reply=True)
        if not given:
            return None
        name = given[0].metadata.message_id
        tree = self._store.get_object_tree(name)
        contents = {each.object_id: self._store.get(each.object_id) or b"" for each in iterate_object_tree(tree)}
        found = inflate_object_from_contents(name, contents)
        assert isinstance(found, Message)
        return found

    def close(self) -> None:
        """Serve no more."""
        self._server.should_exit = True
        self._thread.join()
