"""docs/compare.ipynb: what it shows is what happens."""

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "compare.ipynb"


def printed(cell: nbformat.NotebookNode) -> str:
    """Without numbers, which another processor may round otherwise, and without the spaces that align them."""
    text = "".join(each["text"] for each in cell.get("outputs", []) if each.get("name") == "stdout")
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", text))


def test_the_notebook_shows_what_it_prints(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    shown = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    ran = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(ran, timeout=240, kernel_name="python3", resources=place).execute()
    for before, after in zip(shown.cells, ran.cells, strict=True):
        assert printed(before) == printed(after)
    (findings,) = tmp_path.glob("comparisons/*/findings.json")
    verdicts = {each["candidate"]: each["difference"] for each in json.loads(findings.read_text())["candidates"]}
    assert verdicts["fedprox(0)"]["verdict"] == "identical" and verdicts["fedsgd"]["verdict"] == "worse"
