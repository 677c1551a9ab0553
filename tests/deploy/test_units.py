"""The texts that keep servers and nodes running, read by those for whom they are written: systemd and YAML."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.deploy import units

PLAIN = [Path("/srv/fedsim"), Path("/srv/with blank/100% $HOME"), Path('/srv/a"quote')]


def all_texts(folder: Path) -> dict[str, str]:
    return {**units.server_texts(folder, 8443), **units.node_texts(folder, Path("/srv/rows"))}


@pytest.mark.parametrize("folder", PLAIN, ids=str)
def test_systemd_takes_the_units(folder: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed; it is systemd's own word on a unit")
    for name, text in all_texts(folder).items():
        if name.endswith(".service"):
            (tmp_path / Path(name).name).write_text(text)
    files = sorted(tmp_path.glob("*.service"))
    assert [file.name for file in files] == ["fedsim-node.service", "fedsim-server.service"]
    done = subprocess.run([analyze, "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "fedsim-" in line and "not executable" not in line]
    assert ours == []
    (tmp_path / "fedsim-node.service").write_text(files[0].read_text().replace("RestartSec=10", "RestartSec=ten"))
    wrong = subprocess.run([analyze, "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    assert "Failed to parse" in wrong.stderr  # it does look


def test_a_unit_may_write_its_own_folder_alone() -> None:
    for name, text in all_texts(Path("/srv/fedsim")).items():
        if name.endswith(".service"):
            lines = text.splitlines()
            for line in ("ProtectSystem=strict", "ReadWritePaths=/srv/fedsim", "NoNewPrivileges=yes", "PrivateTmp=yes"):
                assert line in lines
            assert "Restart=on-failure" in lines


def test_a_dollar_sign_is_one_in_a_path_and_two_in_a_command() -> None:
    """systemd puts variables into commands, and into nothing else."""
    unit = units.server_texts(Path("/srv/a$b"), 8443)["systemd/fedsim-server.service"].splitlines()
    assert "ReadWritePaths=/srv/a$b" in unit and "WorkingDirectory=/srv/a$b" in unit
    assert any(line.startswith("ExecStart=") and line.endswith("deploy server /srv/a$$b") for line in unit)


@pytest.mark.parametrize(("user", "rights"), [(0, "CAP_SETUID CAP_SETGID"), (1000, "")])
def test_an_ordinary_users_server_has_no_right_of_root(user: int, rights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's nginx must be able to give its workers a user; nothing else is left to either."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("fl", "x", user, user, "", "/", "/bin/sh")))
    unit = units.server_texts(Path("/srv/fedsim"), 8443)["systemd/fedsim-server.service"]
    assert f"CapabilityBoundingSet={rights}" in unit.splitlines()
    node = units.node_texts(Path("/srv/node"), None)["systemd/fedsim-node.service"]
    assert "CapabilityBoundingSet=" in node.splitlines() and "User=fl" in node.splitlines()


def test_a_port_of_the_system_needs_one_right_more() -> None:
    texts = units.server_texts(Path("/srv/fedsim"), 443)
    lines = texts["systemd/fedsim-server.service"].splitlines()
    assert any(line.startswith("AmbientCapabilities=") and "CAP_NET_BIND_SERVICE" in line for line in lines)


def test_a_user_without_a_name_is_known_by_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such run containers."""
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    assert "User=4000000" in units.node_texts(Path("/srv/node"), None)["systemd/fedsim-node.service"].splitlines()


def fit(name: str) -> bool:
    """A site's folder may be called so (private_files.new_folder)."""
    return name.isprintable() and name not in (".", "..")


@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=20).filter(fit))
@settings(max_examples=50, deadline=None)
def test_compose_mounts_the_folder_whatever_it_is_called(name: str) -> None:
    """Compose reads YAML, then `$`; so does this."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    folder = Path("/srv") / name
    server = yaml.safe_load(units.server_texts(folder, 8443)["compose.yaml"])["services"]["server"]
    node = yaml.safe_load(units.node_texts(folder, Path("/srv/rows"))["compose.yaml"])["services"]["node"]
    for service, target in ((server, "/site"), (node, "/node")):
        mount = service["volumes"][0]
        assert mount["source"].replace("$$", "$") == str(folder)
        assert mount["target"] == target and mount["read_only"] is False
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True
        assert service["command"][:2] == ["fedsim", "deploy"]
    assert server["ports"] == ["8443:8443"] and "ports" not in node
    assert node["volumes"][1] == {"type": "bind", "source": "/srv/rows", "target": "/data", "read_only": True}


def test_docker_reads_the_compose_files(tmp_path: Path) -> None:
    """Where it is installed."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    for texts in (units.server_texts(tmp_path, 8443), units.node_texts(tmp_path, tmp_path)):
        (tmp_path / "compose.yaml").write_text(texts["compose.yaml"])
        command = [docker, "compose", "-f", str(tmp_path / "compose.yaml"), "config", "--quiet"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={"FEDSIM_IMAGE": "fedsim:1", "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
