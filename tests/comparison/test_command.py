"""`fedsim compare`: its short form, its files, and what it prints."""

import json
from pathlib import Path

import pytest

from fedsim.commands import comparing
from fedsim.errors import ScenarioError
from tests.test_cli import Command, fedsim  # noqa: F401

SHORT = ("--seeds", "2", "--set", "rounds=1", "--no-references")


def test_the_short_form_runs_and_goes_on(fedsim: Command) -> None:  # noqa: F811
    varied = ("--vary", "strategy.name=fedavg,fedprox", *SHORT)
    first = fedsim("compare", "small.toml", *varied, "--json")
    assert first.status == 0, first.err
    found = json.loads(first.out)
    assert [run["candidate"] for run in found["runs"]] == ["fedavg", "fedprox"] * 2
    again = fedsim("compare", "small.toml", *varied, "--latex", "table.tex", "--figures", "drawn", "--format", "svg")
    assert again.status == 0, again.err
    assert "1/4" not in again.out, "nothing is run again"
    assert all(len(line) <= 80 for line in again.out.splitlines())
    (folder,) = Path("comparisons").iterdir()
    assert str(folder / "compare.html") in again.out
    assert "booktabs" in Path("table.tex").read_text()
    assert list(Path("drawn").glob("*.svg"))
    there = fedsim("compare", str(folder), "--json")
    assert json.loads(there.out)["runs"] == found["runs"]
    runs = fedsim("compare", *(run["folder"] for run in found["runs"]))
    assert runs.status == 0
    assert "fedprox" in runs.out


def test_a_file_and_a_dry_run(fedsim: Command) -> None:  # noqa: F811
    text = 'base = "small.toml"\nseeds = 3\nreferences = []\n[vary]\n"train.learning_rate" = [0.1, 0.2]\n'
    Path("both.toml").write_text(text, encoding="utf-8")
    found = fedsim("compare", "both.toml", "--dry-run", "--json")
    assert found.status == 0, found.err
    assert [(each["candidate"], each["runs"]) for each in json.loads(found.out)["candidates"]] == [
        ("learning_rate=0.1", 3),
        ("learning_rate=0.2", 3),
    ]
    assert not Path("comparisons").exists()


def test_one_candidate_is_told_to_be_the_only_one(fedsim: Command) -> None:  # noqa: F811
    """Before its runs, and in what they came to."""
    assert "note: fedavg is the only candidate" in fedsim("compare", "small.toml", "--dry-run").out
    found = fedsim("compare", "small.toml", "--seeds", "1", "--set", "rounds=1", "--no-references")
    assert found.status == 0, found.err
    assert "There is one candidate, fedavg, and nothing to compare it with." in found.out
    assert "is the only candidate" not in fedsim("compare", "small.toml", "--vary", "rounds=1,2", "--dry-run").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vary", "strategy.nam=fedavg"), "small.toml: varied strategy.nam=fedavg: strategy.nam is not known"),
        (("--vary", "data.partition.alhpa=1"), "varied data.partition.alhpa=1: data.partition"),
        (("--vary", "strategy.name"), "write it as key=a,b,c"),
        (("--vary", "strategy.name=fedavg,fedprx"), "varied strategy.name=fedprx: strategy.name"),
        (("--seeds", "some"), "--seeds some"),
        (("--target", "accuracy"), "METRIC>=VALUE"),
        (("--budget", "fast"), "write it as 8h"),
        (("--format", "gif"), "--format gif"),
        (("other.toml",), "small.toml is no run folder; give run folders alone, or one comparison or scenario"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(fedsim: Command, arguments: tuple[str, ...], message: str) -> None:  # noqa: F811
    found = fedsim("compare", "small.toml", *arguments)
    assert found.status == 2
    assert message in found.err
    assert len(found.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400)])
def test_budgets_have_units(text: str, seconds: float) -> None:
    assert comparing._seconds(text) == seconds


@pytest.mark.parametrize("text", ["8", "h", "8 hours and more", "-3m"])
def test_budgets_without_units_are_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="write it as"):
        comparing._seconds(text)
