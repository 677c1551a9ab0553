"""A node as its owner starts it, with a real server behind its proxy: connected, refused, restarted, ended."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsim.data import dealt
from fedsim.deploy import certificates, keys
from fedsim.deploy.control import Control
from fedsim.deploy.joining import Server as Address
from fedsim.deploy.joining import join
from fedsim.deploy.node import connection
from fedsim.deploy.node import log as logs
from fedsim.deploy.node.connection import Watch
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site
from fedsim.deploy.stage import free_ports
from fedsim.deploy.superlink import synchronised
from fedsim.errors import DeployError
from tests import small
from tests.deploy.served import MISSING, Server, alive, serving, site_with, wait_until

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
PROGRAM = """
import sys
from pathlib import Path
from fedsim.deploy.node.supervise import run_node
from fedsim.errors import DeployError
try:
    run_node(Path(sys.argv[1]), Path(sys.argv[2]))
except DeployError as error:
    sys.exit(f"fedsim: {error}")
"""
PROJECT = """
[project]
name = "rogue"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "rogue"
[tool.flwr.app.components]
serverapp = "rogue.server:app"
clientapp = "rogue.client:app"
[tool.flwr.app.config]
"""
ASKS = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    messages = [Message(RecordDict({"config": ConfigRecord({})}), nodes[0], "train")]
    (reply,) = grid.send_and_receive(messages, timeout=60)
    Path(OUT).write_text(f"{reply.error.code} {reply.error.reason}" if reply.has_error() else "answered")
"""


class Process:
    """A node's process, and what it has said."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self._log = folder, folder.with_suffix(".out")
        with self._log.open("wb") as output:
            command = [sys.executable, "-c", PROGRAM, str(folder), str(data)]
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """All of it."""
        return self._log.read_text()

    def wait_for(self, words: str, count: int = 1, seconds: float = 90) -> None:
        """Wait until it has said these words so often."""
        wait_until(
            lambda: len(re.findall(words, self.said())) >= count, seconds, lambda: f"no {words!r} in {self.said()}"
        )

    def children(self) -> dict[int, str]:
        """The commands of its processes."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    line = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(stat.parent.name)] = line
            except OSError:
                continue
        return found


@contextmanager
def node(
    site: Site, folder: Path, name: str, *, authority: bytes | None = None, admit: bool = True
) -> Iterator[Process]:
    """A node that was joined, and admitted, while it runs."""
    place = folder / name
    trusted = authority if authority is not None else site.authority.read_bytes()
    public = join(place, Address("localhost", site.port, trusted), name)
    if admit:
        Registry(site).admit(name, public)
        synchronised(site)
    process = Process(place, folder / "rows")
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    dealt.write(small.job().federation, 1, folder / "rows")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(site_with(folder), folder / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def north(server: Server, folder: Path) -> Iterator[Process]:
    with node(server.site, folder, "north") as process:
        process.wait_for("connected to localhost")
        yield process


def asked(server: Server, folder: Path, name: str) -> tuple[str, bool]:
    """What a node answers to an app of the server's own code, and whether anything of its client half ran."""
    app, ran, out = folder / name, folder / f"{name}-ran", folder / f"{name}-reply"
    mark = f"open({str(ran)!r}, 'a').write(__file__)\n"
    for file, text in {
        "pyproject.toml": PROJECT,
        "rogue/__init__.py": "",
        "rogue/server.py": ASKS.replace("OUT", repr(str(out))),
        "rogue/client.py": mark + "from flwr.clientapp import ClientApp\napp = ClientApp()\n",
        "fedsim/__init__.py": mark,
        "fedsim/deploy/node/ledger.py": mark,
    }.items():
        (app / file).parent.mkdir(parents=True, exist_ok=True)
        (app / file).write_text(text)
    Control(server.site).start(app, {})
    wait_until(lambda: out.exists() and bool(out.read_text()), 120, lambda: "the ServerApp has no reply")
    return out.read_text(), ran.exists()


def test_what_a_server_sends_as_code_is_never_run(server: Server, north: Process, folder: Path) -> None:
    """An app with a fedsim of its own: refused and logged, and there is nothing of Flower's that would run it."""
    reply, ran = asked(server, folder, "app")
    assert reply.startswith("2 refused: the app holds 'fedsim/") and not ran
    north.wait_for("refused: train")
    (entry,) = [entry for entry in logs.entries(north.folder / "log.jsonl") if entry["kind"] == "refused"]
    assert "fedsim/" in entry["why"]
    commands = " ".join(north.children().values())
    assert "flower-supernode" in commands and "flower-superexec" not in commands and "clientapp" not in commands


def test_a_process_that_died_idle_is_started_again(north: Process) -> None:
    """The warm process by SIGKILL, before anybody asks for it."""
    (warm,) = [pid for pid, command in north.children().items() if "warm" in command]
    os.kill(warm, signal.SIGKILL)
    north.wait_for("is started again")
    wait_until(
        lambda: any("warm" in each for pid, each in north.children().items() if pid != warm), what=lambda: "no new one"
    )


def test_an_unknown_key_is_told_and_not_tried_for_ever(server: Server, folder: Path) -> None:
    """One line, which names the key's fingerprint."""
    with node(server.site, folder, "stranger", admit=False) as process:
        assert process.process.wait(60) == 1
        fingerprint = keys.read_key(process.folder / "key").fingerprint
        assert fingerprint in process.said().splitlines()[-1]
        assert "does not take this node's key" in process.said()


def test_a_foreign_authority_is_told(server: Server, folder: Path) -> None:
    """Before anything is sent to who might be somebody else."""
    foreign = certificates.make_authority("localhost").certificate
    with node(server.site, folder, "misled", authority=foreign, admit=False) as process:
        assert process.process.wait(60) == 1
        assert "was not signed by the authority" in process.said().splitlines()[-1]


def test_a_second_process_on_one_folder_is_refused(north: Process, folder: Path) -> None:
    """Two would answer each other's messages."""
    again = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(north.folder), str(folder / "rows")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert again.returncode == 1 and again.stderr.splitlines()[-1].endswith("this node runs already")


@pytest.mark.proof
def test_a_proxy_and_a_superlink_that_die_are_survived(server: Server, north: Process, folder: Path) -> None:
    """The node answers again once the server has restarted them, without a word of its owner's."""
    for program, line in (("master process", "the proxy answers"), ("flower-superlink", "the SuperLink answers")):
        (pid,) = [pid for pid, command in server.children().items() if program in command]
        os.kill(pid, signal.SIGKILL)
        server.wait_for(line, 2)
    assert asked(server, folder, "later")[0].startswith("2 refused: ")
    assert north.process.poll() is None


def test_a_revoked_node_ends_and_says_why(server: Server, north: Process) -> None:
    """And nothing of it stays behind."""
    children = set(north.children())
    Registry(server.site).revoke("north")
    synchronised(server.site)
    assert north.process.wait(60) == 1
    assert "does not take this node's key" in north.said().splitlines()[-1]
    assert not alive(children)


def test_a_node_that_is_told_to_stop_leaves_nothing_running(server: Server, folder: Path) -> None:
    """SIGTERM, as systemd sends it; the server knows at once."""
    with node(server.site, folder, "south") as process:
        process.wait_for("connected to localhost")
        children = set(process.children())
        process.process.terminate()
        assert process.process.wait(30) == 0 and process.said().splitlines()[-1].endswith("stopped")
        assert len(children) == 2 and not alive(children)
        assert {known.name: known.status for known in Control(server.site).nodes()}["south"] == "offline"


@pytest.mark.proof
def test_a_node_that_is_killed_takes_its_processes_with_it(server: Server, folder: Path) -> None:
    """Nobody would know of a SuperNode that goes on by itself."""
    with node(server.site, folder, "east") as process:
        process.wait_for("connected to localhost")
        children = set(process.children())
        process.process.kill()
        wait_until(lambda: not alive(children), 30, lambda: "its processes live on")


def test_a_server_that_is_not_there_is_waited_for_and_no_longer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line at once, an error when the patience is over; an answer in between ends the waiting."""
    (port,) = free_ports(1)
    join(folder / "alone", Address("localhost", port, certificates.make_authority("localhost").certificate), "alone")
    home, lines = NodeFolder.open(folder / "alone"), list[str]()
    monkeypatch.setattr(connection, "AT_FIRST", 0.0)
    with pytest.raises(DeployError, match=f"nothing listens at localhost:{port}"):
        Watch(home, lines.append, lambda: False).first()
    assert len(lines) == 1 and "trying" in lines[0]
    watch = Watch(home, lines.append, lambda: False)
    watch.look()
    assert "goes on trying" in lines[-1]
    monkeypatch.setattr(connection, "LATER", -1.0)
    monkeypatch.setattr(connection, "_LOOK", 0.0)
    watch._next = 0.0
    with pytest.raises(DeployError, match="gave up"):
        watch.look()


@pytest.mark.proof
def test_a_supernode_that_is_killed_comes_back(server: Server, folder: Path) -> None:
    """Once the server has noticed, which takes it a minute; the owner is told meanwhile."""
    with node(server.site, folder, "west") as process:
        process.wait_for("connected to localhost")
        (supernode,) = [pid for pid, command in process.children().items() if "flower-supernode" in command]
        os.kill(supernode, signal.SIGKILL)
        process.wait_for("still holds this node online")
        process.wait_for("connected to localhost", 2, 150)
