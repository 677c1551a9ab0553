"""What an owner keeps to himself: counts of rows, paths, and whatever else lies on the node's disk."""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.deploy.assignment import Assignment
from fedsim.deploy.described import Description, federation_of
from fedsim.deploy.node.work import scenario_of
from fedsim.deploy.replies import Expected
from fedsim.errors import Refused
from fedsim.job import prepare_on
from fedsim.local import Work
from fedsim.scenario import Scenario
from tests import small
from tests.deploy.node_messages import NUMBER, Played
from tests.deploy.test_node_handling import entries, metrics


def test_counts_that_an_owner_keeps_leave_nowhere(tmp_path: Path) -> None:
    """Neither in the description nor with a round; the coordinator goes by one row, and takes the update."""
    job = small.job({"strategy": {"name": "fedavg", "weights": "uniform"}, "evaluate.clients_every": 0})
    played = Played(job, tmp_path, rules="counts = false\nmetrics = false\n")
    asked = played.told(Message(RecordDict({"config": ConfigRecord({})}), NUMBER + 2, "query.describe"))
    content = played.ask(asked).content
    assert dict(content["metrics"]) == {"rows-train": 1, "rows-validation": 0, "rows-test": 0, "units": 1}
    said = [Description.of(content)] * job.federation.clients
    names = [str(number) for number in range(len(said))]
    known = federation_of(names, said, corpus="x", measured=True)
    work = Work(prepare_on(known, job.scenario))
    message = played.train(Work(job))
    reply = played.ask(message)
    assert metrics(reply).keys() == {"summed", "counter"}
    taken = Expected.of(work).content(message, NUMBER, reply)
    assert taken["metrics"]["num-examples"] == 1
    measured = played.ask(played.told(Message(message.content, NUMBER + 2, "evaluate")))
    assert "do not leave" in str(measured.error.reason)


def test_counts_that_a_run_needs_and_an_owner_keeps(tmp_path: Path) -> None:
    """It is refused before anything is loaded, at the first question."""
    played = Played(small.job(), tmp_path, rules="counts = false\nmetrics = false\n")
    asked = played.told(Message(RecordDict({"config": ConfigRecord({})}), NUMBER + 2, "query.describe"))
    assert "rules.toml counts: the owner lets no counts" in str(played.ask(asked).error.reason)


@pytest.mark.parametrize("named", ["/etc", "../rows", "mine", "m" * 300, "a/b/c", "~/x", ""])
def test_a_models_folder_of_this_machine_is_not_loaded(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies on the node's disk is nobody else's; names of the hub's models are let in."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    model = {"name": "hugging-face", "pretrained": named}

    def asked() -> Scenario:
        scenario = small.scenario({"model": model})
        return scenario_of(Assignment(scenario.to_toml()), tmp_path / "none", ready_made=True)

    with pytest.raises(Refused, match=r"its model\.pretrained"):
        asked()
    model["pretrained"] = "google/bert_uncased_L-2_H-128_A-2"
    assert asked().model.settings == {"pretrained": model["pretrained"]}


def test_what_is_wrong_at_the_node_is_told_without_its_paths(tmp_path: Path) -> None:
    """Where an owner keeps what is nobody else's business; its own log has the whole line."""
    played = Played(small.job(), tmp_path)
    (played.folder / "rules.toml").write_text("largest = 1")
    reason = str(played.ask(played.train(Work(played.job))).error.reason)
    assert "rules.toml cannot be read" in reason and str(played.folder) not in reason
    assert "largest is not known" in entries(played, "failed")[0]["why"]


@pytest.mark.parametrize("broken", ["replies", "states", "pending"])
def test_what_cannot_be_written_is_told_without_its_paths(broken: str, tmp_path: Path) -> None:
    """The owner's log has them."""
    sources = {"mine.py": "x = 1\n"} if broken == "pending" else {}
    played = Played(small.job({"strategy.name": "scaffold"}), tmp_path, sources=sources)
    (played.folder / broken).write_text("no folder")
    reason = str(played.ask(played.train(Work(played.job))).error.reason)
    assert str(tmp_path) not in reason and "owner" in reason
    assert broken in entries(played, "failed")[0]["why"]
