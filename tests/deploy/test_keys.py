"""Certificates and keys are what other programs say they are: OpenSSL, OpenSSH, Flower and a TLS handshake."""

import base64
import hashlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.deploy import certificates, founding, joining, keys, private_files
from fedsim.deploy.certificates import Pair
from fedsim.deploy.site import Site, checked_host, flower_environment
from fedsim.errors import DeployError

HOST = "fl.example.org"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it is the independent word on what a file says")
    return found


def told(*command: str, given: bytes | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout.decode()


@pytest.fixture(scope="module")
def authority() -> Pair:
    return certificates.make_authority(HOST)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return founding.found(tmp_path / "site", HOST, 8443, 8444)


@contextmanager
def serving(pair: Pair, folder: Path, address: str = "127.0.0.1") -> Iterator[int]:
    """A TLS server on loopback with a pair; its port."""
    folder.mkdir()
    (folder / "key").write_bytes(pair.key)
    (folder / "chain").write_bytes(pair.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain", folder / "key")
    listener = socket.create_server((address, 0))
    thread = threading.Thread(target=_greet, args=(listener, context))
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _greet(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        try:
            with plain, context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1)
        except OSError:
            pass


def test_openssl_reads_the_certificates_as_meant(authority: Pair, tmp_path: Path) -> None:
    """Who signs, for which names, for what, until when: in the words of another program."""
    openssl = program("openssl")
    server = certificates.make_server(authority, HOST, days=30)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "server.crt").write_bytes(server.certificate)
    read = (openssl, "x509", "-noout", "-in")
    own, parent = str(tmp_path / "server.crt"), str(tmp_path / "ca.crt")
    assert "OK" in told(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", parent, own)
    names = told(*read, own, "-ext", "subjectAltName,extendedKeyUsage,basicConstraints")
    assert f"DNS:{HOST}, DNS:localhost, IP Address:127.0.0.1" in names
    assert "TLS Web Server Authentication" in names and "CA:FALSE" in names
    assert "CA:TRUE, pathlen:0" in told(*read, parent, "-ext", "basicConstraints")
    assert "secp384r1" in told(*read, parent, "-text")
    for file, days in ((own, 30), (parent, 3650)):
        assert subprocess.run([*read, file, "-checkend", str(86400 * days - 60)], check=False).returncode == 0
        assert subprocess.run([*read, file, "-checkend", str(86400 * days + 60)], check=False).returncode == 1
    mark = told(*read, parent, "-fingerprint", "-sha256").partition("=")[2].strip().replace(":", "")
    printed = certificates.fingerprint(authority.certificate)
    assert base64.b64decode(printed.removeprefix("SHA256:") + "=").hex() == mark.lower()


@pytest.mark.parametrize("host", ["fl.example.org", "192.0.2.7", "2001:db8::7", "localhost"])
def test_a_site_of_any_host_has_no_problem(host: str, authority: Pair) -> None:
    server = certificates.make_server(authority, host)
    assert certificates.certificate_problem(server.certificate, authority.certificate, host) is None
    assert 364.9 < certificates.days_left(server.certificate) < 365.1


def test_a_certificate_that_does_not_do_is_told_in_a_line(authority: Pair) -> None:
    """Each of the three mistakes has its own line, and the command that mends it."""
    other = certificates.make_authority(HOST)
    sound = certificates.make_server(authority, HOST).certificate
    expired = certificates.make_server(authority, HOST, days=0).certificate
    for chain, host, word in (
        (expired, HOST, "expired"),
        (certificates.make_server(other, HOST).certificate, HOST, "not signed by this site's authority"),
        (sound, "other.example.org", "does not name other.example.org"),
        (b"nonsense", HOST, "damaged"),
    ):
        problem = certificates.certificate_problem(chain, authority.certificate, host)
        assert problem is not None and word in problem and "\n" not in problem
    assert certificates.certificate_problem(sound, authority.certificate, HOST) is None


def test_a_real_handshake_is_explained(authority: Pair, tmp_path: Path) -> None:
    """What a node sees of a server: sound, expired, another authority's of the same name, for another host, no TLS."""
    other = certificates.make_authority(HOST)
    sound = certificates.make_server(authority, HOST)
    with serving(sound, tmp_path / "sound") as port:
        assert certificates.connection_problem("127.0.0.1", port, authority.certificate) is None
        assert certificates.connection_problem("localhost", port, authority.certificate) is None
        assert "not signed by" in str(certificates.connection_problem("localhost", port, other.certificate))
        assert certificates.fetch_authority("localhost", port) == authority.certificate
    with serving(sound, tmp_path / "elsewhere", "127.0.0.2") as port:
        assert "not for 127.0.0.2" in str(certificates.connection_problem("127.0.0.2", port, authority.certificate))
    with serving(certificates.make_server(authority, HOST, days=0), tmp_path / "old") as port:
        assert "has expired" in str(certificates.connection_problem("localhost", port, authority.certificate))
    assert "nothing listens" in str(certificates.connection_problem("localhost", port, authority.certificate))
    assert "no machine is called" in str(certificates.connection_problem("a.invalid", port, authority.certificate))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
        problem = certificates.connection_problem("127.0.0.1", number, authority.certificate, seconds=0.2)
    assert "does not answer" in str(problem)


def test_an_expired_certificate_is_refused_by_openssl_too(authority: Pair, tmp_path: Path) -> None:
    openssl = program("openssl")
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "server.crt").write_bytes(certificates.make_server(authority, HOST, days=0).certificate)
    verify = [openssl, "verify", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "server.crt")]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "expired" in done.stderr


def test_flower_and_openssh_accept_a_nodes_key(tmp_path: Path) -> None:
    """Flower's two loaders, of the node and of the coordinator; and `ssh-keygen`, whose fingerprint is ours."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    class Arguments:
        auth_supernode_private_key = str(tmp_path / "key")
        auth_supernode_public_key = None

    public = keys.make_key(tmp_path)
    pair = _try_setup_client_authentication(Arguments())  # type: ignore[arg-type]
    assert pair is not None and isinstance(pair[0].curve, ec.SECP384R1)
    assert b"BEGIN PUBLIC KEY" in try_load_public_key(tmp_path / "key.pub")
    ssh = program("ssh-keygen")
    assert public.fingerprint in told(ssh, "-l", "-f", str(tmp_path / "key.pub"))
    assert told(ssh, "-y", "-f", str(tmp_path / "key")).split()[:2] == public.text.split()
    assert keys.read_key(tmp_path / "key") == public


@pytest.mark.parametrize(
    ("kind", "word"),
    [(("ecdsa", "384"), ""), (("ecdsa", "256"), ""), (("ed25519", "256"), "EC key"), (("rsa", "3072"), "EC key")],
)
def test_keys_of_ssh_keygen_are_read_if_flower_takes_them(kind: tuple[str, str], word: str, tmp_path: Path) -> None:
    ssh = program("ssh-keygen")
    told(ssh, "-q", "-t", kind[0], "-b", kind[1], "-N", "", "-C", "somebody", "-f", str(tmp_path / "key"))
    if word:
        with pytest.raises(DeployError, match=word):
            keys.read_key(tmp_path / "key")
        with pytest.raises(DeployError, match=word):
            keys.read_public((tmp_path / "key.pub").read_bytes(), "key.pub")
    else:
        public = keys.read_public((tmp_path / "key.pub").read_bytes(), "key.pub")
        assert keys.read_key(tmp_path / "key") == public and "somebody" not in public.text


def test_a_key_with_a_passphrase_or_a_secret_one_sent_is_refused(tmp_path: Path) -> None:
    ssh = program("ssh-keygen")
    told(ssh, "-q", "-t", "ecdsa", "-b", "384", "-N", "12345", "-f", str(tmp_path / "key"))
    with pytest.raises(DeployError, match="without a passphrase"):
        keys.read_key(tmp_path / "key")
    with pytest.raises(DeployError, match="secret key"):
        keys.read_public((tmp_path / "key").read_bytes(), "sent.pub")


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_what_is_no_key_is_refused(content: bytes) -> None:
    with pytest.raises(DeployError):
        keys.read_public(content, "sent.pub")


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_secrets_are_their_owners_alone_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    """All of a site and of a node, from the mode at creation on; a folder 700, a file 600."""
    before = os.umask(mask)
    try:
        site = founding.found(tmp_path / "site", HOST, 8443, 8444)
        founding.renew(site)
        server = joining.Server(HOST, 8443, site.authority.read_bytes())
        joining.join(tmp_path / "node", server, "north")
        keys.replace_key(tmp_path / "node")
    finally:
        os.umask(before)
    found = [tmp_path / "site", tmp_path / "node", *(tmp_path / "site").rglob("*"), *(tmp_path / "node").rglob("*")]
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert len(found) > 25


def test_a_secret_is_never_open_not_even_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode stands before the first byte does."""
    seen: list[int] = []
    keep = os.fdopen

    def looked(descriptor: int, *rest: object) -> object:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return keep(descriptor, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "fdopen", looked)
    before = os.umask(0)
    try:
        private_files.create(tmp_path / "secret", b"x")
    finally:
        os.umask(before)
    assert seen == [0o600]


@pytest.mark.parametrize("name", ["ca/ca.key", "tls/server.key", "site.db", "."])
def test_a_loosened_mode_is_refused_with_the_command_that_mends_it(name: str, site: Site) -> None:
    (site.folder / name).chmod(0o755)
    with pytest.raises(DeployError, match="run `chmod") as caught:
        Site.open(site.folder)
    command = str(caught.value).partition("run `")[2].rstrip("`")
    subprocess.run(command.split(), check=True)
    assert Site.open(site.folder) == site


def test_the_authoritys_key_may_be_kept_elsewhere(site: Site, tmp_path: Path) -> None:
    """A server needs it for nothing; whoever breaks in can sign nothing then."""
    site.authority_key.rename(tmp_path / "kept")
    assert Site.open(site.folder) == site and site.problem() is None
    with pytest.raises(DeployError, match=r"ca\.key cannot be read"):
        founding.renew(site)


def test_a_place_that_is_taken_is_left_as_it_is(site: Site) -> None:
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    with pytest.raises(DeployError, match="exists already"):
        founding.found(site.folder, HOST, 8443, 8444)
    assert {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == before


def test_a_folder_whose_name_would_break_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be printed"):
        founding.found(tmp_path / "a\nUser=root", HOST, 8443, 8444)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["make_server", "fingerprint"])
def test_a_failure_leaves_nothing_behind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificates, name, full)
    with pytest.raises((DeployError, OSError), match="No space left"):
        founding.found(tmp_path / "site", HOST, 8443, 8444)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_old_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = keys.make_key(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeployError, match="No space left"):
        keys.replace_key(tmp_path)
    assert keys.read_key(tmp_path / "key") == public
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]


def test_a_renewed_certificate_asks_nothing_of_nodes(site: Site, tmp_path: Path) -> None:
    """A node that trusts the authority meets the server before and after."""
    trusted, old = site.authority.read_bytes(), site.server_certificate.read_bytes()
    founding.renew(site, days=10)
    assert site.server_certificate.read_bytes() != old and site.authority.read_bytes() == trusted
    assert 9.9 < certificates.days_left(site.server_certificate.read_bytes()) < 10.1
    pair = Pair(site.server_key.read_bytes(), site.server_certificate.read_bytes())
    with serving(pair, tmp_path / "server") as port:
        assert certificates.connection_problem("localhost", port, trusted) is None
    assert site.problem() is None


def test_a_renewal_that_was_cut_off_is_noticed_and_mended(site: Site) -> None:
    old = site.server_certificate.read_bytes()
    founding.renew(site)
    site.server_certificate.write_bytes(old)
    assert "rotate --server" in str(site.problem())
    founding.renew(site)
    assert site.problem() is None


def test_settings_that_are_wrong_name_their_key(site: Site) -> None:
    text = site.settings.read_text()
    for old, new, word in (("8443", "0", "port"), (HOST, "a b", "host"), ("created", "made", "made")):
        site.settings.write_text(text.replace(old, new))
        with pytest.raises(DeployError, match=word):
            Site.open(site.folder)


@pytest.mark.parametrize("address", ["fl.example.org", "", "0.0.0.0:1", "fe80::1%eth0; }"])
def test_what_nginx_listens_at_is_an_address(address: str, tmp_path: Path) -> None:
    """It goes into nginx.conf as it is."""
    with pytest.raises(DeployError, match="is no IP address"):
        founding.found(tmp_path / "site", HOST, 8443, 8444, listen=(address,))


@given(st.text(max_size=60))
@example("fe80::1%eth0; }\n")
def test_a_host_is_one_that_a_certificate_can_name(host: str) -> None:
    """Whatever passes goes into a certificate, nginx.conf and a URL; a newline or quote must not."""
    try:
        checked = checked_host(host)
    except ValueError:
        return
    assert not set(checked) & set(" \n\t\"';{}$\\/")
    x509.DNSName(checked)


def test_flower_does_not_phone_home_nor_read_what_others_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0" and environment["FLWR_HOME"] == str(tmp_path)
    assert "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE" not in environment
    assert environment["no_proxy"].split(",") == ["example.org", "127.0.0.1", "localhost"]
    assert shutil.which("flower-superlink", path=environment["PATH"]) is not None


def test_the_fingerprint_of_an_authority_is_that_of_its_der_form(authority: Pair) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.certificate.decode())
    expected = base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    assert certificates.fingerprint(authority.certificate) == f"SHA256:{expected}"
