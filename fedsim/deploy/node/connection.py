"""A node's connection to its server: watched, and what a SuperNode that ended means for its owner."""

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from fedsim.deploy.certificates import connection_problem
from fedsim.deploy.children import Child
from fedsim.deploy.keys import read_key
from fedsim.deploy.node.folder import NodeFolder
from fedsim.errors import DeployError

AT_FIRST, LATER = 300.0, 3600.0
"""Seconds without a server that are borne before the first connection, and after it."""
_UNNOTICED = 90.0  # a server notices after up to 60 s that a node is silent
_LOOK, _PATIENCE, _PAUSE = 15.0, 5.0, 2.0  # seconds: between two looks, for an answer, between two first tries
_ACTIVATION = re.compile(r"code: 2004|NODE_ACTIVATION_FAILED")
_BODY = re.compile(
    r"Failed to initialize the connection to the SuperLink\.\s*\n(.+?)\n(?:\s*\n|The SuperNode)", re.DOTALL
)


class Watch:
    """Looks now and then whether the server can be reached; SuperNode itself tries for ever, and says nothing."""

    def __init__(self, home: NodeFolder, tell: Callable[[str], None], ending: Callable[[], bool]) -> None:
        self._home, self._tell, self._ending = home, tell, ending
        self._next = 0.0
        self._lost: float | None = None  # since when

    def first(self) -> None:
        """Wait until the server can be reached, and make sure that it is the one which this node trusts.

        Raises:
            DeployError: it cannot be for too long, or is another; at once where waiting would change nothing.
        """
        end = time.monotonic() + AT_FIRST
        while (problem := self._unreachable()) is not None and not self._ending():
            if self._lost is None:
                self._lost = time.monotonic()
                self._tell(f"{problem}; trying for {AT_FIRST / 60:.0f} minutes")
            if time.monotonic() > end:
                raise DeployError(problem)
            time.sleep(_PAUSE)
        self._lost = None
        if not self._ending() and (problem := self._problem()) is not None:
            raise DeployError(problem)

    def look(self) -> None:
        """Say when the server is lost, and when it is there again.

        Raises:
            DeployError: it has been lost for too long.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK
        problem = self._unreachable()
        if problem is None and self._lost is not None:
            self._tell(f"{self._home.host}:{self._home.port} answers again")
            self._lost = None
        elif problem is not None and self._lost is None:
            self._lost = now
            self._tell(f"{problem}; the node goes on trying for {LATER / 3600:.0f} h")
        elif problem is not None and self._lost is not None and now - self._lost > LATER:
            raise DeployError(f"{problem}; gave up after {LATER / 3600:.0f} h")

    def _unreachable(self) -> str | None:
        """Why nothing answers there, None where something does."""
        try:
            socket.create_connection((self._home.host, self._home.port), timeout=_PATIENCE).close()
        except OSError:
            return self._problem()
        return None

    def _problem(self) -> str | None:
        return connection_problem(self._home.host, self._home.port, self._home.certificate.read_bytes(), _PATIENCE)


class Presence:
    """Whether the server may still hold the node online: until a minute after it ended without a word, as by a kill."""

    def __init__(self, home: NodeFolder) -> None:
        self._file, self._noted = home.folder / "online", 0.0

    def note(self) -> None:
        """It is online now."""
        if time.monotonic() > self._noted + _LOOK:
            self._noted = time.monotonic()
            with suppress(OSError):  # the disk may be full; it matters little
                self._file.touch(0o600)

    def clear(self) -> None:
        """It has taken its leave."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    @property
    def lately(self) -> bool:
        """Whether it was online so lately that the server may not have noticed."""
        with suppress(OSError):
            return time.time() - self._file.stat().st_mtime < _UNNOTICED
        return False


def ended(child: Child, home: NodeFolder, presence: Presence, started_with: str) -> str:
    """Why a SuperNode has ended, as far as that may pass.

    Args:
        child: the SuperNode.
        home: of its node.
        presence: of the node at the server.
        started_with: fingerprint of the key that it was started with.

    Raises:
        DeployError: it will not, before somebody has done something.
        Refused: the node's owner has withdrawn.
    """
    home.require_member()  # who leaves removes the key
    written, server = child.output(), f"{home.host}:{home.port}"
    key = read_key(home.key).fingerprint
    if child.exit_code == 0:  # what it does on 401, without a word
        presence.clear()
        if key != started_with:
            return f"this node's key is now {key}, and {server} has ended the one before"
        raise DeployError(
            f"{server} does not take this node's key {key} any more: the coordinator has revoked it, or this machine's "
            "clock is more than five minutes off"
        )
    if _ACTIVATION.search(written) and not presence.lately:
        raise DeployError(
            f"{server} does not take this node's key {key}: it is not admitted, which the coordinator does by `fedsim "
            f"deploy admit {home.name} {key}`, or another process is there with it"
        )
    if _ACTIVATION.search(written):
        return f"{server} still holds this node online, whose last connection broke less than a minute ago"
    if (found := _BODY.search(written)) is not None:
        if (problem := connection_problem(home.host, home.port, home.certificate.read_bytes())) is not None:
            return problem
        raise DeployError(f"{server} refuses this node: {' '.join(found[1].split())}")
    code = child.exit_code
    how = f"was ended by signal {-code}" if code is not None and code < 0 else "ended by itself"
    return f"the SuperNode {how}; its log is {child.log}"
