"""The coordinator's folder: its settings, and where everything lies in it."""

import ipaddress
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsim.deploy import certificates, private_files
from fedsim.deploy.node.folder import reason
from fedsim.errors import DeployError

_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")
Port = Annotated[int, Field(ge=1, le=65535)]


class Site(BaseModel):
    """A coordinator's folder.

    Attributes:
        folder: of it.
        host, port: as nodes call the server.
        listen: the addresses at which the proxy listens.
        superlink_port: at which the SuperLink listens, on this machine only.
        created: when, ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    folder: Path = Field(exclude=True)
    host: str
    port: Port
    listen: list[str] = ["0.0.0.0"]
    superlink_port: Port
    created: str

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        return checked_host(value)

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: list[str]) -> list[str]:
        for address in value:
            if _address(address) is None:
                raise ValueError(f"{address} is no IP address")
        if not value:
            raise ValueError("name at least one address; 0.0.0.0 is all of IPv4")
        return value

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A site that is there.

        Raises:
            DeployError: there is none, its settings are wrong, or a secret is open to others.
        """
        path = folder.absolute()
        if not (path / "site.toml").is_file():
            raise DeployError(f"{folder} is not a site; make one with `fedsim deploy init {folder} --host NAME`")
        try:
            values = tomllib.loads((path / "site.toml").read_text(encoding="utf-8"))
            site = cls.model_validate({**values, "folder": path})
        except ValidationError as error:
            raise DeployError(f"{folder / 'site.toml'}: {reason(error, cls)}") from error
        except (OSError, ValueError) as error:
            raise DeployError(f"{folder / 'site.toml'} cannot be read: {error}") from error
        kept = [site.authority_key] if site.authority_key.exists() else []  # it may be kept elsewhere until `rotate`
        for secret in (path, site.server_key, site.database, *kept):
            private_files.check(secret)
        return site

    @property
    def address(self) -> str:
        """HOST:PORT as nodes call the server, an IPv6 address in brackets."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def settings(self) -> Path:
        """What the coordinator may change by hand."""
        return self.folder / "site.toml"

    @property
    def authority_key(self) -> Path:
        """The secret key that signs; only `init` and `rotate --server` need it."""
        return self.folder / "ca/ca.key"

    @property
    def authority(self) -> Path:
        """The certificate that nodes trust."""
        return self.folder / "ca/ca.crt"

    @property
    def server_key(self) -> Path:
        """The server's secret key."""
        return self.folder / "tls/server.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate, the authority's behind it."""
        return self.folder / "tls/server.crt"

    @property
    def invitation(self) -> Path:
        """What a node may be given: host, port, the authority's certificate and fingerprint; nothing secret."""
        return self.folder / "invitation.toml"

    @property
    def requests(self) -> Path:
        """Public keys that nodes sent, as NAME.pub."""
        return self.folder / "requests"

    @property
    def database(self) -> Path:
        """Who was admitted."""
        return self.folder / "site.db"

    @property
    def superlink_database(self) -> Path:
        """Flower's own."""
        return self.folder / "superlink.db"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of every Flower process of the server."""
        return self.folder / "flwr"

    @property
    def nginx_conf(self) -> Path:
        """Of nginx."""
        return self.folder / "nginx.conf"

    @property
    def nginx(self) -> Path:
        """Where nginx keeps what it is just sending."""
        return self.folder / "nginx"

    @property
    def logs(self) -> Path:
        """Of SuperLink and nginx."""
        return self.folder / "logs"

    @property
    def runs(self) -> Path:
        """Tickets of runs."""
        return self.folder / "runs"

    @property
    def metrics(self) -> Path:
        """For Prometheus."""
        return self.folder / "metrics.prom"

    def problem(self) -> str | None:
        """Why the server's certificate does not do, in one line, or None.

        Raises:
            DeployError: a certificate or key is missing or damaged.
        """
        try:
            key, chain = self.server_key.read_bytes(), self.server_certificate.read_bytes()
            authority = self.authority.read_bytes()
        except OSError as error:
            raise DeployError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not certificates.belongs(key, chain):
            return (
                "tls/server.key is not the key of tls/server.crt; make new ones with "
                "`fedsim deploy rotate --server --on DIR`"
            )
        return certificates.certificate_problem(chain, authority, self.host)

    def texts(self) -> dict[str, str]:
        """The files that say who this site is, by their place in it."""
        connection = {"address": f"127.0.0.1:{self.superlink_port}", "root-certificates": str(self.authority)}
        flower = {"superlink": {"default": "site", "site": connection}}
        return {"site.toml": tomli_w.dumps(self.model_dump()), "flwr/config.toml": tomli_w.dumps(flower)}

    def write_connection(self) -> None:
        """Write how `flwr` finds this site's SuperLink; anew at each start, for the folder may have moved."""
        private_files.folder(self.flower_home)
        private_files.replace(self.flower_home / "config.toml", self.texts()["flwr/config.toml"].encode())


def checked_host(host: str) -> str:
    """A server's name or address as certificates write it.

    Raises:
        ValueError: it is neither.
    """
    if (address := _address(host.strip("[]"))) is not None:
        return address
    name = host.lower()
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
    if len(name) > 253 or not re.fullmatch(rf"{label}(\.{label})*", name) or re.fullmatch(r"[\d.]+", name):
        raise ValueError(f"{host} is neither a name nor an address, such as fl.hospital.org or 192.0.2.7")
    return name


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _address(text: str) -> str | None:
    """An IP address in its usual form; None of anything else, also of one with a zone, which may hold any sign."""
    try:
        return None if "%" in text else str(ipaddress.ip_address(text))
    except ValueError:
        return None


def flower_environment(home: Path) -> dict[str, str]:
    """The whole environment of a Flower process that does not phone home, install packages or read others' settings.

    Args:
        home: its FLWR_HOME.
    """
    loopback = ("127.0.0.1", "localhost")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    direct = next((kept[key] for key in ("no_proxy", "NO_PROXY") if kept.get(key)), "")
    no_proxy = ",".join(dict.fromkeys([*filter(None, direct.split(",")), *loopback]))
    return {
        **kept,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Flower's HTTP client would send calls to this machine itself through a proxy that the environment names.
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        # nginx lies where an ordinary user's PATH does not lead on Debian.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath), *_SYSTEM]),
        "PYTHONUNBUFFERED": "1",
    }
