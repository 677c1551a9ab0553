"""What a machine without a network installs: complete, hashed, licensed, and from the files alone."""

import csv
import errno
import hashlib
import os
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedsim.deploy import pack
from fedsim.errors import DeployError

UNSHARE = ["unshare", "--net"]
ABLE = shutil.which(UNSHARE[0]) and not subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode
WITHOUT_NETWORK = UNSHARE if ABLE else []


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fedsim's own wheel."""
    folder = tmp_path_factory.mktemp("pack") / "wheels"
    folder.mkdir()
    pack.build_own(folder)
    return folder


def test_all_that_a_package_needs_is_packed() -> None:
    """Whoever installs the pack cannot ask for more: every requirement is met by a version in it."""
    found = pack.closure("fedsim", ["media"])
    for name in found:
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                version = found[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version, prereleases=True), (name, text, version)
    assert {"fedsim", "torch", "flwr", "pillow"} <= found.keys()


def test_a_node_takes_neither_ray_nor_what_only_pictures_need() -> None:
    """Less to install is less to trust; what torch needs stays, also where Ray needs it too."""
    node, whole = pack.closure("fedsim", left_out=pack.NOT_ON_NODES), pack.closure("fedsim")
    assert whole.keys() >= node.keys() and not pack.NOT_ON_NODES & node.keys()
    assert "contourpy" in whole and "contourpy" not in node  # only matplotlib's
    assert {"filelock", "flwr", "opacus", "cryptography"} <= node.keys()


def test_a_package_that_is_missing_is_named() -> None:
    """A pack that lacks one would fail on the other machine, where it cannot be had."""
    with pytest.raises(DeployError, match="no-such-package is not installed here"):
        pack.closure("no-such-package")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half a pack would stand in the way of the next try, or be taken for one."""

    def full(versions: object, folder: Path) -> None:
        (folder / "a.whl").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack, "fetch", full)
    with pytest.raises(DeployError, match="cannot be written"):
        pack.pack(tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_an_installed_wheel_is_packed_as_it_was(wheels: Path, tmp_path: Path) -> None:
    """Where fedsim was installed from a wheel there is no source to build one from."""
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        before = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    (distribution,) = metadata.distributions(path=[str(tmp_path / "installed")])
    pack._zip_again(distribution, tmp_path)
    with zipfile.ZipFile(tmp_path / wheel.name) as archive:
        assert {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")} == before
        record = list(
            csv.reader(archive.read(next(n for n in archive.namelist() if n.endswith("RECORD"))).decode().split())
        )
    assert {row[0] for row in record if row[1]} == before.keys()


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([("License-Expression", "MIT"), ("License", "other"), ("Classifier", "License :: OSI Approved :: X")], "MIT"),
        ([("License", "BSD"), ("Classifier", "License :: OSI Approved :: X")], "BSD"),
        ([("License", "a long\ntext"), ("Classifier", "License :: OSI Approved :: ISC License")], "ISC License"),
        ([("Classifier", "Programming Language :: Python")], "see its files"),
    ],
)
def test_the_most_exact_word_for_a_licence_wins(headers: list[tuple[str, str]], told: str) -> None:
    """Packages say it in three fields, of which the newer ones are exact (PEP 639)."""
    assert pack.licence(headers) == told


def test_a_pack_installs_without_a_network(wheels: Path, tmp_path: Path) -> None:
    """The installer asks nobody: it runs where there is no network, or with an index that is not there."""
    folder = tmp_path / "pack"
    shutil.copytree(wheels, folder / "wheels")
    packed = [pack.described(wheel) for wheel in (folder / "wheels").iterdir()]
    pack.write(folder, packed, "0")
    (own,) = packed
    assert own.licence == "Apache-2.0" and (folder / "licences" / f"fedsim-{own.version}").is_dir()
    assert own.sha256 == hashlib.sha256((folder / "wheels" / own.file).read_bytes()).hexdigest()
    done = install(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "environment/bin/fedsim").is_file()
    with (folder / "wheels" / own.file).open("ab") as file:
        file.write(b"changed on the way")
    shutil.rmtree(tmp_path / "environment")
    done = install(folder, tmp_path)
    assert done.returncode != 0 and "hash" in done.stderr.lower(), done.stderr


def install(folder: Path, place: Path) -> "subprocess.CompletedProcess[str]":
    """What the installer of a pack says."""
    nowhere = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    command = [*WITHOUT_NETWORK, "sh", str(folder / "install.sh"), "environment"]
    return subprocess.run(command, cwd=place, env=nowhere, capture_output=True, text=True, check=False)


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("node", [True, False])
def test_a_whole_pack_runs_without_a_network(node: bool, tmp_path: Path) -> None:
    """With everything in it: the commands work, a simulation too where it is not for a node."""
    packed = pack.pack(tmp_path / "pack", node=node)
    assert {each.name for each in packed} >= {"fedsim", "torch", "flwr", "opacus"}
    done = install(tmp_path / "pack", tmp_path)
    assert done.returncode == 0, done.stderr
    fedsim = tmp_path / "environment/bin/fedsim"
    command = (
        [fedsim, "deploy", "--help"] if node else [fedsim, "run", "quickstart", "--fast-check", "--engine", "inline"]
    )
    done = subprocess.run(
        [*WITHOUT_NETWORK, *map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
