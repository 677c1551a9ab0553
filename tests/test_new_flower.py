"""`fedsim new --flower`: the app it writes is one that Flower takes, under its name."""

import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.job import prepare
from fedsim.new import create_app
from fedsim.scenario import load
from tests.apps.superlink import environment, superlink

INSTALLED = cache(packages_distributions)
FILES = [
    "README.md",
    "pyproject.toml",
    "my_trial/__init__.py",
    "my_trial/client_app.py",
    "my_trial/server_app.py",
    "my_trial/task.py",
]


def test_every_file_has_the_apps_name(tmp_path: Path) -> None:
    files = create_app(tmp_path / "My-trial")
    assert [str(file.relative_to(tmp_path / "My-trial")) for file in files] == FILES
    text = "".join(file.read_text() for file in files)
    assert "my_app" not in text and "my-app" not in text
    assert tomllib.loads(files[1].read_text())["project"]["name"] == "My-trial"


def test_the_components_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """Imported from the app's folder by a process that has neither fedsim's folder nor ours on its path."""
    create_app(tmp_path / "trial")
    program = "from trial import client_app, server_app; print(type(client_app.app).__name__, server_app.app)"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {program}"]
    done = subprocess.run(command, cwd=tmp_path / "trial", capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ClientApp <flwr.serverapp"), done.stderr


def test_flower_builds_it(tmp_path: Path) -> None:
    """The bundle has all that the app consists of; Flower's own check of names and tables is passed."""
    create_app(tmp_path / "my-trial")
    home = tmp_path / "home"
    home.mkdir()
    command = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(tmp_path / "my-trial")]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" not in done.stdout
    (bundle,) = home.glob("*.my-trial.1-0-0.*.fab")
    assert set(FILES) <= set(zipfile.ZipFile(bundle).namelist())


@settings(deadline=None)  # the first looks at what is installed
@given(name=st.text(st.sampled_from("ab1-_.äZ "), min_size=1, max_size=34))
def test_a_name_is_taken_as_flower_and_python_take_it(name: str) -> None:
    """The rule of Flower's `build`, and pip's: no hyphen at the end."""
    plain = name.isascii() and all(letter.isalnum() or letter == "-" for letter in name)
    taken = plain and name[0].isalpha() and len(name) <= 32 and not name.endswith("-")
    package = name.lower().replace("-", "_")
    hides = package in INSTALLED() or package in sys.stdlib_module_names
    expected = "cannot be written" if taken and not hides else r"Flower's names of apps|it would hide"
    with patch("fedsim.new.packages_distributions", INSTALLED), pytest.raises(ScenarioError, match=expected):
        create_app(Path(__file__) / name)  # in a file, so that it cannot be written


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_app", "letters, digits and hyphens"),
        ("Torch", "hide the Python package 'torch'"),
        ("fedsim", "hide the Python package 'fedsim'"),
        ("queue", "hide the Python package 'queue'"),
        ("class", "class is a word of Python"),
        ("env", "flwr build leaves out folders called env"),
    ],
)
def test_a_name_that_does_not_do_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        create_app(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ScenarioError, match="exists already"):
        create_app(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_scenario_that_the_page_shows_takes_its_net(tmp_path: Path) -> None:
    """docs/from-flower.md goes on from this app to a scenario beside it."""
    page = (Path(__file__).resolve().parents[1] / "docs/from-flower.md").read_text()
    create_app(tmp_path / "my-app")
    scenario = tmp_path / "my-app/scenario.toml"
    scenario.write_text(page.partition("```toml\n")[2].partition("```")[0])
    job = prepare(load(str(scenario)), Folders.of(None, scenario.parent))
    assert job.federation.clients == 10
    assert type(job.build_model()).__name__ == "Net"
    assert job.build_algorithm().name == "flower:FedAvg"


@pytest.mark.proof
def test_it_runs_under_flwr_run(tmp_path: Path) -> None:
    """As its README says, through a SuperLink, without a network."""
    create_app(tmp_path / "trial")
    with superlink(tmp_path / "home") as link:
        nodes = "num-supernodes=3 client-resources-num-cpus=1"
        said = link.flwr("run", tmp_path / "trial", "--stream", "--federation-config", nodes, cwd=tmp_path)
    assert "[ROUND 3/3]" in said and "0 failures" in said
    assert said.count("Received 3 results and 0 failures") == 6
