"""What a real nginx lets through: the Fleet API, from nodes of this Flower, over TLS, and nothing else."""

import http.client
import importlib.metadata
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.deploy import certificates, founding, proxy
from fedsim.deploy.certificates import Pair
from fedsim.deploy.site import Site, flower_environment
from fedsim.deploy.stage import free_ports
from tests.deploy import served

pytestmark = pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING)

VERSION = {"flwr-package-version": importlib.metadata.version("flwr")}
FLEET = "/v1/fleet/pull-messages"


class Inside(BaseHTTPRequestHandler):
    """In the place of the SuperLink: notes what reaches it, and echoes."""

    seen: list[tuple[str, str, int]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.seen.append((self.command, self.path, len(body)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def inside(port: int, pair: Pair, folder: Path) -> Iterator[list[tuple[str, str, int]]]:
    """A TLS server in the SuperLink's place, with any certificate."""
    (folder / "inside.pem").write_bytes(pair.key + pair.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "inside.pem")
    Inside.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", port), Inside) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Inside.seen
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def outside(site: Site) -> Iterator[None]:
    """nginx as the server starts it, ended with the block."""
    proxy.write(site)
    environment = flower_environment(site.flower_home)
    # Its workers hold no file that is the test's, so that a failure cannot leave one behind that waits.
    process = subprocess.Popen(proxy.command(site), env=environment, stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if (
                process.poll() is None
                and certificates.connection_problem("127.0.0.1", site.port, _trusted(site)) is None
            ):
                break
            assert process.poll() is None, (site.logs / "proxy-error.log").read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _trusted(site: Site) -> bytes:
    return site.authority.read_bytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    port, superlink = free_ports(2)
    folder = tmp_path_factory.mktemp("proxy") / "a site"
    return founding.found(folder, "localhost", port, superlink, listen=["127.0.0.1"])


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[list[tuple[str, str, int]]]:
    pair = Pair(site.server_key.read_bytes(), site.server_certificate.read_bytes())
    with inside(site.superlink_port, pair, site.folder) as seen, outside(site):
        yield seen


@pytest.fixture
def seen(running: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    running.clear()
    return running


def context(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.authority))


def asked(
    site: Site, path: str, method: str = "POST", body: bytes = b"", headers: dict[str, str] = VERSION
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer."""
    with closing(http.client.HTTPSConnection("localhost", site.port, timeout=20, context=context(site))) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


def test_the_fleet_api_passes_unchanged(site: Site, seen: list[tuple[str, str, int]]) -> None:
    """A piece of a model has 5 MiB at most; this one has a little more."""
    body = os.urandom(6 * 1024 * 1024)
    status, answer, headers = asked(site, FLEET, body=body)
    assert (status, answer) == (200, body)
    assert seen == [("POST", FLEET, len(body))]
    assert not any(sign.isdigit() for sign in headers["server"].replace("BaseHTTP", ""))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull",
        "/v1/fleet",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet%2f..%2fcontrol/start-run",
        "/v1/fleet/x/../../control/start-run",
        "//v1//control//start-run",
        "/V1/FLEET/pull-messages",
        "/docs",
        "/openapi.json",
    ],
)
def test_everything_else_is_refused(path: str, site: Site, seen: list[tuple[str, str, int]]) -> None:
    assert asked(site, path)[0] == 403
    assert seen == []


@pytest.mark.parametrize("path", ["/v1/control/../fleet/pull-messages", "/v1/fleet/%2e%2e/fleet//pull-messages"])
def test_what_passes_arrives_in_the_form_that_was_compared(
    path: str, site: Site, seen: list[tuple[str, str, int]]
) -> None:
    """Else the SuperLink could read another path out of it than the proxy did."""
    assert asked(site, path)[0] == 200
    assert seen == [("POST", FLEET, 0)]


@pytest.mark.parametrize(
    "path", ["/v1/fleet/%252e%252e/control/start-run", "/v1/fleet/%00", "/v1/fleet/a?b=/../control"]
)
def test_no_spelling_leads_out_of_the_fleet_api(path: str, site: Site, seen: list[tuple[str, str, int]]) -> None:
    asked(site, path)
    assert all(each[1].startswith("/v1/fleet/") and ".." not in each[1].partition("?")[0] for each in seen)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_post_passes(method: str, site: Site, seen: list[tuple[str, str, int]]) -> None:
    assert asked(site, FLEET, method)[0] == 403
    assert seen == []


@pytest.mark.parametrize("version", ["1.41.0", "1.420.0", "2.0", "1x42", ""])
def test_a_node_of_another_flower_is_told_which_one_is_wanted(
    version: str, site: Site, seen: list[tuple[str, str, int]]
) -> None:
    """Flower's own Fleet API only warns; a node prints these three fields, and ends."""
    status, answer, _ = asked(site, FLEET, headers={"flwr-package-version": version})
    wanted = ".".join(VERSION["flwr-package-version"].split(".")[:2])
    told = json.loads(answer)
    assert status == 426 and seen == []
    assert wanted in told["detail"] and wanted in told["extra"] and isinstance(told["code"], int)


def test_a_body_beyond_any_sound_one_is_refused(site: Site, seen: list[tuple[str, str, int]]) -> None:
    with closing(http.client.HTTPSConnection("localhost", site.port, timeout=20, context=context(site))) as connection:
        size = (proxy.BODY_MEGABYTES + 1) * 1024 * 1024
        connection.request("POST", FLEET, headers={**VERSION, "Content-Length": str(size)})
        assert connection.getresponse().status == 413
    assert seen == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_bad_tls_is_refused(site: Site, seen: list[tuple[str, str, int]]) -> None:
    """No TLS, an old one, or a client that trusts another authority."""
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)) as plain:
        plain.request("POST", FLEET, headers=VERSION)
        assert plain.getresponse().status == 400
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", site.port)) as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection)
    foreign = certificates.make_authority("localhost").certificate
    assert "not signed by" in str(certificates.connection_problem("localhost", site.port, foreign))
    assert seen == []


def test_the_authority_comes_with_the_handshake(site: Site, running: object) -> None:
    """So a node can be told its fingerprint, and needs no file."""
    assert certificates.fetch_authority("localhost", site.port) == _trusted(site)


def test_a_node_joins_with_the_fingerprint_alone(site: Site, running: object, tmp_path: Path) -> None:
    """What the server sends counts if it is what the coordinator told, and its own certificate is signed with it."""
    mark = certificates.fingerprint(_trusted(site))
    words = ["deploy", "join", "--server", f"localhost:{site.port}", "--out", str(tmp_path / "node")]
    wrong = CliRunner().invoke(app, [*words, "--ca-fingerprint", mark[:-1] + ("A" if mark[-1] != "A" else "B")])
    assert "somebody is in between" in str(wrong.exception)
    assert not (tmp_path / "node").exists()
    right = CliRunner().invoke(app, [*words, "--ca-fingerprint", mark])
    assert right.exit_code == 0 and (tmp_path / "node/ca.crt").read_bytes() == _trusted(site)


def test_what_was_refused_is_logged_without_headers(site: Site, seen: list[tuple[str, str, int]]) -> None:
    """A node's headers hold a signature that is good for a minute."""
    asked(site, "/v1/control/list-runs?secret-question", headers={**VERSION, "flwr-signature": "secret-signature"})
    asked(site, FLEET, headers={**VERSION, "flwr-signature": "secret-signature"})
    log = (site.logs / "refused.log").read_text()
    assert '127.0.0.1 "POST /v1/control/list-runs" 403' in log
    written = log + (site.logs / "proxy-error.log").read_text()
    assert "secret-signature" not in written and f'{FLEET}" 200' not in log


def test_many_nodes_behind_one_address_meet_no_limit(site: Site, seen: list[tuple[str, str, int]]) -> None:
    """Sixteen of them that ask without a pause, a hundred times what they do."""

    def ask(statuses: list[int]) -> None:
        with closing(http.client.HTTPSConnection("localhost", site.port, timeout=20, context=context(site))) as each:
            for _ in range(30):
                each.request("POST", FLEET, headers=VERSION)
                answer = each.getresponse()
                answer.read()
                statuses.append(answer.status)

    statuses: list[int] = []
    threads = [threading.Thread(target=ask, args=(statuses,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 480


def test_one_address_cannot_hold_all_connections(site: Site, seen: list[tuple[str, str, int]]) -> None:
    """Requests that never end count; those beyond the limit are refused at once."""
    head = f"POST {FLEET} HTTP/1.1\r\nHost: localhost\r\nflwr-package-version: {VERSION['flwr-package-version']}\r\n"
    text = f"{head}Content-Length: 9\r\n\r\n".encode()
    shared = context(site)
    held: list[ssl.SSLSocket] = []
    try:
        for _ in range(proxy.CONNECTIONS):
            held.append(
                shared.wrap_socket(socket.create_connection(("localhost", site.port)), server_hostname="localhost")
            )
            held[-1].sendall(text)
        deadline = time.monotonic() + 20
        while asked(site, FLEET)[0] != 503 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert asked(site, FLEET)[0] == 503
    finally:
        for each in held:
            each.close()
    while asked(site, FLEET)[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert asked(site, FLEET)[0] == 200


def test_the_proxy_speaks_with_nobody_but_the_site_inside(tmp_path: Path) -> None:
    """Another program that took the SuperLink's port, with a certificate of somebody else, gets nothing."""
    port, superlink = free_ports(2)
    site = founding.found(tmp_path / "site", "localhost", port, superlink, listen=["127.0.0.1"])
    foreign = certificates.make_server(certificates.make_authority("localhost"), "localhost")
    with inside(superlink, foreign, tmp_path) as seen, outside(site):
        assert asked(site, FLEET, body=b"secret")[0] == 502
        assert seen == []


def test_all_of_nginxs_files_lie_in_the_site(site: Site, running: object) -> None:
    """It runs as the user who started it, who may not write elsewhere; nor is anything open to others."""
    assert {path.name for path in site.nginx.iterdir()} >= {"nginx.pid", "body", "proxy"}
    pid = int((site.nginx / "nginx.pid").read_text())
    open_files = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    outside_of_it = {
        name for name in open_files if name.startswith("/") and not name.startswith((str(site.folder), "/dev"))
    }
    assert outside_of_it <= {str(Path(f"/proc/self/fd/{number}").readlink()) for number in (1, 2)}
