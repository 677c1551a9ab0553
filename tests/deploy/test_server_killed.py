"""A site's server when its programs are killed, its certificate is renewed, and Flower's own nodes come to it."""

import os
import signal
import ssl
from pathlib import Path

import pytest

from fedsim.deploy import founding
from fedsim.deploy.control import Control
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site
from fedsim.deploy.superlink import sync
from tests.deploy import served
from tests.deploy.served import FleetNode, Server

pytestmark = [pytest.mark.proof, pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING)]

APP = {
    "pyproject.toml": """
[project]
name = "waits"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "waits:server"
clientapp = "waits:client"
[tool.flwr.app.config]
ticket = ""
""",
    "waits/__init__.py": """
import time
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
server, client = ServerApp(), ClientApp()

@server.main()
def main(grid, context):
    time.sleep(600)
""",
}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # of what Flower builds its apps with
def test_nodes_go_on_when_the_programs_are_killed_and_a_run_ends(server: Server, tmp_path: Path) -> None:
    """Each is started again, with nothing lost that nodes or runs were told; what a dead one had begun is ended."""
    control = Control(server.site)
    for name, text in APP.items():
        (tmp_path / "waits" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "waits" / name).write_text(text)
    run = control.start(tmp_path / "waits", {"ticket": "t1"})
    served.wait_until(lambda: control.runs()[0].status == "running")
    assert (control.runs()[0].run_id, control.runs()[0].ticket) == (run, "t1")

    before = server.children()
    assert any("flwr-serverapp" in command for command in before.values())
    for pid, command in before.items():
        if "flower-superlink" in command or "nginx: master" in command:
            os.kill(pid, signal.SIGKILL)
    server.wait_for("the SuperLink ended by SIGKILL; it is started again in 1 s")
    server.wait_for("the SuperLink answers", 2)
    server.wait_for("the proxy answers", 2)
    after = server.children()
    assert not set(before) & set(after)
    assert served.alive(before) == set()
    assert sum("flower-superlink" in command for command in after.values()) == 1
    assert not any("flwr-serverapp" in command for command in after.values())

    north = FleetNode(server.site, server.key("north"))
    north.node.node_id = Registry(server.site).nodes()[0].node_id or 0
    assert north.heartbeat() and north.pull() == 0
    assert control.runs()[0].run_id == run
    control.stop(run)
    assert (control.runs()[0].status, control.runs()[0].outcome) == ("finished", "stopped")


def test_a_new_certificate_is_used_without_a_restart_by_hand(server: Server) -> None:
    """Nodes need nothing, for the authority that they trust is the same."""
    before = served_certificate(server.site, server.site.port)
    founding.renew(server.site)
    server.wait_for("the proxy uses the new certificate", seconds=40)
    served.wait_until(lambda: served_certificate(server.site, server.site.port) != before)
    server.wait_for("the SuperLink answers", 3)
    assert served_certificate(server.site, server.site.port) == served_certificate(
        server.site, server.site.superlink_port
    )
    north = FleetNode(server.site, server.key("north"))
    north.node.node_id = Registry(server.site).nodes()[0].node_id or 0
    assert north.pull() == 0


def test_flowers_own_nodes(server: Server, tmp_path: Path) -> None:
    """The real program: admitted it stays, without a key, with a foreign one or without TLS it ends by itself."""
    trusted = ["--root-certificates", str(server.site.authority)]
    served.new_key(tmp_path / "stranger")
    with_key = "--auth-supernode-private-key"
    nodes = {
        "admitted": served.supernode(server.site, tmp_path / "a", *trusted, with_key, server.key("south")),
        "foreign": served.supernode(server.site, tmp_path / "b", *trusted, with_key, tmp_path / "stranger/key"),
        "keyless": served.supernode(server.site, tmp_path / "c", *trusted),
        "plain": served.supernode(server.site, tmp_path / "d", "--insecure"),
    }
    try:
        server.wait_for("south is online")
        for name in ("foreign", "keyless", "plain"):
            assert nodes[name].wait(60) != 0, name
        assert nodes["admitted"].poll() is None
        Registry(server.site).revoke("south")
        sync(server.site)
        nodes["admitted"].wait(30)
        server.wait_for("south is revoked")
    finally:
        for process in nodes.values():
            served.end(process)


def test_a_key_that_nobody_admitted_is_thrown_out_in_time(server: Server, tmp_path: Path) -> None:
    """Somebody on the server's machine may register a key with Flower; the server looks for such ones."""
    served.new_key(tmp_path / "rogue")
    Control(server.site).register("rogue", FleetNode(server.site, tmp_path / "rogue/key").public.decode())
    server.wait_for("a key that the registry does not have (rogue) takes part no more")


def test_its_programs_do_not_outlive_a_killed_server(server: Server, tmp_path: Path) -> None:
    """SIGKILL leaves no time to end anything; they end by themselves, and the next start finds its ports free."""
    started = server.children()
    server.process.kill()
    server.process.wait()
    assert sync(server.site) == "takes effect when the server starts"
    with served.serving(server.site, tmp_path / "again.log") as again:
        assert not served.alive(started)
        assert len(again.children()) >= 4


def served_certificate(site: Site, port: int) -> str:
    """The certificate that is shown at a port."""
    return ssl.get_server_certificate(("localhost", port), ca_certs=str(site.authority))
