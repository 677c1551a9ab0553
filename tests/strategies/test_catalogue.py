"""What `fedsim list strategies` says of every file in `strategies/`, and that each one's command runs."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from fedsim import registry, rounds
from fedsim.catalogue import Strategy, command, listing
from fedsim.citations import paper
from fedsim.scenario import load

NAMES = registry.members("fedsim.strategies")
ENTRIES = {entry.name: entry for entry in listing("strategies") if isinstance(entry, Strategy)}
ROOT = Path(__file__).resolve().parent.parent.parent


def docstring(name: str) -> str:
    """What is above a strategy's code."""
    return ast.get_docstring(ast.parse((ROOT / "strategies" / f"{name.replace('-', '_')}.py").read_text())) or ""


@pytest.mark.parametrize("name", NAMES)
def test_a_strategys_docstring_gives_what_is_listed(name: str) -> None:
    """One sentence of what it changes; then the paper with its year; what is communicated; its private form."""
    summary, _, text = docstring(name).partition("\n\n")
    assert re.fullmatch(r"[A-Z0-9][^\n]*[^.\n]\.", summary), "one line, one sentence"
    text = " ".join(text.split())
    assert re.fullmatch(r'[^"]+ "[^"]+", [^"]*\d{4}', ENTRIES[name].paper), "names, title, place and year"
    assert text.startswith(ENTRIES[name].paper)
    assert "Communicates" in text
    assert re.search("Private at example level|No private form", text)
    assert ENTRIES[name].summary == summary


def test_the_year_is_not_read_from_an_arxiv_number() -> None:
    assert paper('One.\n\nHsu, "A\ntitle of 1999", arXiv 1909.06335, 2019, section 2: 2020.').endswith("06335, 2019")
    assert paper('One.\n\nSun, "Can it?", 2019, more') == 'Sun, "Can it?", 2019'
    assert paper("One.\n\nWithout a source, since 1900.") == paper("One.") == "-"


def test_a_command_is_the_docstrings_last_words_or_quickstart_without_privacy() -> None:
    own = "One.\n\nTry it: fedsim run mnist-mlp\n--set rounds=3"
    assert command(own, "any") == "fedsim run mnist-mlp --set rounds=3"
    assert command("One.", "any").endswith(" --set strategy.name=any")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_is_listed_runs(name: str, tmp_path: Path) -> None:
    """For two rounds, in this process; whoever reads the list can paste it."""
    fedsim, run, scenario, *options = shlex.split(ENTRIES[name].runs)
    assert (fedsim, run, set(options[::2])) == ("fedsim", "run", {"--set"})
    loaded = load(scenario, [*options[1::2], "rounds=2", "engine.kind=inline"])
    assert loaded.strategy.name.replace("_", "-") == name
    result = rounds.run(loaded, out=tmp_path / "run")
    assert result.values["rounds"] == 2
    assert result.values["metrics"]


def test_the_keys_that_are_listed_are_those_that_may_be_set() -> None:
    """What the platform fills in for one kind is a key of another: `pool` of a partition, `classes` of a model."""
    shown = {what: {entry.name: set(entry.parameters) for entry in listing(what)} for what in ("models", "data")}
    assert shown["models"]["lstm"] == {"preset", "width", "layers", "embedding", "pool"}
    assert {"classes", "vocabulary"} < shown["data"]["arrays"] and "folders" not in shown["data"]["arrays"]
    assert {entry.name: set(entry.parameters) for entry in listing("partitions")}["shards"] == {"clients", "shards"}
