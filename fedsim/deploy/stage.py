"""A site and its nodes, all on this machine, for as long as a block lasts."""

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from fedsim.deploy import founding, joining
from fedsim.deploy.children import Child
from fedsim.deploy.control import healthy
from fedsim.deploy.joining import Server
from fedsim.deploy.keys import read_key
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import flower_environment
from fedsim.errors import DeployError

LOCAL, SERVER = "127.0.0.1", "server"
RULES = """\
# A rehearsal's nodes allow what its scenario asks; real rules are tried with --rules FILE.
largest_epsilon = 1_000_000.0
smallest_cohort = 1
"""
_START, _LOOK = 120.0, 0.2
_COMMAND = "from fedsim.cli import main; main()"
_NODE = "from fedsim.deploy.stage import node; node()"


class Stage:
    """A site and its nodes as real processes.

    Attributes:
        site: the coordinator's folder.
        nodes: names, in the order of their numbers.
        running: the processes, by name; the server's is SERVER.
    """

    def __init__(self, folder: Path, nodes: Sequence[str], rules: Path | None, *, seeded_coins: bool) -> None:
        """Make all folders and keys; nothing runs yet. Arguments as of `staged`."""
        public, inside = free_ports(2)
        self.site = founding.found(folder / "site", LOCAL, public, inside, listen=(LOCAL,))
        self.nodes, self.running = list(nodes), dict[str, Child]()
        self._folder, self._seeded = folder, seeded_coins
        self._environment = flower_environment(self.site.flower_home)
        server, registry = Server(LOCAL, public, self.site.authority.read_bytes()), Registry(self.site)
        for name in nodes:
            joining.join(self.home(name), server, name, self.data(name))
            text = RULES if rules is None else rules.read_text(encoding="utf-8")
            (self.home(name) / "rules.toml").write_text(text, encoding="utf-8")
            registry.admit(name, read_key(self.home(name) / "key"))

    def home(self, name: str) -> Path:
        """A node's folder."""
        return self._folder / "nodes" / name / "node"

    def data(self, name: str) -> Path:
        """A node's rows."""
        return self._folder / "nodes" / name / "data"

    def start(self, name: str) -> None:
        """Start the server and wait until it answers, or start a node.

        Raises:
            DeployError: it does not start; the last lines of its log.
        """
        if name == SERVER:
            command, log = ["-c", _COMMAND, "deploy", "server", str(self.site.folder)], self.site.logs / "server.log"
        else:
            home, data = self.home(name), self.data(name)
            command, log = ["-c", _NODE, str(home), str(data), str(int(self._seeded))], home.parent / "node.log"
        self.running[name] = Child(name, [sys.executable, *command], self._environment, log)
        if name == SERVER:
            self._wait()

    def end(self) -> None:
        """End all processes, the server last."""
        for name in reversed(self.running):
            self.running[name].stop(30)

    def ended(self) -> list[str]:
        """A line for each process that should run and does not."""
        dead = [child for child in self.running.values() if child.exit_code is not None]
        return [f"{child.name} had ended: {' / '.join(child.last_lines(2))}" for child in dead]

    def _wait(self) -> None:
        until, server = time.monotonic() + _START, self.running[SERVER]
        while not healthy(self.site):
            if server.exit_code is not None:
                raise DeployError(f"the server does not start: {' / '.join(server.last_lines(3))}")
            if time.monotonic() > until:
                raise DeployError(f"the server is not there after {_START:.0f} s; see {server.log}")
            time.sleep(_LOOK)


@contextmanager
def staged(
    folder: Path, nodes: Sequence[str], rules: Path | None = None, *, seeded_coins: bool = False
) -> Iterator[Stage]:
    """A running server and nodes; all are ended with the block.

    Args:
        folder: gets site/ and nodes/NAME/node/; nodes/NAME/data/ has each node's rows already.
        nodes: names, in the order of their numbers.
        rules: a rules.toml for all nodes; one that allows everything by default.
        seeded_coins: whether nodes draw their noise from the scenario's seed.

    Raises:
        DeployError: something does not start; the last lines of its log.
    """
    stage = Stage(folder, nodes, rules, seeded_coins=seeded_coins)
    try:
        for name in (SERVER, *nodes):
            stage.start(name)
        yield stage
    finally:
        stage.end()


def node() -> None:
    """What a rehearsed node runs: a node, whose coins may be the seed's."""
    from fedsim.deploy.node.supervise import run_node

    home, data, seeded = sys.argv[1:]
    try:
        run_node(Path(home), Path(data), seeded_coins=seeded == "1")
    except DeployError as error:
        sys.exit(f"error: {error}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine at which nobody listens."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind((LOCAL, 0))
        return [each.getsockname()[1] for each in sockets]
