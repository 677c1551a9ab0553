"""What a comparison's file and its short form mean: candidates, conditions, cells, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.comparison import written
from fedsim.comparison.plan import Comparison
from fedsim.errors import ScenarioError
from tests import small

FEDPROX = {"strategy.name": "fedprox", "strategy.mu": 0.1}


def plan(tmp_path: Path = Path(), **content: Any) -> Comparison:
    base = content.pop("base", small.scenario())
    return written.parse({"base": base, "seeds": 2, "references": [], **content}, tmp_path, "mine")


def names(comparison: Comparison) -> list[str]:
    return [each.name for each in comparison.candidates]


def test_keys_of_the_problem_make_conditions_and_others_candidates() -> None:
    vary = {"strategy.name": ["fedavg", "fedprox"], "data.partition.alpha": [0.5, 5.0], "train.learning_rate": [0.1]}
    found = plan(vary=vary)
    assert names(found) == ["fedavg, learning_rate=0.1", "fedprox, learning_rate=0.1"]
    assert [each.name for each in found.conditions] == ["alpha=0.5", "alpha=5"]
    for cell in found.cells():
        assert cell.scenario.data.partition["alpha"] == float(cell.condition.removeprefix("alpha="))
        assert cell.scenario.strategy.name == cell.candidate.split(",")[0]
        assert cell.scenario.seed == cell.seed


def test_cells_are_all_combinations_seed_by_seed_in_folders_of_their_own() -> None:
    found = plan(vary={"strategy.name": ["fedavg", "fedprox"]}, references=["local"], seeds=[7, 3])
    assert [(cell.seed, cell.candidate) for cell in found.cells()] == [
        (seed, name) for seed in (7, 3) for name in ("fedavg", "fedprox", "reference: local")
    ]
    assert len({cell.folder for cell in found.cells()}) == 6
    assert found.cells()[0].folder == Path("runs/fedavg/seed-7")


def test_values_together_change_in_step() -> None:
    found = plan(together=[{"train.learning_rate": [0.1, 0.2], "train.batch_size": [16, 64]}])
    pairs = {(cell.scenario.train.learning_rate, cell.scenario.train.batch_size) for cell in found.cells()}
    assert pairs == {(0.1, 16), (0.2, 64)}


def test_candidates_are_multiplied_with_what_varies() -> None:
    candidates = [{"name": "plain"}, {"name": "prox", "set": FEDPROX}]
    found = plan(candidate=candidates, vary={"train.batch_size": [16, 32]})
    assert names(found) == [
        "plain, batch_size=16",
        "plain, batch_size=32",
        "prox, batch_size=16",
        "prox, batch_size=32",
    ]
    assert found.reference == "plain, batch_size=16"


def test_another_strategy_does_not_inherit_parameters() -> None:
    base = small.scenario({**FEDPROX, "strategy.combine": {"name": "median"}})
    found = plan(base=base, vary={"strategy.name": ["fedprox", "fedavg"]})
    tables = {cell.candidate: cell.scenario.strategy for cell in found.cells()}
    assert tables["fedprox"].settings == {"mu": 0.1}
    assert tables["fedavg"].settings == {}
    assert all(table.combine is not None and table.combine.name == "median" for table in tables.values())


def test_the_resolved_file_says_the_same_wherever_it_lies(tmp_path: Path) -> None:
    found = plan(
        candidate=[
            {"name": "plain"},
            {"name": "prox", "set": FEDPROX, "tune": {"strategy.mu": {"low": 0.1, "high": 1.0}}},
        ],
        vary={"data.partition.alpha": [0.5, 5.0]},
        references=["local", "central"],
        target={"metric": "global/central-validation/rows/accuracy", "at_least": 0.5},
        tune={"trials": 3},
        metric="global/central-test/rows/accuracy",
        leave_one_out=True,
    ).counted({"alpha=0.5": 2, "alpha=5": 2})
    (tmp_path / "comparison.toml").write_text(found.to_toml(), encoding="utf-8")
    again = written.load(tmp_path)
    assert again.digest == found.digest
    assert [(cell.folder, cell.candidate, cell.scenario.to_toml()) for cell in again.cells()] == [
        (cell.folder, cell.candidate, cell.scenario.to_toml()) for cell in found.cells()
    ]


def test_the_digest_is_of_what_decides_results() -> None:
    same: dict[str, Any] = {"candidate": [{"name": "a"}, {"name": "b", "set": {"train.learning_rate": 0.1}}]}
    first = plan(**same).digest
    assert plan(**same, title="Another title").digest == first
    workers = small.scenario({"engine": {"kind": "ray", "workers": 1}})
    assert plan(**same, base=workers).digest == first
    for other in ({"seeds": 3}, {"references": ["local"]}, {"base": small.scenario({"rounds": 4})}, {"reference": "b"}):
        assert plan(**{**same, **other}).digest != first


def test_own_files_are_part_of_the_digest(tmp_path: Path) -> None:
    digests = []
    for text in (small.PICKY, f"{small.PICKY}\n"):
        (tmp_path / "net.py").write_text(text, encoding="utf-8")
        base = small.scenario({"model": {"name": "net.py:Picky", "above": 1e9}}, tmp_path)
        digests.append(plan(tmp_path, base=base, vary={"train.learning_rate": [0.1, 0.2]}).digest)
    assert digests[0] != digests[1]


def test_private_references_promise_nothing() -> None:
    changes = {**small.PRIVATE, "privacy.without": {"train.learning_rate": 0.05}}
    found = plan(base=small.scenario(changes), references=["local"])
    private, alone = found.cells()[:2]
    assert private.scenario.privacy.level == "example"
    assert private.scenario.privacy.without is None
    assert (alone.scenario.privacy.level, alone.scenario.train.learning_rate) == (None, 0.05)
    assert alone.scenario.strategy.name == "local"


def test_without_one_client_there_is_a_run_for_each() -> None:
    found = plan(leave_one_out=True, vary={"strategy.name": ["fedavg", "fedprox"]})
    assert len(found.cells()) == 4
    counted = found.counted({"": 3})
    left = [cell for cell in counted.cells() if cell.candidate.startswith("without client")]
    assert [cell.scenario.data.without for cell in left] == [[0], [1], [2]] * 2
    assert all(cell.scenario.strategy.name == "fedavg" for cell in left)
    assert counted.digest == found.digest


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(-99, 99), st.booleans(), st.text("abz-", min_size=2, max_size=5)), min_size=1))
def test_lists_of_the_command_line_are_those_of_the_file(values: list[Any]) -> None:
    text = ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
    assert written.varied([f"strategy.name={text}"]) == {"strategy.name": values}


def test_commas_in_brackets_and_quotes_part_nothing() -> None:
    found = written.varied(
        ["model.hidden=[16, 8],[32]", 'model.name="a,b",c', "data.partition={kind='iid', clients=2}"]
    )
    assert found == {
        "model.hidden": [[16, 8], [32]],
        "model.name": ["a,b", "c"],
        "data.partition": [{"kind": "iid", "clients": 2}],
    }


REFUSED = [
    ({"vary": {"seed": [1, 2]}}, r"seed cannot be varied"),
    ({"vary": {"engine.kind": ["ray"]}}, r"engine.kind cannot be varied"),
    ({"vary": {"train.learning_rate": []}}, r"train.learning_rate has no values"),
    ({"vary": {"train.learning_rate": [0.1, 0.1]}}, r"a value twice"),
    ({"together": [{"train.learning_rate": [0.1], "train.batch_size": [8, 16]}]}, r"as many values for each"),
    ({"together": [{"data.min_rows": [1], "train.batch_size": [8]}]}, r"part them"),
    ({"candidate": [{"name": "a"}, {"name": "a", "set": FEDPROX}]}, r"two candidates are called 'a'"),
    ({"candidate": [{"name": "a"}, {"name": "b"}]}, r"the same settings"),
    ({"candidate": [{"name": "a", "set": {"data.min_rows": 3}}]}, r"\[vary\] or a \[\[condition\]\]"),
    ({"candidate": [{"name": "reference: x"}]}, r"such names"),
    ({"condition": [{"name": "a", "set": {"train.batch_size": 3}}]}, r"belongs to a candidate"),
    ({"candidate": [{"name": "a", "set": FEDPROX}], "vary": {"strategy.mu": [1.0]}}, r"'a' sets strategy.mu"),
    ({"reference": "fedprox"}, r"reference = 'fedprox': there is no such candidate"),
    ({"references": ["locla"]}, r"references: there is no strategy 'locla'. Did you mean local\?"),
    ({"seeds": [1, 1]}, r"seeds: 1 is there twice"),
    ({"seeds": []}, r"seeds: give at least one"),
    ({"seeds": 0}, r"mine: seeds: give a number from 1"),
    ({"seeds": "some"}, r"mine: seeds: give a number from 1"),
    ({"seeds": [1, -1]}, r"mine: seeds: .* or a list of whole numbers from 0"),
    ({"base": 3}, r"mine: base: give a scenario's name or file"),
    ({"seeds": 3, "tune": {"seeds": [3]}}, r"tune.seeds: 3 is one of seeds"),
    ({"target": {"metric": "x"}}, r"give at_least or at_most"),
    ({"vari": {}}, r"vari is not known. Did you mean vary\?"),
    ({"candidate": [{"name": "a", "sett": {}}]}, r"candidate.0.sett is not known. Did you mean set\?"),
    ({"vary": {"train.learning_rat": [0.1, 0.2]}}, r"varied train.learning_rat=0.1: train.learning_rat is not known"),
    ({"vary": {"train.learning_rate": [0.1, -1.0]}}, r"varied train.learning_rate=-1: train.learning_rate = -1.0"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_wrong_is_said_with_its_key(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as error:
        plan(**content)
    assert str(error.value).startswith("mine")


def test_a_file_names_its_base_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(small.scenario().to_toml(), encoding="utf-8")
    (tmp_path / "both.toml").write_text('base = "mine.toml"\nseeds = 1\n[vary]\n"rounds" = [1, 2]\n', encoding="utf-8")
    found = written.load(tmp_path / "both.toml", {"seeds": 3}, ["train.batch_size=8"])
    assert (found.name, found.seeds) == ("both", (1, 2, 3))
    assert {cell.scenario.train.batch_size for cell in found.cells()} == {8}
    assert written.is_comparison(str(tmp_path / "both.toml"))
    assert not written.is_comparison(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["a" * 300, "ä/ö", "..", "x y=1"])
def test_folders_are_parts_of_paths_that_every_system_takes(name: str) -> None:
    found = plan(candidate=[{"name": name}, {"name": f"{name}!", "set": FEDPROX}])
    folders = {cell.folder.parent for cell in found.cells()}
    assert len(folders) == 2
    for folder in folders:
        assert folder.parent == Path("runs")
        assert 0 < len(folder.name) < 100
        assert folder.name not in (".", "..")
        assert folder.name.isascii()


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    whole, together = (part.split("```")[0] for part in page.split("```toml")[1:3])
    (tmp_path / "comparison.toml").write_text(whole, encoding="utf-8")
    found = written.load(tmp_path)
    assert (found.name, found.seeds) == ("quickstart", (1, 2, 3, 4, 5))
    assert [each.name for each in found.conditions] == ["small clients, alpha=0.1", "small clients, alpha=1"]
    assert len(found.cells()) == 5 * 2 * (2 + 3)
    (tmp_path / "steps.toml").write_text(f'base = "quickstart"\n{together}', encoding="utf-8")
    assert [len(each.settings) for each in written.load(tmp_path / "steps.toml").candidates] == [2, 2]
