"""docs/bring-your-own.md and docs/notebook.ipynb: what they show is what happens."""

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

import fedsim
from fedsim.checking import check, check_lines
from fedsim.scenario import load

DOCS = Path(__file__).resolve().parent.parent / "docs"


def plain(text: str) -> list[str]:
    """Lines without numbers, which another processor may round otherwise."""
    return re.sub(r"[-+]?\d[\d.]*", "#", text).split("\n")


def test_the_page_shows_what_its_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "bring-your-own.md").read_text()
    shown, python, toml, *_ = re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(python)
    (tmp_path / "waves.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    command, found = shown.partition("\n")[0], check_lines(check("waves.toml"))
    assert command == "$ fedsim check waves.toml"
    assert plain(shown.partition("\n")[2].rstrip("\n")) == plain("\n".join(found))
    values = fedsim.run(load("waves.toml", ["engine.kind=inline"])).values
    assert values["headline"]["metric"] == "global/central-test/rows/fast-precision"
    assert values["headline"]["value"] > 0.6  # one in three by chance


def test_the_notebook_runs_on_ray_and_its_run_keeps_the_cells(tmp_path: Path) -> None:
    shown = nbformat.read(DOCS / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    ran = nbformat.read(DOCS / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(ran, timeout=240, kernel_name="python3", resources=place).execute()
    for before, after in zip(shown.cells, ran.cells, strict=True):
        printed = [
            "".join(each["text"] for each in cell.get("outputs", []) if each.get("name") == "stdout")
            for cell in (before, after)
        ]
        assert plain(printed[0]) == plain(printed[1])
    run = next((tmp_path / "runs").iterdir())
    cells = {cell.source for cell in ran.cells if cell.cell_type == "code"}
    kept = {path.name: path.read_text().rstrip("\n") for path in (run / "sources").iterdir()}
    assert set(kept) == {"cell-Net.py", "cell-scans.py", "cell-smoothed.py"} and set(kept.values()) < cells
    made = json.loads((run / "environment.json").read_text())
    assert made["origins"]["__main__:brightened"] == "cell-smoothed.py"
    assert made["model"] == "__main__:Net" and made["data"] == "__main__:scans"
