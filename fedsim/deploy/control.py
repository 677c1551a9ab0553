"""What a coordinator asks of the SuperLink: which nodes and runs it has; to admit, to end, to start.

The SuperLink's Control API asks nobody who he is, which is why it listens on loopback alone.
"""

import http.client
import json
import ssl
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.deploy.site import Site
from fedsim.errors import DeployError

HOST = "127.0.0.1"
_SECONDS = 20.0


class Known(NamedTuple):
    """A node as the SuperLink knows it.

    Attributes:
        node_id: Flower's, 64 bits; new with every key.
        name: by which it was registered.
        public_key: PEM.
        status: registered (never seen), online, offline, unregistered (for ever: Flower takes no key twice).
        contact: Unix time of the last heartbeat, which an online node sends every 30 s; of a node that is offline
            without having said so a minute later; None if it was never there.
        age: seconds since then, by the SuperLink's clock.
    """

    node_id: int
    name: str
    public_key: str
    status: str
    contact: float | None
    age: float | None


class Started(NamedTuple):
    """A run as the SuperLink knows it.

    Attributes:
        run_id: Flower's.
        ticket: of the app's configuration, by which `fedsim deploy run` finds it.
        status: pending, starting, running or finished.
        outcome: of a finished one: completed, failed or stopped.
        details: what Flower says of that.
        begun: Unix time at which it was asked for.
    """

    run_id: int
    ticket: str
    status: str
    outcome: str
    details: str
    begun: float


class Control:
    """The Control API of a site's SuperLink; every method raises DeployError when it does not answer."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def nodes(self) -> list[Known]:
        """All nodes that were ever registered, in the order of their registration."""
        told = self._ask("list-nodes")
        now = datetime.fromisoformat(told.now).timestamp()
        return [_known(node, now) for node in sorted(told.nodes_info, key=lambda node: str(node.registered_at))]

    def register(self, name: str, public_key: str) -> int:
        """Let the owner of a key (PEM) take part; the node id that the SuperLink gives it.

        Raises:
            DeployError: the key is or was registered.
        """
        return int(self._ask("register-node", name=name, public_key=public_key.encode()).node_id)

    def unregister(self, node_id: int) -> None:
        """Let a node take part no more: its next request is refused, and its key can never be registered again."""
        self._ask("unregister-node", node_id=node_id)

    def runs(self) -> list[Started]:
        """The last hundred runs, the last one first."""
        found = [_started(run) for run in self._ask("list-runs", limit=100).run_dict.values()]
        return sorted(found, key=lambda run: run.begun, reverse=True)

    def start(self, app: Path, configuration: Mapping[str, str]) -> int:
        """Start the Flower app in a folder; its run id.

        Args:
            app: holds pyproject.toml and what it names.
            configuration: of its [tool.flwr.app.config] keys those that are to be changed.
        """
        from fedsim.deploy import _control

        fields = {"fab": _control.app(app), "override_config": _control.settings(configuration)}
        return int(self._ask("start-run", **fields).run_id)

    def stop(self, run_id: int) -> None:
        """End a run at once."""
        self._ask("stop-run", run_id=run_id)

    def _ask(self, method: str, **fields: Any) -> Any:
        from fedsim.deploy import _control

        status, content = _post(self._site, _control.path(method), _control.question(method, **fields))
        if status != http.client.OK:
            raise DeployError(f"the SuperLink does not {method.replace('-', ' ')}: {_reason(status, content)}")
        return _control.answer(method, content)


def healthy(site: Site) -> bool:
    """Whether the SuperLink answers, with the site's certificate."""
    try:
        return _send(site, "GET", "/health", None)[0] == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


def _post(site: Site, path: str, body: bytes) -> tuple[int, bytes]:
    try:
        return _send(site, "POST", path, body)
    except (OSError, http.client.HTTPException) as error:
        raise DeployError(
            f"the SuperLink does not answer on {HOST}:{site.superlink_port} ({error}): "
            f"start it with fedsim deploy server {site.folder}"
        ) from error


def _send(site: Site, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    """Over TLS and without a proxy, whatever the environment says of one."""
    from fedsim.deploy._control import MEDIA_TYPE

    context = ssl.create_default_context(cafile=str(site.authority))
    connection = http.client.HTTPSConnection(HOST, site.superlink_port, timeout=_SECONDS, context=context)
    with closing(connection):
        connection.request(method, path, body, {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE})
        response = connection.getresponse()
        return response.status, response.read()


def _reason(status: int, content: bytes) -> str:
    """Why not, in Flower's words."""
    try:
        told = json.loads(content)
        return " ".join(str(told[key]) for key in ("detail", "extra") if key in told)
    except (ValueError, TypeError, KeyError):
        return f"HTTP status {status}"


def _known(node: Any, now: float) -> Known:
    from fedsim.deploy._control import HEARTBEATS

    contact = node.online_until if node.HasField("online_until") else None
    if contact is not None and node.status == "online":
        contact -= HEARTBEATS * node.heartbeat_interval
    age = None if contact is None else max(0.0, now - contact)
    return Known(node.node_id, node.name, node.public_key.decode(), node.status, contact, age)


def _started(run: Any) -> Started:
    begun = datetime.fromisoformat(run.pending_at).timestamp() if run.pending_at else 0.0
    state = run.status
    ticket = run.override_config["ticket"].string if "ticket" in run.override_config else ""
    return Started(run.run_id, ticket, state.status, state.sub_status, state.details, begun)
