"""Commands about who may take part: a site made, nodes that join it, and their keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.console import Json, tell
from fedsim.errors import DeployError

if TYPE_CHECKING:
    from fedsim.deploy.site import Site

PORT = 8443
On = Annotated[Path, typer.Option(metavar="DIR", help="the site's folder")]
KeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="the node's key.pub; else looked for in DIR/requests")
]
Days = Annotated[int, typer.Option(min=1, max=3650, help="for which the server's certificate is valid")]


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder for the site", show_default=False)],
    host: Annotated[str, typer.Option(help="name or address by which nodes reach the server", show_default=False)],
    port: Annotated[int, typer.Option(min=1, max=65535, help="at which nodes reach it")] = PORT,
    listen: Annotated[list[str], typer.Option(help="an address of this machine; all of IPv4 if not given")] = [],  # noqa: B006
    superlink_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="for Flower, on this machine only; the next one by default")
    ] = None,
    days: Days = 365,
    as_json: Json = False,
) -> None:
    """Make a site: an authority, a server certificate, settings for nginx, systemd and compose.

    Tell the printed fingerprint to every node's owner by another way than the network, by telephone say.

    Example: fedsim deploy init site --host fl.hospital.org
    """
    from fedsim.deploy import certificates, founding

    inside = superlink_port or (port + 1 if port < 65535 else port - 1)
    site = founding.found(folder, host, port, inside, listen=listen or ("0.0.0.0",), days=days)
    mark = certificates.fingerprint(site.authority.read_bytes())
    values = {"folder": str(folder), "host": site.host, "port": site.port, "fingerprint": mark}
    where = site.address if port != PORT else site.host
    text = (
        f"a site for {site.address} in {folder}\n"
        f"fingerprint of its authority: {mark}\n"
        f"next: fedsim deploy server {folder}\n"
        f"for owners of data: fedsim deploy join --server {where} --ca-fingerprint {mark}"
    )
    tell(values, text, as_json)


def join(
    server: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="the coordinator's server")] = None,
    invitation: Annotated[Path | None, typer.Option(metavar="FILE", help="invitation.toml of the coordinator")] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="the authority's certificate, ca.crt")] = None,
    ca_fingerprint: Annotated[
        str | None, typer.Option(metavar="SHA256:...", help="of the authority, as the coordinator told it")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new folder for the node")] = Path("fedsim-node"),
    name: Annotated[str | None, typer.Option(help="of the node; this machine's if not given")] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="where its rows lie; may be said later")] = None,
    as_json: Json = False,
) -> None:
    """Make a node's folder: a key of its own, and whom it trusts. Nothing is sent.

    Example: fedsim deploy join --server fl.hospital.org --ca-fingerprint SHA256:...
    """
    from fedsim.deploy import joining

    found = joining.server_of(server, invitation, ca, ca_fingerprint, PORT)
    called = name or joining.usual_name()
    public = joining.join(out, found, called, data)
    values = {
        "folder": str(out),
        "name": called,
        "fingerprint": public.fingerprint,
        "host": found.host,
        "port": found.port,
        "send": str(out / "key.pub"),
    }
    rows = "" if data is not None else " --data PATH"
    text = (
        f"a node for {found.host}:{found.port} in {out}\n"
        f"fingerprint of its key: {public.fingerprint}\n"
        f"send {out / 'key.pub'} to the coordinator, and tell the fingerprint by another way; who then runs\n"
        f"  fedsim deploy admit {called} {public.fingerprint} --on SITE --key key.pub\n"
        f"your rules: {out / 'rules.toml'}\n"
        f"next: fedsim deploy node {out}{rows}"
    )
    tell(values, text, as_json)


def admit(
    name: Annotated[str, typer.Argument(help="of the node, as it is to be called", show_default=False)],
    fingerprint: Annotated[str, typer.Argument(help="as its owner told it, SHA256:...", show_default=False)],
    on: On,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Let a node take part: its public key, if it has the fingerprint that its owner told.

    Example: fedsim deploy admit north SHA256:... --on site --key key.pub
    """
    from fedsim.deploy.applicants import requested
    from fedsim.deploy.registry import Registry
    from fedsim.deploy.site import Site

    site = Site.open(on)
    node = Registry(site).admit(name, requested(site, fingerprint, key))
    _told(site, {"name": node.name, "number": node.number}, f"{node.name} is node {node.number}", as_json)


def revoke(
    name: Annotated[str, typer.Argument(help="of the node", show_default=False)], on: On, as_json: Json = False
) -> None:
    """Let a node take part no more; its key is not admitted again.

    Example: fedsim deploy revoke north --on site
    """
    from fedsim.deploy.registry import Registry
    from fedsim.deploy.site import Site

    site = Site.open(on)
    node = Registry(site).revoke(name)
    _told(site, {"name": node.name, "status": node.status}, f"{node.name} is {node.status}", as_json)


def rotate(
    name: Annotated[str | None, typer.Argument(help="of the node", show_default=False)] = None,
    fingerprint: Annotated[str | None, typer.Argument(help="of its new key", show_default=False)] = None,
    on: Annotated[Path | None, typer.Option(metavar="DIR", help="the site's folder")] = None,
    server: Annotated[bool, typer.Option("--server", help="a new certificate of the server")] = False,
    node: Annotated[Path | None, typer.Option(metavar="DIR", help="at its owner: a new key for this node")] = None,
    key: KeyFile = None,
    days: Days = 365,
    as_json: Json = False,
) -> None:
    """Replace a key: a node's at its owner (--node), then at the coordinator (NAME); or the server's (--server).

    A node keeps its name and number; its old key ends. A new server certificate asks nothing of the nodes.

    Example: fedsim deploy rotate north SHA256:... --on site --key key.pub, or rotate --server --on site
    """
    if sum([name is not None, server, node is not None]) != 1 or (on is None) != (node is not None):
        raise DeployError("give NAME FINGERPRINT --on DIR, or --server --on DIR, or --node DIR")
    if node is not None:
        _rotate_own(node, as_json)
        return
    from fedsim.deploy import founding
    from fedsim.deploy.applicants import requested
    from fedsim.deploy.registry import Registry
    from fedsim.deploy.site import Site

    site = Site.open(on or Path())
    if server:
        founding.renew(site, days)
        values = {"folder": str(on), "days": days}
        tell(values, f"a new server certificate for {days} days; a server that runs takes it up by itself", as_json)
        return
    if fingerprint is None:
        raise DeployError("give the fingerprint of the new key too, as the node's owner told it")
    found = Registry(site).rotate(name or "", requested(site, fingerprint, key))
    text = f"{found.name} has a new key; the old one has ended"
    _told(site, {"name": found.name, "number": found.number}, text, as_json)


def _rotate_own(folder: Path, as_json: bool) -> None:
    from fedsim.deploy import keys
    from fedsim.deploy.node.folder import NodeFolder

    node = NodeFolder.open(folder)
    public = keys.replace_key(folder)
    text = (
        f"a new key in {folder}, fingerprint {public.fingerprint}\n"
        f"send {folder / 'key.pub'} to the coordinator, who then runs\n"
        f"  fedsim deploy rotate {node.name} {public.fingerprint} --on SITE --key key.pub\n"
        "a node that runs goes on with the old key until then, and with the new one from then on"
    )
    tell({"folder": str(folder), "name": node.name, "fingerprint": public.fingerprint}, text, as_json)


def _told(site: "Site", values: dict[str, object], text: str, as_json: bool) -> None:
    """Say what was done, and what a running server made of it."""
    from fedsim.deploy.superlink import sync

    effect = sync(site)
    tell({**values, "effect": effect}, text + (f"; {effect}" if effect else ""), as_json)
