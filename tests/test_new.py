"""`fedsim new`: what it writes can be run, and nothing is overwritten."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.job import prepare
from fedsim.local import Received, Work
from fedsim.new import create, create_strategy
from fedsim.scenario import Scenario, load


def test_the_commented_scenario_fits_together(tmp_path: Path) -> None:
    (file,) = create(tmp_path / "mine.toml")
    job = prepare(load(str(file)), Folders.of(None, tmp_path))
    assert job.federation.clients == 10


def test_the_commented_scenario_explains_every_table(tmp_path: Path) -> None:
    """Every table of a scenario appears, in use or as a comment, so the file is a reference too."""
    (file,) = create(tmp_path / "mine.toml")
    written = {line.lstrip("# ").partition("]")[0] for line in file.read_text().splitlines() if "[" in line[:3]}
    types = {name: [each.annotation, *get_args(each.annotation)] for name, each in Scenario.model_fields.items()}
    tables = {f"[{name}" for name, found in types.items() if any(hasattr(each, "model_fields") for each in found)}
    assert "[adversary" in tables
    assert tables - {"[privacy"} <= written
    assert "[privacy.example" in written


@pytest.mark.parametrize("table", ["train", "cohort", "evaluate", "stop", "engine", "checkpoint", "records"])
def test_the_commented_scenario_explains_every_key(table: str, tmp_path: Path) -> None:
    (file,) = create(tmp_path / "mine.toml")
    below = file.read_text().partition(f"\n[{table}]")[2].partition("\n[")[0]
    keys = set(getattr(Scenario.model_fields[table].annotation, "model_fields"))  # noqa: B009 - mypy sees a plain type
    assert not {key for key in keys if key not in below}


def switched_on(file: Path, first: str, count: int) -> None:
    """Take the comment signs from the line that begins so, and from those after it."""
    lines = file.read_text().splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"# {first}"))
    on = [line.removeprefix("# ") if start <= number < start + count else line for number, line in enumerate(lines)]
    file.write_text("\n".join(on))


def test_what_is_switched_off_can_be_switched_on(tmp_path: Path) -> None:
    """The lines of [privacy.example], without their comment signs, make a private scenario."""
    (file,) = create(tmp_path / "mine.toml")
    switched_on(file, "[privacy.example]", 4)
    advised = ["train.batch_size=128", "train.learning_rate=2.0", "cohort.fraction=1.0"]
    job = prepare(load(str(file), advised), Folders.of(None, tmp_path))
    assert job.privacy is not None


def test_attackers_and_another_strategys_parts_can_be_switched_on(tmp_path: Path) -> None:
    """So can [adversary] and the two parts that another strategy may lend."""
    (file,) = create(tmp_path / "mine.toml")
    switched_on(file, "[adversary]", 4)
    switched_on(file, "combine", 2)
    job = prepare(load(str(file)), Folders.of(None, tmp_path))
    assert len(job.attackers) == 2
    assert job.build_algorithm().name == "fedavg+median+fedadam"


def test_the_folder_has_a_model_and_data_that_fit(tmp_path: Path) -> None:
    """Every client's rows go through the model that the scenario names."""
    files = create(tmp_path / "own", folder=True)
    assert [file.name for file in files] == ["README.md", "data.py", "model.py", "scenario.toml"]
    job = prepare(load(str(tmp_path / "own/scenario.toml")), Folders.of(None, tmp_path / "own"))
    rows = torch.from_numpy(job.federation.rows(0, "train").x)
    assert job.build_model()(rows).shape == (len(rows), 2)
    assert len(job.federation.x) + sum(len(part.x) for part in job.federation.central.values()) == 1200


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_overwritten(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    with pytest.raises(ScenarioError, match="exists already"):
        create(path, folder=folder)
    assert path.read_text() == "precious"


def test_a_scenario_needs_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"mine\.toml"):
        create(tmp_path / "mine")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be written: No such file or directory"):
        create(tmp_path / "absent/mine.toml")


def test_the_strategys_own_test_passes_in_seconds(tmp_path: Path) -> None:
    """As a user would run it, outside this project and its settings; also named like one of fedsim's own."""
    files = create_strategy(tmp_path / "fedavg")
    assert [file.name for file in files] == ["fedavg.py", "test_fedavg.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fedavg.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_the_strategy_may_have_the_templates_name(tmp_path: Path) -> None:
    files = create_strategy(tmp_path / "my_strategy")
    assert [file.name for file in files] == ["my_strategy.py", "test_my_strategy.py"]


@pytest.mark.parametrize(
    "settings",
    [
        ["privacy.example={noise_multiplier=1.0,delta=1e-3,max_grad_norm=1.0}"],
        ["train.optimizer=adam", "train.learning_rate=0.01"],
        ["strategy.weights=uniform", "strategy.combine={name='median'}", "strategy.server={name='fedadam'}"],
    ],
    ids=["privacy", "optimiser", "parts"],
)
def test_the_strategy_goes_with_all_that_it_declares(tmp_path: Path, settings: list[str]) -> None:
    create_strategy(tmp_path / "mine")
    (file,) = create(tmp_path / "mine.toml")
    job = prepare(load(str(file), ["strategy.name=mine.py:mine", *settings]), Folders.of(None, tmp_path))
    work = Work(job)
    start = job.build_algorithm().start(work.initial.vector, job.federation.clients)
    assert work.train(0, 1, Received(work.initial, start.shared), None).state["kept"].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-strategy", "give the name of a Python function"),
        ("class", "give the name of a Python function"),
        ("2nd", "give the name of a Python function"),
        ("mine.py", "give the name of a Python function"),
        ("zeros", "the strategy itself uses this word"),
        ("random", "random.py would hide the Python package 'random'"),
        ("torch", "torch.py would hide the Python package 'torch'"),
        ("absent/mine", "cannot be written: No such file or directory"),
        ("m" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_name_that_does_not_do_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        create_strategy(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_neither_of_a_strategys_two_files_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(ScenarioError, match=f"{there} exists already"):
        create_strategy(tmp_path / "mine")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(there, "precious")]
