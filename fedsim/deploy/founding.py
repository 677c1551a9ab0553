"""A coordinator's folder made, and its server's certificate renewed."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from fedsim.deploy import certificates, private_files, proxy, units
from fedsim.deploy.certificates import Pair
from fedsim.deploy.node.folder import reason
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site
from fedsim.errors import DeployError


def found(
    folder: Path,
    host: str,
    port: int,
    superlink_port: int,
    *,
    listen: Sequence[str] = ("0.0.0.0",),
    days: int = certificates.SERVER_DAYS,
) -> Site:
    """Make a site: its authority, the server's certificate, settings, an empty table of nodes, units.

    Args:
        folder: a new one.
        host, port: as nodes will call the server.
        superlink_port: of this machine, for the SuperLink alone.
        listen: addresses at which the proxy listens.
        days: for which the server's certificate is valid.

    Raises:
        DeployError: there is something at the place, or a setting is wrong; nothing is left behind.
    """
    path = folder.absolute()
    if port == superlink_port:
        raise DeployError(f"port {port} is the proxy's; give the SuperLink another with --superlink-port")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        values = {"host": host, "port": port, "superlink_port": superlink_port, "created": now, "listen": list(listen)}
        site = Site.model_validate({**values, "folder": path})
    except ValidationError as error:
        raise DeployError(reason(error, Site)) from error
    authority = certificates.make_authority(site.host)
    server = certificates.make_server(authority, site.host, days)
    with private_files.new_folder(path) as built:
        for name in ("ca", "tls", "requests", "flwr", "nginx", "logs", "runs", "systemd"):
            private_files.folder(built / name)
        here = site.model_copy(update={"folder": built})
        private_files.create(here.authority_key, authority.key)
        private_files.create(here.authority, authority.certificate)
        private_files.create(here.server_key, server.key)
        private_files.create(here.server_certificate, server.certificate)
        private_files.create(here.invitation, invitation(site, authority.certificate).encode())
        texts = {**site.texts(), **units.server_texts(path, port), "nginx.conf": proxy.configuration(site)}
        for name, text in texts.items():
            private_files.create(built / name, text.encode())
        Registry(here)
    return Site.open(path)


def renew(site: Site, days: int = certificates.SERVER_DAYS) -> None:
    """Give the server a new key and certificate, signed by the same authority; nodes need nothing.

    A kill between the two files is noticed by `Site.problem`, and mended by doing it again.

    Raises:
        DeployError: the authority's key is missing or damaged, or a file cannot be written.
    """
    try:
        authority = Pair(site.authority_key.read_bytes(), site.authority.read_bytes())
    except OSError as error:
        raise DeployError(f"{error.filename} cannot be read: {error.strerror}; bring it back from a backup") from error
    server = certificates.make_server(authority, site.host, days)
    private_files.replace(site.server_key, server.key)
    private_files.replace(site.server_certificate, server.certificate)


def invitation(site: Site, authority: bytes) -> str:
    """What a node may be given, as TOML; none of it is secret, but the way it comes must be trusted."""
    heading = "# For the owners of data: fedsim deploy join --invitation invitation.toml\n"
    return heading + tomli_w.dumps(
        {
            "host": site.host,
            "port": site.port,
            "fingerprint": certificates.fingerprint(authority),
            "certificate": authority.decode("ascii"),
        },
        multiline_strings=True,
    )
