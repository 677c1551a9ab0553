"""What must be so before a server can start; what is not comes to a line that says what to do."""

import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from fedsim.deploy import proxy
from fedsim.deploy.certificates import days_left
from fedsim.deploy.control import HOST
from fedsim.deploy.site import Site, flower_environment
from fedsim.errors import DeployError

LEAST_FREE = 256 * 1024**2
"""Bytes of disk below which the SuperLink's database, which keeps every message until it is answered, is at risk."""
_PATIENCE = 3.0
SOON = 30.0
"""Days before its end from which on a certificate is worth a word."""


def problems(site: Site) -> list[str]:
    """What keeps a site's server from starting, one line each."""
    return list(_problems(site))


def disk_problem(site: Site) -> str | None:
    """Why the disk under a site does not do, in one line, or None."""
    free = shutil.disk_usage(site.folder).free
    if free >= LEAST_FREE:
        return None
    return f"{site.folder}: {free // 1024**2} MB of disk are free, a server needs {LEAST_FREE // 1024**2}; make room"


def certificate_days(site: Site) -> float:
    """Days for which the server's certificate is still valid.

    Raises:
        DeployError: it is missing or damaged.
    """
    try:
        return days_left(site.server_certificate.read_bytes())
    except OSError as error:
        raise DeployError(f"{site.server_certificate} cannot be read: {error.strerror}") from error


def certificate_note(site: Site) -> str | None:
    """A word about a certificate that ends soon."""
    days = certificate_days(site)
    if days > SOON:
        return None
    return f"the server's certificate ends in {days:.0f} days: fedsim deploy rotate --server --on {site.folder}"


def _problems(site: Site) -> Iterator[str]:
    if (wrong := site.problem()) is not None:
        yield wrong
    environment = flower_environment(site.flower_home)
    if shutil.which("flower-superlink", path=environment["PATH"]) is None:
        yield "flower-superlink is not on the PATH; install fedsim into a virtual environment of its own"
    listeners = [(host, site.port) for host in site.listen] + [(HOST, site.superlink_port)]
    for host, port in listeners:
        if (taken := _taken(host, port)) is not None:
            yield f"{host}:{port} cannot be listened at ({taken}); end what uses it, or change {site.settings}"
    for wrong in (_database_problem(site.superlink_database), disk_problem(site), _proxy_problem(site, environment)):
        if wrong is not None:
            yield wrong


def _taken(host: str, port: int) -> str | None:
    """Why nothing can listen there; a server that was killed just now has a moment to end its programs."""
    patience = time.monotonic() + _PATIENCE
    while (reason := _bound(host, port)) is not None and time.monotonic() < patience:
        time.sleep(0.1)
    return reason


def _bound(host: str, port: int) -> str | None:
    try:
        with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:  # also where this machine has no IPv6
        return os.strerror(error.errno).lower() if error.errno else str(error)
    return None


def _database_problem(path: Path) -> str | None:
    """Why the SuperLink could not write its database; nothing is changed in it."""
    if not path.exists():
        return None if os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written: chmod u+w {path.parent}"
    if not os.access(path, os.W_OK):
        return f"{path} cannot be written: chmod u+w {path}"
    try:
        with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return f"{path}: {error}; end the program that uses it (fuser {path})"
    except sqlite3.DatabaseError as error:
        return f"{path}: {error}; bring it back from a backup, or move it away: nodes are registered anew"
    return None


def _proxy_problem(site: Site, environment: Mapping[str, str]) -> str | None:
    """What nginx says of its configuration, or that it is not there."""
    try:
        command = [*proxy.command(site), "-t"]
    except DeployError as error:
        return str(error)
    proxy.write(site)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stderr.splitlines() if "[emerg]" in line or "[alert]" in line]
    return f"nginx: {wrong[-1].partition('] ')[2]}" if done.returncode and wrong else None
