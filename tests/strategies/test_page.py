"""docs/strategies.md: what a reader copies from it works, and what it says of names is so."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from fedsim import registry, rounds
from fedsim.algorithm import Algorithm, add_update, local_update
from fedsim.combiners import mean
from fedsim.data.corpus import Folders
from fedsim.job import prepare
from fedsim.new import create, create_strategy, strategy_advice
from fedsim.scenario import load, parse

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/strategies.md").read_text(encoding="utf-8")
LINES = PAGE.replace("\\\n", "").splitlines()
COMMANDS = [shlex.split(line) for line in LINES if line.startswith("    fedsim run ")]
TABLES = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
ALGORITHMS: dict[str, Algorithm] = {
    name: registry.find("fedsim.strategies", name, Path(), "strategy")()
    for name in registry.members("fedsim.strategies")
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with the page's strategy in its file."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.splitlines()) <= 25
    Path("vote.py").write_text(code)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[3:])[-40:])
def test_every_run_of_the_page_runs(command: list[str], place: Path) -> None:
    """For two rounds, in this process."""
    _, _, scenario, *options = command
    assert set(options[::2]) == {"--set"}
    short = [*options[1::2], "rounds=2", "engine.kind=inline"]
    result = rounds.run(load(scenario, short), out=place / "run")
    assert result.values["rounds"] == 2


def test_the_pages_strategy_learns(place: Path) -> None:
    plain = ["privacy={}", "train.learning_rate=1.0", "engine.kind=inline"]
    result = rounds.run(load("quickstart", [*plain, "rounds=20", "strategy.name=vote.py:vote"]), out=place / "run")
    assert result.values["metrics"]["global/central-test/rows/accuracy"] > 0.5


@pytest.mark.parametrize("text", TABLES, ids=lambda text: text.partition("]")[0][1:])
def test_every_table_of_the_page_goes_into_a_scenario(text: str, place: Path) -> None:
    (file,) = create(place / "mine.toml")
    scenario = parse({**tomllib.loads(file.read_text()), **tomllib.loads(text)}, place, "mine.toml")
    job = prepare(scenario, Folders.of(None, place))
    assert job.build_algorithm().name == "scaffold+trimmed-mean+fedavgm" or len(job.attackers) == 2


def test_what_new_prints_is_what_the_page_shows() -> None:
    files = create_strategy(Path("mine"))
    assert "\n".join([*map(str, files), *strategy_advice(Path("mine"))]) in PAGE


def test_the_page_names_every_strategy_that_lends_a_part() -> None:
    """Its combiner, or its server half."""
    combining = [name for name, each in ALGORITHMS.items() if each.combine is not mean]
    stepping = [
        name for name, each in ALGORITHMS.items() if each.client is local_update and each.server is not add_update
    ]
    text = " ".join(PAGE.split())
    assert f"does not combine by the mean: {', '.join(combining)}." in text
    assert f"whose server half stands alone: {', '.join(stepping)}." in text


def test_the_page_names_every_strategy_with_models_of_its_own_but_the_reference() -> None:
    own = {name for name, each in ALGORITHMS.items() if each.personalised} - {"local"}
    (named,) = re.findall(r"models of their own \((.*?)\)", PAGE)
    assert {name.lower() for name in named.split(", ")} == own


def test_the_benchmarks_place_is_marked_once() -> None:
    """`python benchmarks/strategies.py` writes between the two marks."""
    assert re.fullmatch(r".*<!-- results -->.*<!-- /results -->\n", PAGE, flags=re.DOTALL)
    assert PAGE.count("<!-- results -->") == PAGE.count("<!-- /results -->") == 1
