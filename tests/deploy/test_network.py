"""A deployment between machines: a server and three nodes with addresses of their own, and those who are kept out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from fedsim.data.corpus import Folders
from fedsim.deploy.rehearse import deal, everybody
from fedsim.deploy.site import flower_environment
from fedsim.federating import federate
from fedsim.rounds import run
from fedsim.scenario import load
from tests.deploy import network, served
from tests.deploy.network import Network

pytestmark = [
    pytest.mark.skipif(bool(network.MISSING or served.MISSING), reason=network.MISSING or served.MISSING),
    pytest.mark.timeout(400),
]
Done = subprocess.CompletedProcess[str]
BIN = Path(sys.executable).parent
FEDSIM = BIN / "fedsim"
PORT = 8443
NODES = 3
STRANGER = NODES  # the machine of those who are kept out
SCENARIO = """
title = "Over a network"
seed = 1
rounds = 2
data = { name = "digits", partition = { kind = "dirichlet", clients = 3, alpha = 0.5 } }
model = { name = "mlp", hidden = [16] }
train = { learning_rate = 0.2, batch_size = 32 }
engine = { kind = "inline" }
"""


class World:
    """The machines, and what runs on them.

    Attributes:
        folder: of everything, which all machines see; each uses its own part.
        site: the coordinator's folder.
    """

    def __init__(self, folder: Path, wires: Network) -> None:
        self.folder, self.site, self._wires = folder, folder / "site", wires
        self._running: list[subprocess.Popen[bytes]] = []
        self._environment = flower_environment(folder / "flwr")

    def ask(self, machine: int | None, *command: str | Path, seconds: float = 120) -> Done:
        """A command's end, on the server (None) or a machine; whatever it has started ends with it."""
        log, errors = self.folder / "asked.log", self.folder / "asked.errors"
        for file in (log, errors):
            file.unlink(missing_ok=True)
        begun = self.start(machine, *command, log=log, errors=errors)
        try:
            status = begun.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(begun.pid, signal.SIGKILL)
        return Done(begun.args, status, log.read_text(), errors.read_text())

    def start(
        self, machine: int | None, *command: str | Path, log: Path, errors: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """A command that goes on."""
        there = self._on(machine, command)
        with log.open("ab") as output, (errors or log).open("ab") as second:
            begun = subprocess.Popen(
                there, cwd=self.folder, env=self._environment, stdout=output, stderr=second, start_new_session=True
            )
        self._running.append(begun)
        return begun

    def _on(self, machine: int | None, command: Sequence[str | Path]) -> list[str]:
        first, *rest = map(str, command)
        whole = [str(FEDSIM), first, *rest] if first == "deploy" else [first, *rest]
        return self._wires.on_server(whole) if machine is None else self._wires.on(machine, whole)

    def join(self, machine: int, name: str) -> dict[str, str]:
        """Make a node's folder on a machine; what the command told."""
        home = self.folder / "nodes" / name / "node"
        home.parent.mkdir(exist_ok=True)
        made = self.ask(
            machine,
            "deploy",
            "join",
            "--invitation",
            self.site / "invitation.toml",
            "--out",
            home,
            "--name",
            name,
            "--json",
        )
        found: dict[str, str] = json.loads(told(made))
        return found

    def admit(self, machine: int, name: str) -> None:
        """Make a node's folder on a machine, and let it take part."""
        made = self.join(machine, name)
        told(self.ask(None, "deploy", "admit", name, made["fingerprint"], "--on", self.site, "--key", made["send"]))

    def node(self, number: int) -> Path:
        """A node's folder."""
        return self.folder / "nodes" / f"node-{number}" / "node"

    def close(self) -> None:
        """End everything that was started, the last first."""
        for begun in reversed(self._running):
            if begun.poll() is None:
                os.killpg(begun.pid, signal.SIGTERM)
                try:
                    begun.wait(40)
                except subprocess.TimeoutExpired:
                    os.killpg(begun.pid, signal.SIGKILL)
                    begun.wait()


def told(done: Done) -> str:
    """What a command printed that must not fail."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(log: Path, text: str, seconds: float = 90) -> str:
    """Wait until a log says something; what it says by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said = log.read_text() if log.exists() else ""
        if re.search(text, said):
            return said
        time.sleep(0.3)
    raise AssertionError(f"{log} does not say {text!r}: {log.read_text() if log.exists() else 'nothing'}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server and three nodes that are connected, each on its machine."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "scenario.toml").write_text(SCENARIO)
    deal(federate(everybody(load(str(folder / "scenario.toml")), NODES), Folders.of(None, folder)), folder)
    with network.network(NODES + 1) as wires:
        made = World(folder, wires)
        try:
            told(made.ask(None, "deploy", "init", made.site, "--host", wires.server, "--port", str(PORT)))
            for number in range(NODES):
                made.admit(number, f"node-{number}")
            made.start(None, "deploy", "server", made.site, log=folder / "server.log")
            until(folder / "server.log", "the proxy answers")
            for number in range(NODES):
                home = made.node(number)
                made.start(number, "deploy", "node", home, "--data", home.parent / "data", log=folder / f"{number}.log")
            for number in range(NODES):
                until(folder / f"{number}.log", "connected")
            yield made
        finally:
            made.close()


def test_the_scenario_runs_between_machines(world: World) -> None:
    """What was simulated, unchanged, over wires: the same bits, since nothing in it is secret."""
    out = world.folder / "run"
    ran = world.ask(
        None,
        "deploy",
        "run",
        world.folder / "scenario.toml",
        "--on",
        world.site,
        "--nodes",
        "3",
        "--out",
        out,
        "--json",
    )
    values = json.loads(told(ran))
    simulated = run(everybody(load(str(world.folder / "scenario.toml")), NODES), out=world.folder / "simulated")
    assert values["fingerprint"] == simulated.fingerprint
    assert values["status"] == "done" and (out / "report.html").is_file()


def test_a_node_whose_key_was_not_admitted_is_kept_out(world: World) -> None:
    """The SuperLink knows keys, not names."""
    world.join(STRANGER, "stranger")
    home = world.folder / "nodes/stranger/node"
    refused = world.ask(STRANGER, "deploy", "node", home, "--data", world.node(0).parent / "data")
    assert refused.returncode != 0
    assert "not admitted" in refused.stdout + refused.stderr and "Traceback" not in refused.stdout + refused.stderr


def test_a_node_without_tls_is_kept_out(world: World) -> None:
    """The port speaks TLS alone, so that nothing is said in clear."""
    command: list[str | Path] = [
        BIN / "flower-supernode",
        "--insecure",
        "--superlink",
        f"{Network.server}:{PORT}",
        "--max-retries",
        "1",
    ]
    refused = world.ask(STRANGER, *command, "--max-retries", "1", "--max-wait-time", "5", "--port", "18999")
    assert refused.returncode != 0
    assert "SuperNode ID" not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/pull-task", "/health", "/"]
)
def test_a_stranger_with_the_certificate_reaches_the_nodes_api_alone(world: World, path: str) -> None:
    """Behind the proxy, Flower's Control API asks nobody who he is: it must not be there for anybody else."""
    answer = world.ask(STRANGER, *fetching(world, PORT, path))
    assert answer.stdout == "403"


def test_a_stranger_cannot_reach_the_superlink_itself(world: World) -> None:
    """It listens on loopback, whatever a stranger holds."""
    port = int(re.search(r"superlink_port = (\d+)", (world.site / "site.toml").read_text())[1])  # type: ignore[index]
    assert world.ask(STRANGER, *fetching(world, port, "/v1/control/list-nodes")).stdout == "000"
    assert world.ask(None, *fetching(world, port, "/health", "127.0.0.1")).stdout != "000"


def fetching(world: World, port: int, path: str, host: str = Network.server) -> list[str]:
    """A command that prints the status of an answer; 000 where nobody answers."""
    trusted = ["--cacert", str(world.site / "ca/ca.crt"), "--max-time", "10", "--noproxy", "*"]
    quiet = ["--silent", "--output", os.devnull, "--write-out", "%{http_code}"]
    return ["curl", *trusted, *quiet, "--request", "POST", "--data", "x", f"https://{host}:{port}{path}"]


START = """
import sys
from pathlib import Path
from fedsim.deploy.control import Control
from fedsim.deploy.site import Site

Control(Site.open(Path(sys.argv[1]))).start(Path(sys.argv[2]), {})
"""
MACHINE = "/proc/self/ns/net"
FOREIGN = {
    "pyproject.toml": """
[project]
name = "deployment"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedsim"
[tool.flwr.app.components]
serverapp = "mine:server"
clientapp = "mine:client"
""",
    "mine.py": """
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

import fedsim

server, client = ServerApp(), ClientApp()


@server.main()
def main(grid, context):
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(messages, timeout=60):
        print("ANSWERED", reply.error.reason if reply.has_error() else reply.content, flush=True)
""",
    "fedsim/__init__.py": """
import os
from pathlib import Path

Path("MARK").parent.mkdir(parents=True, exist_ok=True)
with Path("MARK").open("a") as file:
    file.write(os.readlink("MACHINE") + "\\n")
""",
}


def test_a_fedsim_that_the_coordinator_sends_never_runs_on_a_node(world: World) -> None:
    """A FAB is code, and nodes run none: it is refused, logged, and no row is read for it."""
    app, mark = world.folder / "foreign", world.folder / "marks/mark"
    for name, text in FOREIGN.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text.replace("MARK", str(mark)).replace("MACHINE", MACHINE))
    told(world.ask(None, sys.executable, "-c", START, world.site, app))
    for number in range(NODES):
        said = until(world.folder / f"{number}.log", "refused.*fedsim/__init__.py")
        last = json.loads(told(world.ask(number, "deploy", "log", world.node(number), "--json")))[-1]
        assert last["kind"] == "refused" and "fedsim/__init__.py" in last["why"], said
    assert not list(world.folder.glob("nodes/*/node/**/mine.py"))
    here = told(world.ask(None, "readlink", MACHINE))
    assert mark.read_text() == here  # once: in the ServerApp, on the coordinator's own machine
