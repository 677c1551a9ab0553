"""A SuperLink of Flower's on this machine, to which `flwr run` submits simulations; it ends with its block."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

BIN = Path(sys.executable).parent
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class SuperLink(NamedTuple):
    """One that runs: Flower's home, with a connection `here` to it."""

    home: Path

    def flwr(self, *arguments: str | Path, cwd: Path) -> str:
        """What Flower's command prints; it must end well."""
        command = [BIN / "flwr", *arguments]
        done = subprocess.run(
            command, cwd=cwd, env=environment(self.home), capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's commands: no network, and a home of their own."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, **OFFLINE, "PATH": path, "FLWR_HOME": str(home)}


@contextmanager
def superlink(home: Path) -> Iterator[SuperLink]:
    """Start one that simulates, on a free port of loopback."""
    home.mkdir()
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    arguments = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "flower-superlink", *arguments],
            cwd=home,
            env=environment(home),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(port, process, home)
        yield SuperLink(home)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it and what it has started
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], home: Path) -> None:
    """Wait until it answers, a minute at most."""
    for _ in range(300):
        assert process.poll() is None, (home / "superlink.log").read_text()
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError((home / "superlink.log").read_text())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
