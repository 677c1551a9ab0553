"""Machines of a small network of their own, as network namespaces: a server in the middle, others around it."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def _missing() -> str:
    """Why this machine cannot have such a network; empty where it can."""
    if shutil.which("ip") is None or shutil.which("curl") is None:
        return "network namespaces and strangers in them need the commands ip and curl"
    name = f"fst{os.getpid() % 10_000}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True)
    tried = subprocess.run(["ip", "-n", name, "link", "add", "hub", "type", "bridge"], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return "network namespaces cannot be made here; they need root" if made.returncode or tried.returncode else ""


MISSING = _missing()
"""Why this machine cannot have such a network; empty where it can."""


class Network:
    """A star: `server` has the address 10.77.0.1, machine number k 10.77.0.(k + 2).

    Attributes:
        server: address of the server.
    """

    server = "10.77.0.1"

    def __init__(self, name: str, machines: int) -> None:
        """Make the machines; `name` is theirs on this host, at most six letters."""
        self._server, self._machines = f"{name}s", [f"{name}{number}" for number in range(machines)]
        for each in (self._server, *self._machines):
            _ip("netns", "add", each)
            _ip("-n", each, "link", "set", "lo", "up")
        _ip("-n", self._server, "link", "add", "hub", "type", "bridge")
        _ip("-n", self._server, "address", "add", f"{self.server}/24", "dev", "hub")
        _ip("-n", self._server, "link", "set", "hub", "up")
        for number, each in enumerate(self._machines):
            ours, theirs = f"port{number}", "wire"
            _ip("link", "add", ours, "netns", self._server, "type", "veth", "peer", "name", theirs, "netns", each)
            _ip("-n", self._server, "link", "set", ours, "master", "hub", "up")
            _ip("-n", each, "address", "add", f"10.77.0.{number + 2}/24", "dev", theirs)
            _ip("-n", each, "link", "set", theirs, "up")

    def on_server(self, command: Sequence[str | Path]) -> list[str]:
        """A command as it is run on the server."""
        return ["ip", "netns", "exec", self._server, *map(str, command)]

    def on(self, machine: int, command: Sequence[str | Path]) -> list[str]:
        """A command as it is run on a machine, counted from 0."""
        return ["ip", "netns", "exec", self._machines[machine], *map(str, command)]

    def cut(self, machine: int) -> None:
        """Pull a machine's wire."""
        _ip("-n", self._machines[machine], "link", "set", "wire", "down")

    def join(self, machine: int) -> None:
        """Put it in again."""
        _ip("-n", self._machines[machine], "link", "set", "wire", "up")

    def close(self) -> None:
        """Take everything away."""
        for each in (self._server, *self._machines):
            subprocess.run(["ip", "netns", "del", each], check=False, capture_output=True)


@contextmanager
def network(machines: int) -> Iterator[Network]:
    """A network that goes with the block."""
    found = Network(f"fs{os.getpid() % 10_000}", machines)
    try:
        yield found
    finally:
        found.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
