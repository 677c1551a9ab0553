"""A node reads rows in ways that its owner has checked: nobody chooses another one to learn of single rows."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.deploy.node import checked, log
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.handling import Node, version
from fedsim.deploy.node.holding import check
from fedsim.deploy.node.review import approve, approved
from fedsim.deploy.node.work import scenario_of
from fedsim.deploy.submission import deployable
from fedsim.errors import DeployError, Refused
from fedsim.grid import begin_run, stamp
from fedsim.scenario import Scenario, load, parse
from tests.deploy.node_messages import RUN, bundle
from tests.deploy.owners import node_folder
from tests.deploy.test_holding import HEADER, SCHEMA, rows, study, written


@pytest.fixture
def home(tmp_path: Path) -> NodeFolder:
    """A node."""
    return node_folder(tmp_path / "node", "smallest_cohort = 1\n")


def refused(home: NodeFolder, changes: dict[str, Any]) -> str:
    """What a coordinator is told."""
    with pytest.raises(Refused) as error:
        checked.require(home, study(changes))
    return str(error.value)


OTHER: dict[str, dict[str, Any]] = {
    "rows that lack a value": {"data.schema": {**SCHEMA, "sex": {**SCHEMA["sex"], "missing": ["m"], "rule": "drop"}}},
    "a range": {"data.schema": {**SCHEMA, "age": {**SCHEMA["age"], "range": [0, 100]}}},
    "the order of columns": {"data.schema": dict(reversed(SCHEMA.items()))},
    "the split": {"data.split": {"train": 0.5, "validation": 0.25, "test": 0.25}},
    "fewest rows": {"data.min_rows": 7},
    "scales": {"data.preprocess": {"kind": "per-client"}},
    "a setting": {"data.delimiter": ";"},
}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_another_way_is_another_check(home: NodeFolder, changes: dict[str, Any]) -> None:
    """Each of these gives other counts, or tells by not fitting, whether there are such rows."""
    checked.accept(home, study())
    checked.require(home, study())
    assert "has not checked how this scenario's table data reads rows" in refused(home, changes)


TURNED = "def turned(x: object) -> object:\n    return x\n"


def test_own_code_that_reads_rows_is_checked_by_its_content(home: NodeFolder, tmp_path: Path) -> None:
    """As it waits for the check, once it was approved; another content is another way, and another approval."""
    file = written(tmp_path / "rows.csv", HEADER, rows())
    home.books()[0].close()  # as of a node that was asked before

    def sent(text: str) -> Scenario:
        (tmp_path / "mine.py").write_text(text)
        asked = deployable(study({"data.transform": "mine.py:turned"}, tmp_path)).assignment
        (tmp_path / "mine.py").unlink()
        with pytest.raises(Refused, match="not approved"):
            approved(home, asked)
        approve(home, asked.sources_digest)
        return scenario_of(asked, approved(home, asked), ready_made=False)

    first = sent(TURNED)
    with pytest.raises(Refused, match="has not checked"):
        checked.require(home, first)
    (waiting,) = home.asked.iterdir()
    again = load(str(waiting))
    assert check(file, again) == []
    checked.accept(home, again)
    checked.require(home, first)
    assert not list(home.asked.iterdir())
    with pytest.raises(Refused, match="has not checked"):
        checked.require(home, sent(TURNED.replace("return x", "return x[:, :1]")))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"rounds": 9},
        {"data.path": "elsewhere.csv"},
        {"data.partition": {"kind": "iid", "clients": 3}},
        {"data.split.central": 0.0},
        {"model": {"name": "linear"}},
        {"strategy.name": "scaffold"},
    ],
    ids=str,
)
def test_what_does_not_say_how_rows_are_read(home: NodeFolder, changes: dict[str, Any]) -> None:
    """One check does for all runs of a study."""
    checked.accept(home, study())
    checked.require(home, study(changes))


def test_what_a_coordinator_sends_is_what_was_checked(home: NodeFolder, tmp_path: Path) -> None:
    """The scenario as it is resolved for nodes, through TOML, reads rows as the owner's own file does."""
    checked.accept(home, study({"data.path": "here.csv", "data.delimiter": ","}))
    sent = scenario_of(deployable(study({"data.delimiter": ","})).assignment, tmp_path, ready_made=False)
    checked.require(home, sent)
    (tmp_path / "again.toml").write_text(sent.to_toml())
    checked.require(home, load(str(tmp_path / "again.toml")))


def test_what_waits_can_be_checked_as_it_lies_there(home: NodeFolder) -> None:
    """The refusal names the file; it is gone once it was checked, and many fill no disk."""
    told = refused(home, {})
    (file,) = home.asked.iterdir()
    assert f"--check DIR/asked/{file.name}" in told
    checked.accept(home, load(str(file)))
    checked.require(home, study())
    assert not list(home.asked.iterdir())
    assert [entry["kind"] for entry in log.entries(home.log_file)] == ["checked"]
    for number in range(checked.MOST_ASKED + 5):
        refused(home, {"data.min_rows": 10 + number})
    assert len(list(home.asked.iterdir())) == checked.MOST_ASKED
    for least, told in ((99, "others wait"), (10, "does with `fedsim deploy node")):
        assert told in refused(home, {"data.min_rows": least})


def test_rows_are_checked_before_the_node_ever_ran(home: NodeFolder) -> None:
    """A check is a node's first entry; its books can be opened after it, and a ledger that is lost then is missed."""
    checked.accept(home, study())
    ledger, _ = home.books()
    assert ledger.counter == 0
    home.ledger_file.unlink()
    with pytest.raises(DeployError, match=r"ledger\.db is gone"):
        checked.accept(home, study({"data.min_rows": 7}))


def test_a_node_does_not_read_its_rows_otherwise(
    home: NodeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the node's own handling: the loader is not called, and what is asked is answered once it was checked."""
    asked = deployable(study()).assignment
    fab, file = bundle(asked, tmp_path / "app"), written(tmp_path / "rows.csv", HEADER, rows())
    config: dict[str, Any] = {
        "assignment": asked.digest,
        "run": RUN,
        "number": 0,
        "clients": 2,
        "counter": 0,
        "fedsim": version("fedsim"),
    }
    begin_run()
    calls: list[object] = []
    message = Message(RecordDict({"config": ConfigRecord(config)}), 2, "query.describe")
    stamp(message, "a message")
    node = Node.open(home.folder, file)
    with monkeypatch.context() as patched:
        patched.setattr("fedsim.deploy.node.holding.load", lambda *given: calls.append(given))
        reply = node.answer(message, fab).reply
    assert "has not checked" in str(reply.error.reason) and not calls
    checked.accept(home, parse(study().model_dump(exclude_none=True), Path(), "own"))
    reply = node.answer(message, fab).reply
    assert not reply.has_error(), reply.error
