"""A node's folder made: whom it trusts, its own key, and the owner's rules as they are at first.

Trust begins with the authority's certificate. It comes as a file, or from the server itself; then it counts only if its
fingerprint is the one that the coordinator told by another way.
"""

import re
import socket
import tomllib
from pathlib import Path
from typing import NamedTuple, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from fedsim.deploy import certificates, keys, private_files, units
from fedsim.deploy.keys import Public
from fedsim.deploy.node.folder import reason
from fedsim.deploy.registry import checked_name
from fedsim.deploy.site import Port, checked_host
from fedsim.errors import DeployError


class Server(NamedTuple):
    """A coordinator's server, and the certificate by which it is known.

    Attributes:
        host, port: of it.
        authority: PEM of one certificate.
    """

    host: str
    port: int
    authority: bytes


class Invitation(BaseModel):
    """invitation.toml of a site."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    host: str
    port: Port
    fingerprint: str
    certificate: str

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        return checked_host(value)

    @classmethod
    def read(cls, file: Path) -> Self:
        """An invitation as the coordinator sent it.

        Raises:
            DeployError: the file is none, or its certificate is not that of its fingerprint.
        """
        try:
            found = cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise DeployError(f"{file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise DeployError(f"{file} is not an invitation: {reason(error, cls)}") from error
        except ValueError as error:
            raise DeployError(f"{file} is not an invitation: {error}") from error
        if certificates.fingerprint(found.certificate.encode()) != found.fingerprint:
            raise DeployError(
                f"{file}: the certificate is not that of the fingerprint; ask the coordinator for another"
            )
        return found


def server_of(
    address: str | None, invitation: Path | None, authority: Path | None, fingerprint: str | None, port: int
) -> Server:
    """Which server is meant, and whose certificate to trust.

    Args:
        address: HOST or HOST:PORT; may be left out with an invitation.
        invitation, authority: files from the coordinator.
        fingerprint: of the authority's certificate, as the coordinator told it.
        port: where the address has none.

    Raises:
        DeployError: nothing says whom to trust, or what the server sends is somebody else's.
    """
    if fingerprint is not None:
        fingerprint = keys.checked_fingerprint(fingerprint)
    invited = Invitation.read(invitation) if invitation is not None else None
    if address is None and invited is None:
        raise DeployError("name the server with --server HOST, or give the coordinator's --invitation FILE")
    host, number = (invited.host, invited.port) if invited and address is None else _address(address or "", port)
    if invited is not None:
        pem = invited.certificate.encode()
    elif authority is not None:
        pem = _read(authority)
    elif fingerprint is not None:
        pem = certificates.fetch_authority(host, number)
    else:
        raise DeployError(
            "whom to trust is not said: ask the coordinator for the authority's fingerprint, by telephone say, and "
            "give it with --ca-fingerprint; or for invitation.toml, and give it with --invitation"
        )
    fetched = invited is None and authority is None
    pem = certificates.alone(pem)
    found = certificates.fingerprint(pem)
    if fingerprint is not None and found != fingerprint:
        raise DeployError(
            f"the authority of {host}:{number} has the fingerprint {found}, not {fingerprint}: "
            "it is another server, or somebody is in between; ask the coordinator"
        )
    if fetched and (problem := certificates.connection_problem(host, number, pem)) is not None:
        raise DeployError(problem)
    return Server(host, number, pem)


def join(folder: Path, server: Server, name: str, data: Path | None = None) -> Public:
    """Make a node's folder: settings, rules, the trusted certificate, a key of its own, units.

    Args:
        folder: a new one.
        server: whom to trust.
        name: as the node calls itself.
        data: where its rows lie, if that is known.

    Raises:
        DeployError: there is something at the place; nothing is left behind.
    """
    from fedsim.deploy.node.rules import DEFAULT

    path = folder.absolute()
    settings: dict[str, object] = {"name": checked_name(name), "host": server.host, "port": server.port}
    if data is not None:
        settings["data"] = {"path": str(data.absolute())}
    with private_files.new_folder(path) as built:
        private_files.folder(built / "systemd")
        public = keys.make_key(built)
        private_files.create(built / "ca.crt", server.authority)
        texts = {"node.toml": tomli_w.dumps(settings), "rules.toml": DEFAULT}
        texts |= units.node_texts(path, data.absolute() if data is not None else None)
        for place, text in texts.items():
            private_files.create(built / place, text.encode())
    return public


def usual_name() -> str:
    """What a node is called where nobody says: this machine's name."""
    return re.sub(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-._")[:40] or "node"


def _address(text: str, port: int) -> tuple[str, int]:
    """HOST, HOST:PORT, [IPv6] or [IPv6]:PORT."""
    bracketed = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    host, number = bracketed.groups() if bracketed else (text, None)  # an IPv6 address without brackets
    try:
        found = checked_host(host)
    except ValueError as error:
        raise DeployError(f"--server {error}") from error
    if number is not None and not 1 <= int(number) <= 65535:
        raise DeployError(f"--server {text}: there is no port {number}")
    return found, port if number is None else int(number)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}") from error
