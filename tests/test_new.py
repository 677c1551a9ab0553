"""`fedsim new`: what it writes can be run, and nothing is overwritten."""

from pathlib import Path

import pytest
import torch

from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.job import prepare
from fedsim.new import create
from fedsim.scenario import Scenario, load


def test_the_commented_scenario_fits_together(tmp_path: Path) -> None:
    (file,) = create(tmp_path / "mine.toml")
    job = prepare(load(str(file)), Folders.of(None, tmp_path))
    assert job.federation.clients == 10


def test_the_commented_scenario_explains_every_table(tmp_path: Path) -> None:
    """Every table of a scenario appears, in use or as a comment, so the file is a reference too."""
    (file,) = create(tmp_path / "mine.toml")
    written = {line.lstrip("# ").partition("]")[0] for line in file.read_text().splitlines() if "[" in line[:3]}
    tables = {f"[{name}" for name, field in Scenario.model_fields.items() if hasattr(field.annotation, "model_fields")}
    assert tables - {"[privacy"} <= written
    assert "[privacy.example" in written


def test_what_is_switched_off_can_be_switched_on(tmp_path: Path) -> None:
    """The lines of [privacy.example], without their comment signs, make a private scenario."""
    (file,) = create(tmp_path / "mine.toml")
    lines = file.read_text().splitlines()
    start = lines.index("# [privacy.example]")
    private = [line.removeprefix("# ") if start <= n < start + 4 else line for n, line in enumerate(lines)]
    file.write_text("\n".join(private))
    advised = ["train.batch_size=128", "train.learning_rate=2.0", "cohort.fraction=1.0"]
    job = prepare(load(str(file), advised), Folders.of(None, tmp_path))
    assert job.privacy is not None


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
