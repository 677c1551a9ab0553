"""A server that cannot run does not start, and says in one line each what is wrong and what to do."""

import errno
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fedsim.deploy import certificates, founding, private_files, ready, server, status
from fedsim.deploy.certificates import Pair
from fedsim.deploy.following import Following, Ticket
from fedsim.deploy.site import Site
from fedsim.errors import DeployError
from tests.deploy import served

pytestmark = pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return served.site_with(tmp_path)


def only(site: Site) -> str:
    """The one thing that is wrong."""
    found = ready.problems(site)
    assert len(found) == 1 and "\n" not in found[0], found
    return found[0]


def test_a_new_site_is_ready(site: Site) -> None:
    """Nothing else has to be done after `init`."""
    assert ready.problems(site) == []
    assert ready.certificate_note(site) is None


def test_ports_that_are_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another server, say; each is named."""
    monkeypatch.setattr(ready, "_PATIENCE", 0.0)
    ports = (site.port, site.superlink_port)
    with closing(socket.create_server(("127.0.0.1", ports[0]))), closing(socket.create_server(("127.0.0.1", ports[1]))):
        found = ready.problems(site)
    for port in ports:
        assert any(f"127.0.0.1:{port} cannot be listened at (address already in use)" in line for line in found)
    assert ready.problems(site) == []


def test_an_address_of_a_kind_that_the_machine_has_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without IPv6 refuses the socket itself."""
    usual = socket.socket

    def without(family: int = socket.AF_INET, *more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no")
        return usual(family, *more)

    monkeypatch.setattr(ready, "_PATIENCE", 0.0)
    monkeypatch.setattr(socket, "socket", without)
    found = ready.problems(site.model_copy(update={"listen": ["::1"]}))
    assert any("::1" in line and "address family not supported" in line for line in found)


def test_a_database_that_somebody_writes(site: Site) -> None:
    """Two SuperLinks on one database would each know half."""
    with closing(sqlite3.connect(site.superlink_database, isolation_level=None)) as other:
        other.execute("CREATE TABLE kept (x)")
        other.execute("BEGIN IMMEDIATE")
        assert "database is locked" in only(site)
        other.execute("ROLLBACK")
    assert ready.problems(site) == []


def test_a_database_that_is_none(site: Site) -> None:
    """Half copied, say."""
    site.superlink_database.write_bytes(os.urandom(8192))
    assert "bring it back from a backup" in only(site)


def test_certificates(site: Site) -> None:
    """One that has ended keeps the server from starting; of one that will there is a word in time."""
    authority = Pair(site.authority_key.read_bytes(), site.authority.read_bytes())
    founding.renew(site, days=20)
    assert ready.problems(site) == []
    assert "ends in 20 days" in (ready.certificate_note(site) or "")
    ended = certificates.make_server(authority, site.host, days=0)
    private_files.replace(site.server_key, ended.key)
    private_files.replace(site.server_certificate, ended.certificate)
    assert "expired" in only(site) and "rotate --server" in only(site)
    foreign = certificates.make_server(certificates.make_authority("localhost"), site.host)
    private_files.replace(site.server_key, foreign.key)
    private_files.replace(site.server_certificate, foreign.certificate)
    assert "not signed by this site's authority" in only(site)


def test_a_certificate_that_goes_away_ends_no_server(site: Site) -> None:
    """It is told once, by the server as by `status`; what runs has it in memory."""
    said: list[str] = []
    watch = server._Watch(site, said.append)
    site.server_certificate.unlink()
    watch.look(*server._programs(site))
    assert said == [f"{site.server_certificate}: No such file or directory"]
    with pytest.raises(DeployError, match=r"server\.crt cannot be read"):
        status.facts(site)


def test_a_run_that_ends_with_its_server_is_told_how_it_goes_on(site: Site, tmp_path: Path) -> None:
    """And one that had ended by itself, after the last look, is not."""
    said: list[str] = []
    ticket = Ticket(purpose="run", run="0" * 16, scenario="", folder=tmp_path / "run").write(site.runs)
    watch = server._Watch(site, said.append)
    watch._run = status.facts(site).run
    watch.lost()
    assert said == [f"a run was on, which ends with it; go on with: fedsim resume {tmp_path / 'run'}"]
    watch._run = status.facts(site).run
    Following(site.runs, ticket).tell("finished", status="done", reason="")
    watch.lost()
    assert len(said) == 1


def test_everything_wrong_is_said_at_once(site: Site) -> None:
    """A coordinator mends it in one go; the command's last line is the error."""
    site.superlink_database.write_bytes(os.urandom(8192))
    private_files.replace(site.authority, certificates.make_authority("localhost").certificate)
    command = [str(served.COMMANDS / "fedsim"), "deploy", "server", str(site.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not signed by this site's authority" in done.stdout and len(done.stdout.splitlines()) == 1
    assert "backup" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_full_disk(site: Site) -> None:
    """The SuperLink keeps every message in its database, so it does not start where there is no room for them."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs a mount namespace")
    small = site.folder.parent / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=8m,mode=700 none "$1" && cp -a "$2" "$1" && exec "$3" deploy server "$1/site"'
    command = [unshare, "-rm", "sh", "-ec", script, "sh", str(small), str(site.folder), str(served.COMMANDS / "fedsim")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mount:" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 2
    assert "MB of disk are free, a server needs 256; make room" in done.stderr


def test_logs_stay_bounded_while_a_program_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SuperLink writes a line for every request and never opens its log again."""
    monkeypatch.setattr(server, "_LARGEST_LOG", 1000)
    log = tmp_path / "superlink.log"
    with log.open("ab", buffering=0) as program:
        for number in range(200):
            program.write(b"%099d\n" % number)
            server.shorten(log)
            assert log.stat().st_size <= 1000
    kept = (tmp_path / "superlink.log.1").read_bytes() + log.read_bytes()
    assert [int(line) for line in kept.splitlines()] == list(range(187, 200))


def test_orphans_end() -> None:
    """What a killed program leaves behind, in a session of its own, ends too; what is kept goes on."""
    program = """
import subprocess, sys, time
from fedsim.deploy.orphans import adopt_orphans, end_orphans
adopt_orphans()
kept = subprocess.Popen(["sleep", "100"])
shell = subprocess.Popen(
    ["sh", "-c", "setsid sh -c 'trap true TERM; echo $$; while true; do sleep 0.1; done' & echo $!; wait"],
    stdout=subprocess.PIPE, text=True)
lines = {int(shell.stdout.readline()) for _ in range(2)}
shell.kill()
shell.wait()
end_orphans([kept.pid], 1.0)
print(kept.poll(), *lines)
kept.kill()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, *orphans = done.stdout.split()
    assert first == "None"
    assert served.alive(map(int, orphans)) == set()
