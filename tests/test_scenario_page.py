"""docs/scenario.md and the schema beside it: they are what the types say, and the schema takes what the types take."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsim.registry import from_file
from fedsim.scenario import Scenario
from fedsim.scenario_files import locate, shipped

ROOT = Path(__file__).resolve().parent.parent
jsonschema: Any = importlib.import_module("jsonschema")
SCHEMA = (ROOT / "docs/scenario.schema.json").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/scenario.md").read_text(encoding="utf-8")


def made(what: str) -> Any:
    """What the script makes of the types."""
    return from_file(f"scenario_page.py:{what}", ROOT / "benchmarks", "test")()


def test_the_files_are_those_of_the_types() -> None:
    """After a change: python benchmarks/scenario_page.py."""
    assert made("page") == PAGE
    assert made("schema") == SCHEMA


def test_every_key_stands_on_the_page() -> None:
    """As a row of its table, or as a table of its own."""
    for name in Scenario.model_fields:
        assert f"| `{name}` |" in PAGE or f"## [{name}]" in PAGE
    assert PAGE.count("\n## ") == len({line for line in PAGE.splitlines() if line.startswith("## ")})


@pytest.mark.parametrize("name", shipped())
def test_the_schema_takes_what_comes_along(name: str) -> None:
    jsonschema.validate(tomllib.loads(locate(name).read_text(encoding="utf-8")), json.loads(SCHEMA))


@pytest.mark.parametrize(
    "wrong",
    [{"rounsd": 3}, {"rounds": 0}, {"train": {"learning_rate": "fast", "batch_size": 1}}, {"engine": {"kind": "gpu"}}],
    ids=str,
)
def test_the_schema_refuses_what_a_scenario_refuses(wrong: dict[str, Any]) -> None:
    right = tomllib.loads(locate("quickstart").read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**right, **wrong}, json.loads(SCHEMA))
