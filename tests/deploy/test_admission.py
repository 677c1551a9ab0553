"""Who may take part: numbers stay, keys are one node's, what has ended stays ended."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.deploy import certificates, founding, joining, keys
from fedsim.deploy.applicants import requested
from fedsim.deploy.keys import Public
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site
from fedsim.errors import DeployError

HOST = "localhost"


def public(number: int) -> Public:
    """As many keys as are wanted; the registry looks at their text no further."""
    return Public(f"ecdsa-sha2-nistp384 {number}", f"SHA256:{number:043d}")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return founding.found(tmp_path / "site", HOST, 8443, 8444)


@pytest.fixture
def node(site: Site, tmp_path: Path) -> Path:
    """The folder of a node that has joined."""
    joining.join(tmp_path / "node", joining.Server(HOST, 8443, site.authority.read_bytes()), "north")
    return tmp_path / "node"


def told(*words: object) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(app, ["deploy", *map(str, words)])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def refused(*words: object) -> str:
    """The one line with which a command is refused."""
    done = CliRunner().invoke(app, ["deploy", *map(str, words)])
    assert isinstance(done.exception, DeployError), done.output
    return str(done.exception)


class Admissions(RuleBasedStateMachine):
    """Whatever is done in whatever order, against a model of dictionaries."""

    names = st.sampled_from(["north", "south", "east"])
    numbers = st.integers(0, 5)

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.registry = Registry(founding.found(Path(self.place.name) / "site", HOST, 8443, 8444))
        self.order: list[str] = []
        self.key: dict[str, int] = {}
        self.admitted: set[str] = set()
        self.used: set[int] = set()

    @rule(name=names, key=numbers)
    def admit(self, name: str, key: int) -> None:
        if name in self.admitted or key in self.used:
            with pytest.raises(DeployError):
                self.registry.admit(name, public(key))
            return
        self.registry.admit(name, public(key))
        if name not in self.order:
            self.order.append(name)
        self.admitted.add(name)
        self._has(name, key)

    @rule(name=names, key=numbers)
    def rotate(self, name: str, key: int) -> None:
        if name not in self.admitted or key in self.used:
            with pytest.raises(DeployError):
                self.registry.rotate(name, public(key))
            return
        self.registry.set_node_id(name, 2**64 - 1)
        assert self.registry.rotate(name, public(key)).node_id is None
        self._has(name, key)

    @rule(name=names)
    def end(self, name: str) -> None:
        if name not in self.order:
            with pytest.raises(DeployError):
                self.registry.revoke(name)
            return
        self.registry.revoke(name)
        self.admitted.discard(name)

    @invariant()
    def agrees(self) -> None:
        found = self.registry.nodes()
        assert [node.name for node in found] == self.order
        assert [node.number for node in found] == list(range(len(found)))
        assert {node.name for node in found if node.status == "admitted"} == self.admitted
        assert {node.name: node.fingerprint for node in found} == {
            name: public(key).fingerprint for name, key in self.key.items()
        }

    def teardown(self) -> None:
        self.place.cleanup()

    def _has(self, name: str, key: int) -> None:
        self.key[name] = key
        self.used.add(key)


TestAdmissions = Admissions.TestCase
TestAdmissions.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_node_ids_have_all_64_bits(site: Site) -> None:
    registry = Registry(site)
    registry.admit("north", public(1))
    registry.set_node_id("north", 2**64 - 1)
    assert registry.revoke("NORTH").node_id == 2**64 - 1


def test_a_ledgers_counter_never_falls(site: Site) -> None:
    """What tells a restored backup: the largest that was ever seen."""
    registry = Registry(site)
    assert registry.counter("north") == 0
    for seen, largest in ((3, 3), (1, 3), (7, 7)):
        registry.saw("north", seen)
        assert Registry(site).counter("north") == largest


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\nb", "-a", "x" * 41])
def test_a_name_must_be_fit_for_a_file(name: str, site: Site) -> None:
    with pytest.raises(DeployError, match="cannot be called"):
        Registry(site).admit(name, public(1))


def test_a_key_counts_only_with_the_fingerprint_that_was_told(site: Site, tmp_path: Path) -> None:
    """Somebody who puts another key in its place changes its fingerprint."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    right, wrong = keys.make_key(tmp_path / "a"), keys.make_key(tmp_path / "b")
    (site.requests / "other.pub").write_text("nonsense")
    with pytest.raises(DeployError, match="1 of them cannot be read"):
        requested(site, right.fingerprint)
    (site.requests / "north.pub").write_text(right.text + " somebody@somewhere\n")
    assert requested(site, right.fingerprint) == right
    with pytest.raises(DeployError, match="another key"):
        requested(site, right.fingerprint, tmp_path / "b/key.pub")
    with pytest.raises(DeployError, match="secret key"):
        requested(site, right.fingerprint, tmp_path / "a/key")
    with pytest.raises(DeployError, match="not a fingerprint"):
        requested(site, wrong.text)


def test_trust_needs_a_word_of_the_coordinator(site: Site, tmp_path: Path) -> None:
    """Without file or fingerprint nothing is believed; with them only what agrees."""
    authority = site.authority.read_bytes()
    mark = certificates.fingerprint(authority)
    other = certificates.fingerprint(certificates.make_authority(HOST).certificate)
    with pytest.raises(DeployError, match="whom to trust is not said"):
        joining.server_of("localhost", None, None, None, 8443)
    assert joining.server_of("localhost:9", None, site.authority, mark, 8443) == ("localhost", 9, authority)
    assert joining.server_of(None, site.invitation, None, None, 1) == ("localhost", 8443, authority)
    with pytest.raises(DeployError, match="somebody is in between"):
        joining.server_of(None, site.invitation, None, other, 1)
    forged = tmp_path / "invitation.toml"
    forged.write_text(site.invitation.read_text().replace(mark, other))
    with pytest.raises(DeployError, match="not that of the fingerprint"):
        joining.server_of(None, forged, None, None, 1)


def test_one_certificate_is_trusted_and_no_other_that_came_with_it(site: Site, tmp_path: Path) -> None:
    """A fingerprint is that of the first of a file, and TLS would trust them all."""
    authority, file, invited = site.authority.read_bytes(), tmp_path / "ca.crt", tmp_path / "invitation.toml"
    file.write_bytes(authority + certificates.make_authority(HOST).certificate)
    invited.write_text(founding.invitation(site, file.read_bytes()))
    mark = certificates.fingerprint(authority)
    assert joining.server_of("localhost", None, file, mark, 8443).authority == authority
    assert joining.server_of(None, invited, None, mark, 8443).authority == authority


def test_an_invitation_names_a_host_as_a_site_does(site: Site, tmp_path: Path) -> None:
    """It comes from elsewhere, and the host goes onto Flower's command line."""
    forged = tmp_path / "invitation.toml"
    forged.write_text(site.invitation.read_text().replace('host = "localhost"', 'host = "--insecure"'))
    with pytest.raises(DeployError, match="host: --insecure is neither a name nor an address"):
        joining.server_of(None, forged, None, None, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.org", ("a.org", 8443)),
        ("A.org:1", ("a.org", 1)),
        ("192.0.2.7:99", ("192.0.2.7", 99)),
        ("[2001:db8::1]:99", ("2001:db8::1", 99)),
        ("2001:db8::1", ("2001:db8::1", 8443)),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, expected: tuple[str, int], site: Site) -> None:
    assert joining.server_of(text, None, site.authority, None, 8443)[:2] == expected


@pytest.mark.parametrize("host", ["fl.example.org", "192.0.2.7", "2001:db8::1"])
@pytest.mark.parametrize("port", [8443, 9000])
def test_init_prints_the_server_as_join_reads_it(host: str, port: int, tmp_path: Path) -> None:
    """The line is sent to owners, who copy it."""
    said = told("init", tmp_path / "site", "--host", host, "--port", port)
    (named,) = re.findall(r"join --server (\S+) ", said)
    authority = tmp_path / "site/ca/ca.crt"
    assert joining.server_of(named, None, authority, None, 8443)[:2] == (host, port)


@pytest.mark.parametrize("text", ["a b", "a.org:0", "a.org:70000", "https://a.org", ""])
def test_an_address_that_is_none_is_refused(text: str, site: Site) -> None:
    with pytest.raises(DeployError, match="--server"):
        joining.server_of(text, None, site.authority, None, 8443)


def test_the_commands_from_a_site_to_a_rotated_key(tmp_path: Path) -> None:
    """The way that docs/deploy.md tells, with what each command prints for programs."""
    folder, home = tmp_path / "site", tmp_path / "north"
    made = json.loads(told("init", folder, "--host", HOST, "--json"))
    site = Site.open(folder)
    assert made["fingerprint"] == certificates.fingerprint(site.authority.read_bytes())
    joined = json.loads(told("join", "--invitation", site.invitation, "--out", home, "--name", "north", "--json"))
    node = NodeFolder.open(home)
    assert (node.host, node.port, node.name) == (HOST, 8443, "north")
    admission = ("--on", folder, "--key", home / "key.pub")
    text = told("admit", "north", joined["fingerprint"], *admission)
    assert text == "north is node 0; takes effect when the server starts\n"
    assert "this key already" in refused("admit", "north", joined["fingerprint"], *admission)
    assert "is north's" in refused("admit", "south", joined["fingerprint"], *admission)
    renewed = json.loads(told("rotate", "--node", home, "--json"))
    assert keys.read_key(home / "key").fingerprint == renewed["fingerprint"] != joined["fingerprint"]
    assert "another key" in refused("rotate", "north", joined["fingerprint"], *admission)
    assert "new key" in told("rotate", "north", renewed["fingerprint"], *admission)
    assert json.loads(told("revoke", "north", "--on", folder, "--json"))["status"] == "revoked"
    assert "has ended" in refused("admit", "north", renewed["fingerprint"], *admission)
    assert "30 days" in told("rotate", "--server", "--on", folder, "--days", 30)
    assert "no node is called" in refused("revoke", "soth", "--on", folder)
    assert "rotate" in told("rotate", "--help") and "Example" in told("rotate", "--help")


def test_nothing_secret_is_ever_printed(tmp_path: Path) -> None:
    """Not the secret numbers of a key, in any form a command prints."""
    folder, home = tmp_path / "site", tmp_path / "north"
    printed = ""
    for flag in ([], ["--json"]):
        printed += told("init", folder, "--host", HOST, *flag)
        printed += told("join", "--invitation", folder / "invitation.toml", "--out", home, *flag)
        printed += told("rotate", "--node", home, *flag)
        printed += told("rotate", "--server", "--on", folder, *flag)
        secrets = [(path / name).read_text() for path, name in ((folder, "ca/ca.key"), (folder, "tls/server.key"))]
        secrets.append((home / "key").read_text())
        public_files = [folder / "invitation.toml", folder / "nginx.conf", folder / "compose.yaml", home / "key.pub"]
        told_on = printed + "".join(file.read_text() for file in public_files)
        for secret in secrets:
            lines = [line for line in secret.splitlines() if len(line) > 20 and "KEY" not in line]
            assert lines and not any(line in told_on for line in lines)
        folder.rename(tmp_path / f"site{len(flag)}")
        home.rename(tmp_path / f"north{len(flag)}")
    assert not re.search("PRIVATE", printed)


@pytest.mark.parametrize(
    "words", [(), ("north", "--server", "--on", "site"), ("--server",), ("--node", "x", "--on", "y")]
)
def test_rotate_says_what_it_takes(words: tuple[str, ...]) -> None:
    assert "give NAME FINGERPRINT" in refused("rotate", *words)
