"""Names and keys of a scenario find functions and parameters; mistakes are answered with the nearest."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from fedsim import registry
from fedsim.errors import ModelError, ScenarioError


def example(
    count: int,
    *,
    rate: float = 0.5,
    kind: Literal["soft", "hard"] = "soft",
    folders: str = "",
    sizes: tuple[int, ...] = (),
) -> None: ...


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


@pytest.mark.parametrize(
    "given",
    [{"count": "3"}, {"count": 3.0}, {"count": True}, {"count": 3, "rate": "0.5"}, {"count": 3, "sizes": [1.0]}],
)
def test_no_other_type_is_taken_for_the_annotated_one(given: dict[str, Any]) -> None:
    """As everywhere else in a scenario."""
    with pytest.raises(ScenarioError, match=rf"^table\.{list(given)[-1]} = "):
        registry.bind(example, given, "table")


def test_a_list_may_be_a_tuple_which_toml_lacks() -> None:
    assert registry.bind(example, {"count": 3, "sizes": [1, 2]}, "table")["sizes"] == (1, 2)


def test_a_typo_may_have_meant_a_key_of_the_platform() -> None:
    own = ("name", "min_rows", "partition")
    with pytest.raises(ScenarioError, match=r"data\.min_row is not known\. Did you mean min_rows\?"):
        registry.bind(lambda: None, {"min_row": 3}, "data", own=own)
    with pytest.raises(ScenarioError, match=r"table\.zzz is not known\. It takes no keys\."):
        registry.bind(lambda: None, {"zzz": 3}, "table")


def test_a_type_that_cannot_be_resolved_is_one_line() -> None:
    def broken(count: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ScenarioError, match=r"^table: a parameter's type cannot be resolved: NameError"):
        registry.bind(broken, {}, "table")


def test_errors_of_a_called_function_name_the_table() -> None:
    def fails(error: BaseException) -> None:
        raise error

    with pytest.raises(ScenarioError, match="model net: no such size"):
        registry.call(fails, "model net", error=ValueError("no such size"))
    for error, message in ((KeyError("size"), "KeyError: 'size'"), (SystemExit(3), "SystemExit: 3")):
        with pytest.raises(ScenarioError, match=f"^model net: {message}$"):
            registry.call(fails, "model net", error=error)
    with pytest.raises(ModelError, match=r"^kept$"):
        registry.call(fails, "model net", error=ModelError("kept"))


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    """Loaded by location and content, never through sys.path; an edited file is loaded again."""
    for folder, number in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"def value(): return {number}\n")
    assert [registry.from_file("mine.py:value", tmp_path / name, "model")() for name in ("one", "two")] == [1, 2]
    (tmp_path / "one/mine.py").write_text("def value(): return 3\n")
    assert registry.from_file("mine.py:value", tmp_path / "one", "model")() == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py:Net", "there is no file"),
        ("mine.py:", "should be file.py:name"),
        ("mine.py:Nett", "defines no 'Nett'. Did you mean Net?"),
        ("mine.py:qqqqq", "defines no 'qqqqq'. Known: Net, five."),
        ("broken.py:Net", "cannot be imported: SyntaxError"),
        ("raising.py:Net", "cannot be imported: ZeroDivisionError"),
        ("leaving.py:Net", "cannot be imported: SystemExit: 3"),
        ("mine.py:five", "'mine.py:five' is of type int; name a function or class"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_one_line(reference: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("five = 5\nclass Net: ...\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "broken.py").write_text("class Net(\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    with pytest.raises(ScenarioError) as refused:
        registry.from_file(reference, tmp_path, "model.name")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
