"""A site's server with real processes: who gets in, what is out of reach, and what happens when a program is killed."""

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedsim.deploy import founding, status
from fedsim.deploy.control import Control
from fedsim.deploy.registry import Registry
from fedsim.deploy.stage import free_ports
from fedsim.deploy.superlink import sync
from fedsim.errors import DeployError
from tests.deploy import served
from tests.deploy.exposition import samples
from tests.deploy.served import FleetNode, Server

pytestmark = pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING)


def takes_effect(server: Server, *lines: str) -> None:
    """What the registry says is done at once: by this call, or just before it by the server itself."""
    told = (sync(server.site) or "").split("; ")
    for line in lines:
        if line not in told:
            server.wait_for(line, seconds=5)


def test_a_stranger_reaches_nothing_but_the_nodes_api(server: Server) -> None:
    """Flower's Control and Runtime APIs ask nobody who he is: whoever reaches them lets nodes in and runs code."""
    closed = [path for method, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")]
    assert {path.split("/")[2] for path in closed} == {"control", "runtime"}
    for path in [*closed, "/health", "/docs", "/openapi.json", "/"]:
        assert served.ask(server.site, server.site.port, "POST", path) == 403, path
        assert served.ask(server.site, server.site.port, "GET", path) == 403, path
    for path in ("/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes", "//v1/control/list-nodes"):
        assert served.ask(server.site, server.site.port, "POST", path) in (400, 403, 404), path
    assert served.ask(server.site, server.site.superlink_port, "POST", "/v1/control/list-nodes") == 200


def test_only_admitted_keys_get_in(server: Server, tmp_path: Path) -> None:
    """TLS says who the server is, a signature who the node is: each is asked for."""
    north = FleetNode(server.site, server.key("north"))
    number = north.activate()
    assert north.heartbeat() and north.pull() == 0
    assert Registry(server.site).nodes()[0].node_id == number

    served.new_key(tmp_path / "stranger")
    stranger = FleetNode(server.site, tmp_path / "stranger/key")
    assert stranger.status_of(stranger.activate)[0] == 412
    stranger.node = north.node  # whose number it has learned
    assert stranger.status_of(stranger.pull)[0] == 401
    unsigned = FleetNode(server.site, server.key("north"), signed=False)
    assert unsigned.status_of(unsigned.activate)[0] == 401

    with pytest.raises(httpx.HTTPStatusError, match="400"):
        httpx.post(f"http://localhost:{server.site.port}/v1/fleet/activate-node").raise_for_status()
    other = founding.found(tmp_path / "other", "localhost", *free_ports(2))
    with pytest.raises(httpx.ConnectError, match="certificate"):
        FleetNode(server.site.model_copy(update={"folder": other.folder}), server.key("north")).activate()


def test_a_node_of_another_flower_is_refused_with_the_reason(server: Server) -> None:
    """Flower itself only writes a warning; what such a node would send is not known."""
    old = FleetNode(server.site, server.key("north"), version="1.40.0")
    code, text = old.status_of(old.activate)
    assert code == 426
    assert "another version" in json.loads(text)["detail"]


def test_admission_and_its_end_take_effect_while_the_server_runs(server: Server, tmp_path: Path) -> None:
    """A node that was revoked is refused at its next request; a new key of it is let in under another number."""
    served.admit(server.site, tmp_path, "east")
    takes_effect(server, "east may take part")
    assert sync(server.site) is None
    east = FleetNode(server.site, tmp_path / "east/key")
    first = east.activate()
    assert east.pull() == 0
    Registry(server.site).rotate("east", served.new_key(tmp_path / "new"))
    takes_effect(server, "east's old key takes part no more", "east may take part")
    assert east.status_of(east.pull)[0] == 401
    again = FleetNode(server.site, tmp_path / "new/key")
    assert again.activate() not in (first, 0)
    Registry(server.site).revoke("east")
    takes_effect(server, "east (revoked) takes part no more")
    assert again.status_of(again.heartbeat)[0] == 401
    assert again.status_of(again.activate)[0] == 412


def test_a_restored_registry_brings_no_ended_key_back(server: Server, tmp_path: Path) -> None:
    """Flower takes no key twice; the line says what helps, and others' admission does not wait for it."""
    registry = Registry(server.site)
    served.admit(server.site, tmp_path, "west")
    takes_effect(server, "west may take part")
    with closing(sqlite3.connect(server.site.database)) as now, closing(sqlite3.connect(tmp_path / "kept.db")) as kept:
        now.backup(kept)
        registry.revoke("west")
        takes_effect(server, "west (revoked) takes part no more")
        kept.backup(now)
    served.admit(server.site, tmp_path, "islands")
    line = "west cannot take part, its key was ended once: give it a new one with fedsim deploy rotate"
    takes_effect(server, line, "islands may take part")
    for name in ("west", "islands"):
        registry.revoke(name)
    takes_effect(server, "islands (revoked) takes part no more")


def test_a_key_that_nobody_admitted_is_thrown_out(server: Server, tmp_path: Path) -> None:
    """Somebody on the server's machine may register a key with Flower; the registry has the last word."""
    served.new_key(tmp_path / "rogue")
    rogue = FleetNode(server.site, tmp_path / "rogue/key")
    Control(server.site).register("rogue", rogue.public.decode())
    rogue.activate()
    takes_effect(server, "a key that the registry does not have (rogue) takes part no more")
    assert rogue.status_of(rogue.pull)[0] == 401


def test_status_tells_people_and_programs_the_same(server: Server) -> None:
    """Table, JSON and Prometheus' file come from the same facts."""
    north = FleetNode(server.site, server.key("north"))
    north.status_of(north.activate)  # which is refused where it is there already
    status.remember(server.site, {"north": {"fedsim": "0.1.0", "flwr": "1.42.0"}})
    command = [str(served.COMMANDS / "fedsim"), "deploy", "status", str(server.site.folder)]
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    told = json.loads(printed)
    first, second = told["nodes"][:2]
    assert told["server"] == "up" and 364 < told["certificate_days"] <= 365
    assert (first["name"], first["status"], first["flwr"]) == ("north", "online", "1.42.0")
    assert 0 <= first["seconds_ago"] < 60
    assert (second["status"], second["seconds_ago"]) == ("never seen", None)
    exported = samples(server.site.metrics.read_text())
    assert exported["fedsim_up", ()] == 1
    assert exported["fedsim_nodes", (("status", "online"),)] == 1
    age = exported["fedsim_written_timestamp_seconds", ()]
    contact = exported["fedsim_node_last_contact_timestamp_seconds", (("node", "north"),)]
    assert age - contact == pytest.approx(first["seconds_ago"], abs=30)


def test_a_second_server_is_refused(server: Server) -> None:
    """Two would write one database."""
    command = [str(served.COMMANDS / "fedsim"), "deploy", "server", str(server.site.folder)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "a server runs on" in second.stderr and len(second.stderr.splitlines()) == 1


def test_an_ended_server_leaves_nothing_running(server: Server) -> None:
    """SIGTERM, as systemd sends it, is an orderly end."""
    started = server.children()
    assert len(started) >= 4  # SuperLink, its SuperExec, nginx and a worker of it
    assert served.end(server.process) == 0
    assert served.alive(started) == set()
    assert server.said()[-1].endswith("ends (SIGTERM)")
    assert samples(server.site.metrics.read_text())["fedsim_up", ()] == 0
    assert sync(server.site) == "takes effect when the server starts"
    with pytest.raises(DeployError, match="fedsim deploy server"):
        Control(server.site).nodes()
