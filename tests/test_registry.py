"""Names and keys of a scenario find functions and parameters; mistakes are answered with the nearest."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from fedsim import registry
from fedsim.errors import ModelError, ScenarioError


def example(count: int, *, rate: float = 0.5, kind: Literal["soft", "hard"] = "soft", folders: str = "") -> None: ...


def test_members_are_the_public_files_of_a_package() -> None:
    files = {path.stem.replace("_", "-") for path in (Path(registry.__file__).parent / "models").glob("[!_]*.py")}
    assert set(registry.members("fedsim.models")) == files


@pytest.mark.parametrize("name", ["python-source", "python_source"])
def test_dashes_and_underscores_are_the_same(name: str) -> None:
    assert registry.find("fedsim.data.sources", name, Path(), "data.name").__name__ == "python_source"


def test_the_nearest_name_is_offered_or_all_are() -> None:
    assert registry.nearest("fedavgg", ["fedavg", "ditto"]) == " Did you mean fedavg?"
    assert registry.nearest("zzz", ["fedavg", "ditto"]) == " Known: ditto, fedavg."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cuont": 1}, r"table\.cuont is not known\. Did you mean count\?"),
        ({"count": "many"}, r"table\.count = 'many'"),
        ({"count": 1, "kind": "odd"}, r"table\.kind = 'odd'.*'soft' or 'hard'"),
        ({}, r"table\.count is missing"),
        ({"count": 1, "folders": "x"}, r"table\.folders is not known"),
    ],
)
def test_keys_are_checked_against_parameters(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        registry.bind(example, given, "table", reserved=("folders",))


def test_values_become_what_the_annotation_says() -> None:
    assert registry.bind(example, {"count": 3, "rate": 1}, "table") == {"count": 3, "rate": 1.0}
    assert registry.bind(partial(example, 3), {"rate": 2}, "table") == {"rate": 2.0}


def test_errors_of_a_called_function_name_the_table() -> None:
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(ScenarioError, match="model net: no such size"):
        registry.call(fails, "model net", error=ValueError("no such size"))
    with pytest.raises(ModelError, match=r"^kept$"):
        registry.call(fails, "model net", error=ModelError("kept"))


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    """Loaded by location and content, never through sys.path; an edited file is loaded again."""
    for folder, number in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"value = {number}\n")
    assert [registry.from_file("mine.py:value", tmp_path / name, "model") for name in ("one", "two")] == [1, 2]
    (tmp_path / "one/mine.py").write_text("value = 3\n")
    assert registry.from_file("mine.py:value", tmp_path / "one", "model") == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py:Net", "there is no file"),
        ("mine.py:", "should be file.py:name"),
        ("mine.py:Nett", "defines no 'Nett'. Did you mean Net?"),
        ("broken.py:Net", "cannot be imported: SyntaxError"),
        ("raising.py:Net", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_one_line(reference: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Net: ...\n")
    (tmp_path / "broken.py").write_text("class Net(\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    with pytest.raises(ScenarioError) as refused:
        registry.from_file(reference, tmp_path, "model.name")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
