"""A site's server as a process of its own, and nodes that speak Flower's Fleet API without being processes."""

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedsim.deploy import founding, keys
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site, flower_environment
from fedsim.deploy.stage import free_ports

COMMANDS = Path(sys.executable).parent
MISSING = "" if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") else "nginx is not installed here"
"""Why this machine cannot have a server; empty where it can."""


def site_with(folder: Path, *names: str) -> Site:
    """A site on loopback that has admitted nodes; their keys lie in folder/NAME/key."""
    port, inside = free_ports(2)
    site = founding.found(folder / "site", "localhost", port, inside, listen=["127.0.0.1"])
    for name in names:
        admit(site, folder, name)
    return site


def admit(site: Site, folder: Path, name: str) -> None:
    """Make a node's key in folder/NAME and admit it."""
    Registry(site).admit(name, new_key(folder / name))


def new_key(folder: Path) -> keys.Public:
    """A node's key in a new folder of mode 700."""
    folder.mkdir(mode=0o700)
    return keys.make_key(folder)


class Server:
    """`fedsim deploy server` as a process.

    Attributes:
        process: of the command.
        log: what it has said.
    """

    def __init__(self, site: Site, log: Path) -> None:
        self.site, self.log = site, log
        with log.open("wb") as output:
            command = [str(COMMANDS / "fedsim"), "deploy", "server", str(site.folder)]
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def key(self, name: str) -> Path:
        """The key of a node of `site_with`."""
        return self.site.folder.parent / name / "key"

    def said(self) -> list[str]:
        """Its lines so far."""
        return self.log.read_text().splitlines()

    def wait_for(self, line: str, count: int = 1, seconds: float = 90) -> None:
        """Wait until it has said a line so often."""
        wait_until(
            lambda: sum(line in said for said in self.said()) >= count, seconds, lambda: f"{line}: {self.said()}"
        )

    def children(self) -> dict[int, str]:
        """Processes that it has started, also by way of others: their commands by number."""
        parents = {pid: int(stat.rpartition(")")[2].split()[1]) for pid, stat in _proc("stat")}
        commands = dict(_proc("cmdline"))
        found: set[int] = set()
        while more := {pid for pid, parent in parents.items() if parent in {self.process.pid, *found}} - found:
            found |= more
        return {pid: commands.get(pid, "") for pid in found}


def _proc(what: str) -> Iterator[tuple[int, str]]:
    """A file of /proc of every process, by number."""
    for file in Path("/proc").glob(f"[0-9]*/{what}"):
        with suppress(OSError):
            yield int(file.parent.name), file.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def alive(pids: Iterable[int]) -> set[int]:
    """Those of them that run; one that only waits to be waited for does not."""
    states = {pid: stat.rpartition(")")[2].split()[0] for pid, stat in _proc("stat")}
    return {pid for pid in pids if states.get(pid, "Z") != "Z"}


@contextmanager
def serving(site: Site, log: Path) -> Iterator[Server]:
    """A server that answers, ended with the block."""
    server = Server(site, log)
    try:
        server.wait_for("the proxy answers")
        yield server
    finally:
        started = server.children()
        end(server.process)
        for pid in alive(started):
            os.kill(pid, signal.SIGKILL)


def end(process: "subprocess.Popen[bytes]", seconds: float = 40) -> int:
    """End a process that this test started; its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_until(true: Callable[[], Any], seconds: float = 60, what: Callable[[], str] = lambda: "") -> None:
    """Wait until something is so."""
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late, what()
        time.sleep(0.1)


class FleetNode:
    """What a SuperNode says to its server, by Flower's own client."""

    def __init__(self, site: Site, key: Path, version: str | None = None, signed: bool = True) -> None:
        private = load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.public = public_key_to_bytes(private.public_key())
        told = RuntimeVersionHttpInterceptor(component_name="SuperNode") if version is None else _Version(version)
        signing = [NodeAuthHttpInterceptor(private, private.public_key())] if signed else []
        self._client = FleetHttpClient.from_server_address(
            f"localhost:{site.port}", False, site.authority.read_bytes(), [told, *signing]
        )
        self.node = Node()

    def activate(self) -> int:
        """Say that it is there; its number."""
        answer = self._client.ActivateNode(ActivateNodeRequest(public_key=self.public, heartbeat_interval=30))
        self.node = Node(node_id=answer.node_id)
        return int(answer.node_id)

    def heartbeat(self) -> bool:
        """Say that it is still there."""
        return bool(
            self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30)).success
        )

    def pull(self) -> int:
        """Ask for work: how many messages there were."""
        return len(self._client.PullMessages(PullMessagesRequest(node=self.node)).messages_list)

    def status_of(self, call: Callable[[], object]) -> tuple[int, str]:
        """HTTP status and text by which a call is refused; 200 when it is not."""
        try:
            call()
        except httpx.HTTPStatusError as error:
            return error.response.status_code, error.response.text
        return 200, ""


class _Version:
    """Says that this node is of some version of Flower."""

    def __init__(self, version: str) -> None:
        self._version = version

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        told = {"flwr-package-name": "flwr", "flwr-package-version": self._version, "flwr-component-name": "SuperNode"}
        context.request.headers.update(told)
        return call_next(context)


def ask(site: Site, port: int, method: str, path: str, body: bytes = b"") -> int:
    """HTTP status of one request over TLS, by somebody who holds the authority's certificate."""
    context = ssl.create_default_context(cafile=str(site.authority))
    with closing(http.client.HTTPSConnection("localhost", port, timeout=20, context=context)) as connection:
        connection.request(method, path, body, {"content-type": "application/protobuf"})
        return connection.getresponse().status


def supernode(site: Site, home: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    """Start Flower's own program of a node; what it says goes to home/log."""
    home.mkdir()
    command: Sequence[str | Path] = [
        COMMANDS / "flower-supernode",
        *("--superlink", f"localhost:{site.port}"),
        *("--port", str(free_ports(1)[0])),
        *arguments,
    ]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, env=flower_environment(home), stdout=log, stderr=subprocess.STDOUT)
