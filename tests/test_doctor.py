"""The doctor's findings, on this machine and on folders made for it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import doctor
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.digits import digits
from fedsim.doctor import Finding, examine
from fedsim.errors import FedsimError
from fedsim.registry import members


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """Findings with an empty data folder and an empty home, by name."""
    folder = tmp_path_factory.mktemp("bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FEDSIM_DATA", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        return {finding.name: finding for finding in examine(folder / "data")}


def test_what_is_amiss_comes_with_a_remedy(bare: dict[str, Finding]) -> None:
    """And what is well does not."""
    assert all((finding.state == "ok") == (finding.remedy == "") for finding in bare.values())


def test_the_machine_that_runs_the_tests_can_run_fedsim(bare: dict[str, Finding]) -> None:
    wanted = {"Python", "torch", "ray", "flwr", "opacus", "GPU", "cores", "memory", "shared memory", "disk"}
    assert wanted <= set(bare)
    assert bare["Python"].found.startswith(platform.python_version())
    assert [finding for finding in bare.values() if finding.state == "missing"] == []


def test_every_data_set_is_looked_for(bare: dict[str, Finding]) -> None:
    """Sources that read what the scenario names have nothing to be looked for."""
    looked_for = {name.removeprefix("data: ") for name in bare if name.startswith("data: ")}
    named = {"arrays", "audio", "csv", "hugging-face", "images", "labelled-text", "npz"}
    assert looked_for == set(members("fedsim.data.sources")) - named


def test_an_absent_data_set_says_where_to_put_it(bare: dict[str, Finding], tmp_path: Path) -> None:
    mnist = bare["data: mnist"]
    assert mnist.state == "warning"
    assert "train-images-idx3-ubyte" in mnist.remedy and str(Path("data") / "mnist") in mnist.remedy
    assert bare["data: digits"].found == "1,797 rows"


def test_a_data_set_that_is_there_is_found(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone in its folder: to read them all takes long."""
    monkeypatch.delenv("FEDSIM_DATA")
    (tmp_path / "mnist").symlink_to(data_dir / "mnist")
    findings = {finding.name: finding for finding in examine(tmp_path)}
    assert findings["data: mnist"] == Finding("data: mnist", "ok", "70,000 rows")
    assert findings["data: fsdd"].state == "warning" and "recordings.zip not found" in findings["data: fsdd"].remedy


def test_a_package_that_only_a_data_set_needs_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is that set's finding."""

    def without(folders: Folders) -> Corpus:
        raise FedsimError("data set 'cartpole' needs gymnasium: pip install 'fedsim[rl]'")

    monkeypatch.setattr(doctor, "members", lambda package: ["cartpole", "digits"])
    monkeypatch.setattr(doctor, "find", lambda package, name, *rest: without if name == "cartpole" else digits)
    findings = {finding.name: finding for finding in examine()}
    assert findings["data: cartpole"].remedy.endswith("pip install 'fedsim[rl]'")
    assert findings["data: digits"].state == "ok"


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    """Metadata of a wrong version found first, as after a careless upgrade."""
    wrong = tmp_path / "flwr-9.9.0.dist-info"
    wrong.mkdir()
    (wrong / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 9.9.0\n")
    program = "from fedsim.doctor import examine; print(*[finding for finding in examine() if finding.name == 'flwr'])"
    environment = {name: value for name, value in os.environ.items() if name != "FEDSIM_DATA"}
    environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "state='warning'" in done.stdout and "9.9.0, tested with <1.43,>=1.41" in done.stdout
