"""Texts that keep a server or a node running: systemd units and a compose file.

Written once, by `init` and `join`, for their reader to look at and install; they hold nothing secret.
"""

import json
import os
import pwd
import sys
from pathlib import Path

_HARDENED = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={folder}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
"""

_UNIT = """\
# {title}. To install it:
#   sudo cp {file} /etc/systemd/system/
#   sudo systemctl daemon-reload && sudo systemctl enable --now {name}
{note}[Unit]
Description={title}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
ExecStart={command}
User={user}
WorkingDirectory={folder}
Restart=on-failure
RestartSec=10
KillMode=mixed
TimeoutStopSec=60
{hardened}{devices}
[Install]
WantedBy=multi-user.target
"""

_RUNS = """\
# The server writes run folders, and may write into ReadWritePaths alone: add the folder of your runs to it, or give
# `fedsim deploy run` an --out inside of it.
"""

_COMPOSE = """\
# {title} in a container. The image is yours: one with fedsim, of the version that the other side has{besides},
# which runs as an ordinary user; name it when you start:
#   FEDSIM_IMAGE=registry.example/fedsim:1 docker compose -f {file} up --detach
services:
  {service}:
    image: ${{FEDSIM_IMAGE:?name an image that has fedsim}}
    command: {command}
    user: "{uid}:{gid}"
    environment: {{HOME: /tmp}}
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: on-failure
    stop_grace_period: 60s
    volumes:
{volumes}{ports}"""


def server_texts(folder: Path, port: int) -> dict[str, str]:
    """The files of a site, by their place in it.

    Args:
        folder: of the site, absolute.
        port: at which nodes call.
    """
    file = folder / "systemd/fedsim-server.service"
    unit = _unit(
        "fedsim server",
        file,
        ["deploy", "server", str(folder)],
        folder,
        capabilities=" ".join(
            f"CAP_{each}" for each in [*_proxys_rights(), *(["NET_BIND_SERVICE"] if port < 1024 else [])]
        ),
        devices="PrivateDevices=yes\n",
        note=_RUNS,
    )
    compose = _compose(
        "A fedsim server",
        folder / "compose.yaml",
        "server",
        ["fedsim", "deploy", "server", "/site"],
        {folder: ("/site", False)},
        port,
    )
    return {"systemd/fedsim-server.service": unit, "compose.yaml": compose}


def node_texts(folder: Path, data: Path | None) -> dict[str, str]:
    """The files of a node, by their place in its folder.

    Args:
        folder: of the node, absolute.
        data: where its rows lie; a place to be filled in where that is not known yet.
    """
    rows = data or Path("/path/of/the/data")
    unit = _unit(
        "fedsim node",
        folder / "systemd/fedsim-node.service",
        ["deploy", "node", str(folder), "--data", str(rows)],
        folder,
    )
    compose = _compose(
        "A fedsim node",
        folder / "compose.yaml",
        "node",
        ["fedsim", "deploy", "node", "/node", "--data", "/data"],
        {folder: ("/node", False), rows: ("/data", True)},
        None,
    )
    return {"systemd/fedsim-node.service": unit, "compose.yaml": compose}


def _proxys_rights() -> list[str]:
    """Root's nginx gives its workers a user, if the same one; an ordinary user's does without any right."""
    return ["SETUID", "SETGID"] if os.geteuid() == 0 else []


def _unit(
    title: str,
    file: Path,
    arguments: list[str],
    folder: Path,
    *,
    capabilities: str = "",
    devices: str = "",
    note: str = "",
) -> str:
    program = Path(sys.executable).parent / "fedsim"
    return _UNIT.format(
        title=title,
        file=file,
        name=file.name,
        command=" ".join(_quoted(word.replace("$", "$$")) for word in (str(program), *arguments)),
        user=_user(),
        folder=_quoted_path(folder),
        hardened=_HARDENED.format(capabilities=capabilities, folder=_quoted(str(folder))),
        devices=devices,
        note=note,
    )


def _compose(
    title: str,
    file: Path,
    service: str,
    command: list[str],
    mounts: dict[Path, tuple[str, bool]],
    port: int | None,
) -> str:
    volumes = "".join(
        f"      - {{type: bind, source: {_yaml(str(source))}, target: {target}, read_only: {str(fixed).lower()}}}\n"
        for source, (target, fixed) in mounts.items()
    )
    return _COMPOSE.format(
        title=title,
        file=file,
        service=service,
        besides=" and nginx" if port is not None else "",
        command=json.dumps(command),
        uid=os.geteuid(),
        gid=os.getegid(),
        volumes=volumes,
        ports=f'    ports: ["{port}:{port}"]\n    cap_add: {json.dumps(_proxys_rights())}\n'
        if port is not None
        else "",
    )


def _user() -> str:
    """Whose processes they are; a container's user may have no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _quoted(word: str) -> str:
    """A word of a systemd unit: `%` is its own sign, in a command `$` too (systemd.service, "Command lines")."""
    plain = word.replace("%", "%%")
    if not any(sign in plain for sign in " \t\"'\\"):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted_path(path: Path) -> str:
    """A single path of a unit, which systemd takes whole, blanks included."""
    return str(path).replace("%", "%%")


def _yaml(text: str) -> str:
    """A text that YAML and compose read as it is: JSON is YAML, and compose's own sign is `$`."""
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)
