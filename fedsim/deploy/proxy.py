"""nginx in front of the SuperLink: of all that Flower listens for, the Fleet API alone can be reached from outside.

Flower's Control API, which starts runs and lets nodes in, shares the SuperLink's port and asks nobody who they are. So
the SuperLink listens on this machine only, and nginx passes on POST requests below /v1/fleet/, in the form in which it
compared them: a path that leads elsewhere in another spelling is refused like any other. Every path of the
configuration is relative to the site's folder, so nginx needs no rights but those of the user who started it.
"""

import importlib.metadata
import json
import os
import pwd
import shutil

from fedsim.deploy import private_files
from fedsim.deploy.site import Site, bracketed, flower_environment
from fedsim.errors import DeployError

BODY_MEGABYTES = 16
"""Of one request. A model travels in pieces of 5 MiB at most, however large it is; 5,243,876 bytes were measured."""
RATE, BURST, WITHOUT_DELAY = 200, 4000, 1000
"""Requests a second from one address; how many more are let through or wait before one is refused; and how many of
these are let through at once. Measured with Flower 1.42: a node asks 12 times in 30 s while it waits, 18 times for a
message and its reply, twice more for every 5 MiB of the model, and at most 10 times within half a second."""
CONNECTIONS = 256
"""From one address at a time; a node holds three at most, measured likewise."""

_TEMPLATE = """\
# Written by fedsim at each start of the server; change site.toml instead.
daemon off;
{user}pid nginx/nginx.pid;
worker_processes auto;
worker_rlimit_nofile 4096;
error_log logs/proxy-error.log warn;
events {{ worker_connections 2048; }}
http {{
    server_tokens off;
    default_type text/plain;
    client_body_temp_path nginx/body;
    proxy_temp_path nginx/proxy;
    fastcgi_temp_path nginx/fastcgi;
    uwsgi_temp_path nginx/uwsgi;
    scgi_temp_path nginx/scgi;

    # What was refused or failed, without headers: those of a node hold a signature.
    map $status $refused {{ default 0; "~^[45]" 1; }}
    log_format refused '$time_iso8601 $remote_addr "$request_method $uri" $status $request_length bytes';
    access_log logs/refused.log refused if=$refused;

    # Nodes of another Flower than this server's; Flower itself only warns.
    map $http_flwr_package_version $sound {{ default 0; "~^{version}([.]|$)" 1; }}

    limit_req_zone $binary_remote_addr zone=requests:10m rate={rate}r/s;
    limit_conn_zone $binary_remote_addr zone=connections:10m;
    limit_req_status 503;
    limit_conn_status 503;

    client_header_timeout 20s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    reset_timedout_connection on;
    client_max_body_size {body}m;
    large_client_header_buffers 4 8k;

    ssl_certificate tls/server.crt;
    ssl_certificate_key tls/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
    ssl_session_cache shared:sessions:2m;
    ssl_session_tickets off;

    server {{
{listen}
        location / {{ return 403; }}
        location = /v1/fleet {{ return 403; }}
        location /v1/fleet/ {{
            limit_except POST {{ deny all; }}
            limit_req zone=requests burst={burst} delay={delay};
            limit_conn connections {connections};
            default_type application/json;
            if ($sound = 0) {{ return 426 '{other}'; }}

            proxy_pass https://127.0.0.1:{superlink}/v1/fleet/;
            proxy_ssl_trusted_certificate ca/ca.crt;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_http_version 1.1;
            proxy_set_header Host localhost;
            proxy_set_header Connection "";
            proxy_connect_timeout 5s;
            proxy_send_timeout 60s;
            proxy_read_timeout 120s;
        }}
    }}
}}
"""


def configuration(site: Site) -> str:
    """The text of nginx.conf."""
    version = ".".join(importlib.metadata.version("flwr").split(".")[:2])
    other = {
        "code": 1001,
        "detail": f"this server runs Flower {version}; the node has another version",
        "extra": f"install the fedsim that the coordinator has, and flwr {version}",
    }
    return _TEMPLATE.format(
        user=_user(site),
        version=version.replace(".", "[.]"),
        other=json.dumps(other),
        listen="\n".join(f"        listen {bracketed(address)}:{site.port} ssl;" for address in site.listen),
        superlink=site.superlink_port,
        rate=RATE,
        burst=BURST,
        delay=WITHOUT_DELAY,
        connections=CONNECTIONS,
        body=BODY_MEGABYTES,
    )


def write(site: Site) -> None:
    """Write nginx.conf as the site's settings have it now, and the folders that it names."""
    private_files.folder(site.nginx)
    private_files.folder(site.logs)
    private_files.replace(site.nginx_conf, configuration(site).encode())


def command(site: Site) -> list[str]:
    """The program and its arguments; it stays in the foreground.

    Raises:
        DeployError: nginx is not installed.
    """
    program = shutil.which("nginx", path=flower_environment(site.flower_home)["PATH"])
    if program is None:
        raise DeployError("nginx is not installed; install it, on Debian and Ubuntu with `apt install nginx`")
    return [program, "-p", f"{site.folder}/", "-c", "nginx.conf", "-e", "logs/proxy-error.log"]


def _user(site: Site) -> str:
    """Root's nginx would give its workers to `nobody`, who cannot open the site; they are the owner's instead."""
    if os.geteuid() != 0:
        return ""
    owner = site.folder.stat().st_uid if site.folder.exists() else 0
    try:
        return f"user {pwd.getpwuid(owner).pw_name};\n"
    except KeyError as error:
        raise DeployError(
            f"{site.folder} belongs to user {owner}, whom this machine does not know; start the server as that user"
        ) from error
