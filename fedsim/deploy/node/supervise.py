"""`fedsim deploy node`: Flower's SuperNode and the warm process, started, watched, and ended together.

The SuperNode has the connection and the node's key, the warm process the data; neither starts the other. Between them
stands this process, which takes messages from one to the other and says in one line each what happens.
"""

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fedsim.deploy import private_files
from fedsim.deploy._flower import Runtime
from fedsim.deploy.children import Child, Restarts
from fedsim.deploy.keys import read_key
from fedsim.deploy.node.connection import Presence, Watch, ended
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.hands import Ending, Worker, attend
from fedsim.deploy.node.review import visible
from fedsim.deploy.node.rules import read as read_rules
from fedsim.deploy.site import flower_environment
from fedsim.errors import DeployError
from fedsim.signals import signals_to

_LEAST_DISK = 50_000_000
_IDLE = 0.1  # seconds between two questions for a task; SuperNode itself asks the server every 3
_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_TROUBLE = re.compile(r"Traceback \(most recent|ERROR(?!.*Failed to (send|receive) message)")
"""After which a SuperNode may live on without a connection."""
Tell = Callable[[str], None]


def run_node(folder: Path, data: Path, *, tell: Tell | None = None, seeded_coins: bool = False) -> None:
    """Run a node until SIGTERM or SIGINT.

    Args:
        folder: of the node, as `fedsim deploy join` made it.
        data: the owner's rows.
        tell: is given a line for each thing that happens; they are printed by default.
        seeded_coins: see `Bench`.

    Raises:
        DeployError: something is not as a node needs it, or ended for good; one line that says what to do.
    """
    say = tell if tell is not None else _print
    home = NodeFolder.open(folder)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    with _alone(home), signals_to(stop):
        check(home, data)
        _Node(home, data, say, lambda: stopped, seeded_coins=seeded_coins).run()
        say("stopped")


def check(home: NodeFolder, data: Path) -> None:
    """What must be in order before a node starts, apart from its server.

    Raises:
        DeployError: the first thing that is not.
    """
    if home.withdrawn:
        raise DeployError(f"{home.folder}: its owner has withdrawn (fedsim deploy leave); join again to take part")
    home.require_whole(read_rules(home.rules_file).delta)
    read_key(home.key)
    if not home.certificate.is_file():
        raise DeployError(f"{home.certificate} is missing; take part again with `fedsim deploy join`")
    if not data.exists():
        raise DeployError(f"{data}: there is no such file or folder; name the data by --data")
    for place in (home.logs, home.flower, home.states, home.replies):
        private_files.folder(place)
    if (free := shutil.disk_usage(home.folder).free) < _LEAST_DISK:
        raise DeployError(f"{home.folder}: {free / 1e6:.0f} MB of disk are free, and a node needs 50; make room")


class _Node:
    """The node's processes."""

    def __init__(self, home: NodeFolder, data: Path, tell: Tell, ending: Ending, *, seeded_coins: bool) -> None:
        self._home, self._data, self._tell, self._ending, self._seeded = home, data, tell, ending, seeded_coins
        self._secret = os.urandom(32)
        self._worker_ends, self._supernode_ends = Restarts(5, 600.0), Restarts(8, 120.0)
        self._presence, self._connected = Presence(home), False
        self._started_with = ""  # fingerprint of the SuperNode's key
        self._runtime: Runtime | None = None
        self._supernode: Child | None = None
        self._worker: Worker | None = None

    def run(self) -> None:
        """Start everything, hand messages on until it is time to end, and end everything."""
        try:
            self._worker = self._started_worker()
            self._tell(f"{self._home.name}: ready, data are {self._data}")
            unbounded = [level for level in read_rules(self._home.rules_file).levels if level in ("none", "client")]
            if unbounded:
                self._tell(f"rules.toml allows level {' and '.join(unbounded)}, which largest_epsilon does not bound")
            watch = Watch(self._home, self._tell, self._ending)
            watch.first()
            self._start_supernode()
            while not self._ending():
                self._look_after()
                watch.look()
                task = self._runtime.next() if self._runtime is not None else None
                if task is None:
                    time.sleep(_IDLE)
                    continue
                attend(task, self._worker, self._home.name, self._tell, self._ending)
                if self._worker.child.exit_code is None:
                    self._worker_ends.worked()
        finally:
            for child in (self._supernode, self._worker):
                if child is not None:
                    child.stop()
            if self._connected and self._supernode is not None and self._supernode.exit_code == 0:
                self._presence.clear()
            if self._runtime is not None:
                self._runtime.close()

    def _started_worker(self) -> Worker:
        log = self._home.logs / "worker.log"
        worker = Worker(self._home.folder, self._data, log, seeded_coins=self._seeded)
        self._worker_ends.began()
        try:
            worker.wait(self._ending)
        except DeployError:
            worker.stop()
            raise
        return worker

    def _start_supernode(self) -> None:
        """Start a SuperNode that gives its messages to us, at a port that is free now."""
        address, home = f"127.0.0.1:{_free_port()}", self._home
        secret = home.folder / "secret"
        private_files.replace(secret, self._secret)
        self._started_with = read_key(home.key).fingerprint
        command = ["flower-supernode", "--superlink", f"{home.host}:{home.port}"]
        command += ["--root-certificates", str(home.certificate), "--auth-supernode-private-key", str(home.key)]
        command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
        if self._runtime is not None:
            self._runtime.close()
        environment = flower_environment(home.flower)
        self._supernode = Child("SuperNode", command, environment, home.logs / "supernode.log")
        self._supernode_ends.began()
        self._runtime = Runtime(address, self._secret)

    def _look_after(self) -> None:
        """Start again what has ended, as often as it is borne."""
        assert self._supernode is not None and self._worker is not None
        if self._worker.child.exit_code is not None:
            self._worker.stop()
            pause = self._worker_ends.ended()
            if pause is None:
                raise DeployError(f"the process that works died too often; see {self._worker.child.log}")
            self._tell("the process that works is started again")
            self._worker = self._started_worker()
        news = self._supernode.news()
        if (found := _CONNECTED.search(news)) is not None:
            self._connected = True
            self._tell(f"connected to {self._home.host}:{self._home.port} as node {found[1]}")
        if self._connected:
            self._presence.note()
        if self._supernode.exit_code is not None or _TROUBLE.search(news):
            self._restart_supernode()

    def _restart_supernode(self) -> None:
        assert self._supernode is not None
        if self._supernode.exit_code is None:
            self._supernode.wait(6.0)  # one that is about to end says why
        alive, self._connected = self._supernode.exit_code is None, False
        self._supernode.stop()
        pause = self._supernode_ends.ended()
        reason = (
            "the SuperNode has lost its connection"
            if alive
            else ended(self._supernode, self._home, self._presence, self._started_with)
        )
        if pause is None:
            raise DeployError(f"the SuperNode ended too often: {reason}")
        self._tell(f"{reason}; trying again in {pause:.0f} s")
        end = time.monotonic() + pause
        while time.monotonic() < end and not self._ending():
            time.sleep(_IDLE)
        self._start_supernode()


@contextmanager
def _alone(home: NodeFolder) -> Iterator[None]:
    """Refuse to run a node twice."""
    descriptor = os.open(home.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeployError(f"{home.folder}: this node runs already") from error
        yield
    finally:
        os.close(descriptor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _print(line: str) -> None:
    with suppress(BrokenPipeError):  # what a coordinator sends is quoted: no sign of it moves others
        print(f"{time.strftime('%H:%M:%S')} {visible(line)}", flush=True)
