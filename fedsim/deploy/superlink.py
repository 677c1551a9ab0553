"""Flower's SuperLink as a site runs it: on loopback, with TLS and keys; and which nodes it lets in.

The registry says who was admitted; the SuperLink, which keeps a list of its own, is made to agree.
"""

import fcntl
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from fedsim.deploy.control import HOST, Control, Known
from fedsim.deploy.keys import of_flower
from fedsim.deploy.registry import Node, Registry
from fedsim.deploy.site import Site
from fedsim.errors import DeployError

_LATER = "takes effect when the server starts"


def command(site: Site) -> list[str]:
    """The program and its arguments."""
    return [
        "flower-superlink",
        *("--host", HOST),
        *("--port", str(site.superlink_port)),
        *("--ssl-ca-certfile", str(site.authority)),
        *("--ssl-certfile", str(site.server_certificate)),
        *("--ssl-keyfile", str(site.server_key)),
        "--enable-supernode-auth",
        *("--database", str(site.superlink_database)),
        "--disable-runtime-dependency-installation",
    ]


@contextmanager
def alone(site: Site) -> Iterator[None]:
    """Be the one server of a site inside the block; the system ends that also when this process is killed.

    Raises:
        DeployError: there is one already.
    """
    for _ in range(20):  # somebody who asks whether a server runs holds the lock for an instant
        with _locked(_lock(site), fcntl.LOCK_EX | fcntl.LOCK_NB) as got:
            if got:
                yield
                return
        time.sleep(0.05)
    raise DeployError(f"a server runs on {site.folder} already; end it before you start another")


def running(site: Site) -> bool:
    """Whether there is a server of a site on this machine."""
    with _locked(_lock(site), fcntl.LOCK_SH | fcntl.LOCK_NB) as got:
        return not got


def sweep(site: Site) -> None:
    """Leave nothing of messages that the SuperLink's database has deleted; call it while no SuperLink runs.

    They hold single nodes' updates, whose bytes SQLite leaves in its files, and a backup would have them.
    """
    path = site.superlink_database
    if path.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def sync(site: Site) -> str | None:
    """Let what the registry says take effect now; what to tell the coordinator, or None where nothing had to be done.

    Raises:
        DeployError: the SuperLink does not take a key.
    """
    if not running(site):
        return _LATER
    try:
        Control(site).nodes()
    except DeployError:  # it is just starting
        return _LATER
    return "; ".join(synchronised(site)) or None


def synchronised(site: Site) -> list[str]:
    """Register with the SuperLink whom the registry admits, unregister everybody else; what was done, in lines.

    An unregistered node's next request is refused, which ends it. Node ids are written into the registry.

    Raises:
        DeployError: the SuperLink does not answer.
    """
    with _locked(site.folder / "sync.lock", fcntl.LOCK_EX):
        control, registry = Control(site), Registry(site)
        known = {node.public_key.strip(): node for node in control.nodes()}
        wanted = {_pem(node.public_key): node for node in registry.nodes()}
        done = [*_ended(control, registry, known, wanted)]  # first, so that nothing can keep it from being done
        for key, node in wanted.items():
            if node.status == "admitted":
                done += _admitted(control, registry, node, key, known.get(key))
    return done


def _ended(
    control: Control, registry: Registry, known: Mapping[str, Known], wanted: Mapping[str, Node]
) -> Iterator[str]:
    """Have nobody registered who is not admitted."""
    for key, there in known.items():
        node = wanted.get(key)
        if there.status != "unregistered" and (node is None or node.status != "admitted"):
            control.unregister(there.node_id)
            who = _called(registry, key, there) if node is None else f"{node.name} ({node.status})"
            yield f"{who} takes part no more"


def _called(registry: Registry, key: str, there: Known) -> str:
    """What to call a key that no node has."""
    with suppress(DeployError, ValueError):
        if (name := registry.formerly(of_flower(key).fingerprint)) is not None:
            return f"{name}'s old key"
    return f"a key that the registry does not have ({there.name or 'no name'})"


def _admitted(control: Control, registry: Registry, node: Node, key: str, there: Known | None) -> Iterator[str]:
    """Have an admitted node registered."""
    if there is None:
        registry.set_node_id(node.name, control.register(node.name, f"{key}\n"))
        yield f"{node.name} may take part"
    elif there.status == "unregistered":
        yield f"{node.name} cannot take part, its key was ended once: give it a new one with fedsim deploy rotate"
    elif node.node_id != there.node_id:
        registry.set_node_id(node.name, there.node_id)


def _pem(line: str) -> str:
    """A public key of OpenSSH's form as Flower keeps it."""
    key = serialization.load_ssh_public_key(line.encode())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode().strip()


def _lock(site: Site) -> Path:
    return site.folder / "server.lock"


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    """Hold a lock on a file inside the block; whether it was to be had."""
    try:
        opened = path.open("ab")
    except OSError as error:  # root has made it, say
        raise DeployError(f"{path} cannot be opened: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            yield False
            return
        yield True
