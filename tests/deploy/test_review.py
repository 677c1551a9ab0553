"""Own code of coordinators at a node: approved letter by letter, shown without tricks, never run by showing it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import review
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.log import entries
from fedsim.errors import DeployError, Refused
from tests.deploy.owners import node_folder

CODE = "def net():\n    return 1\n\n\ndef a():\n    return 2\n\n\ndef b():\n    return 3\n"
SCENARIO = 'title = "A study"\nrounds = 1\n'


def asked(*, scenario: str = SCENARIO, **sources: str) -> Assignment:
    """An assignment with these files."""
    return Assignment(scenario, {f"{name}.py": text for name, text in sources.items()})


@pytest.fixture
def home(tmp_path: Path) -> NodeFolder:
    """A node."""
    return node_folder(tmp_path / "node")


def refused(home: NodeFolder, assignment: Assignment) -> str:
    """What a coordinator is told."""
    with pytest.raises(Refused) as error:
        review.approved(home, assignment)
    return str(error.value)


def test_approved_once_and_then_found(home: NodeFolder) -> None:
    """Refused until the owner approves it; then the files lie there, to the letter, for whatever scenario."""
    code = asked(mine=CODE)
    assert "mine.py) is not approved" in refused(home, code)
    assert "mine.py) is not approved" in refused(home, code)
    waiting = review.pending(home)
    assert [(each.digest, each.title, each.sources) for each in waiting] == [
        (code.sources_digest, "A study", code.sources)
    ]
    assert review.approve(home, code.sources_digest[:8]).digest == code.sources_digest
    assert review.pending(home) == [] and [each.digest for each in review.decided(home)] == [code.sources_digest]
    folder = review.approved(home, code)
    assert (folder / "mine.py").read_text() == CODE
    assert review.approved(home, asked(scenario="rounds = 2\n", mine=CODE)) == folder
    assert [entry["kind"] for entry in entries(home.log_file)] == ["approved"]
    assert json.loads(home.log_file.read_text())["code"] == code.sources_digest


@pytest.mark.parametrize(
    "other",
    [{"mine": CODE + " "}, {"mine": CODE, "more": ""}, {"other": CODE}, {"mine": CODE.replace("3", "4")}],
    ids=["space", "file", "name", "letter"],
)
def test_anything_else_is_not_approved(home: NodeFolder, other: dict[str, str]) -> None:
    """An approval is of all files together, by name and letter."""
    code = asked(mine=CODE)
    refused(home, code)
    review.approve(home, code.sources_digest)
    assert "is not approved" in refused(home, asked(**other))


def test_a_file_that_was_changed_at_the_node(home: NodeFolder) -> None:
    """What lies there must still be what was approved."""
    code = asked(mine=CODE)
    refused(home, code)
    review.approve(home, code.sources_digest)
    file = review.approved(home, code) / "mine.py"
    file.write_text(CODE + "import os\n")
    assert "were changed at the node" in refused(home, code)
    file.unlink()
    assert "were changed at the node" in refused(home, code)


def test_rejected_code_waits_again_when_it_is_sent_again(home: NodeFolder) -> None:
    """A rejection is no ban; it is logged."""
    code = asked(mine=CODE)
    refused(home, code)
    review.reject(home, code.sources_digest)
    assert review.pending(home) == []
    assert "is not approved" in refused(home, code)
    assert len(review.pending(home)) == 1
    assert [entry["kind"] for entry in entries(home.log_file)] == ["rejected"]
    review.approve(home, code.sources_digest)
    review.approved(home, code)
    review.reject(home, code.sources_digest)  # takes the approval back
    assert "is not approved" in refused(home, code)


def test_what_differs_from_the_last_approved(home: NodeFolder) -> None:
    """The first time all of it is shown, later what changed, with plus and minus."""
    code = asked(mine=CODE, kept="x = 1\n")
    refused(home, code)
    shown = list(review.lines(home, code.sources_digest))
    assert "nothing was approved before" in shown
    assert [line[1:] for line in shown if line.startswith("+")] == ["x = 1", "", *CODE.split("\n")]
    review.approve(home, code.sources_digest)

    later = asked(mine=CODE.replace("return 3", "return 4"), kept="x = 1\n", new="y = 2")
    refused(home, later)
    shown = list(review.lines(home, later.sources_digest))
    assert {line for line in shown if line[:1] in "+-" and line} == {"-    return 3", "+    return 4", "+y = 2"}
    assert "kept.py: as it was approved" in shown and "new.py: new" in shown and "mine.py: changed" in shown
    gone = asked(mine=CODE)
    refused(home, gone)
    assert "kept.py: gone" in list(review.lines(home, gone.sources_digest))


def test_no_sign_hides_another(home: NodeFolder) -> None:
    """Escape codes could colour a line away, and signs of right-to-left scripts could turn it round."""
    code = asked(mine="ok = 1\x1b[2K\x1b[1A\rbad = 2  # \u202e\u2066 x\n", **{"od\x1b[31md": "y"})
    refused(home, code)
    text = "\n".join(review.lines(home, code.sources_digest))
    assert "\x1b" not in text and "\u202e" not in text and "\r" not in text
    assert "\\x1b[2K\\x1b[1A\\rbad = 2  # \\u202e\\u2066 x" in text


def test_showing_runs_nothing(home: NodeFolder, tmp_path: Path) -> None:
    """Code that would write a file when it is imported, compiled into a name, or read as a template."""
    mark = tmp_path / "ran"
    code = asked(mine=f"open({str(mark)!r}, 'w')\n")
    refused(home, code)
    list(review.lines(home, code.sources_digest))
    review.approve(home, code.sources_digest)
    review.approved(home, code)
    assert not mark.exists()


def test_a_source_outside_its_folder(home: NodeFolder) -> None:
    """Such names never come out of an app; still they would not be written."""
    for name in ("../out.py", "/tmp/out.py", "a/../../../../out.py"):
        with pytest.raises(Refused):
            review.approved(home, Assignment(SCENARIO, {name: "x"}))
    assert not list(home.folder.rglob("out.py")) and review.pending(home) == []


def test_a_coordinator_that_sends_ever_new_code(home: NodeFolder) -> None:
    """It fills no disk: no more than so many wait."""
    for number in range(review.MOST_PENDING):
        refused(home, asked(mine=f"x = {number}"))
    assert "none more is kept" in refused(home, asked(mine="x = 99"))
    assert len(review.pending(home)) == review.MOST_PENDING


def test_digests_that_name_none_or_many(home: NodeFolder) -> None:
    """One line that lists what waits."""
    with pytest.raises(DeployError, match="no code begins with 'abc'; there is none"):
        review.approve(home, "abc")
    refused(home, asked(mine="1"))
    refused(home, asked(mine="2"))
    with pytest.raises(DeployError, match="there are "):
        review.approve(home, "xyz")
    with pytest.raises(DeployError, match="several codes begin with ''"):
        review.approve(home, "")


def test_a_damaged_one_can_only_be_rejected(home: NodeFolder) -> None:
    """What cannot be read cannot be approved."""
    code = asked(mine=CODE)
    refused(home, code)
    (home.pending / code.sources_digest / "about.json").write_text("{")
    with pytest.raises(DeployError, match="is damaged"):
        review.approve(home, code.sources_digest)
    review.reject(home, code.sources_digest)
    assert review.pending(home) == []


def test_files_that_are_no_utf8_text_in_every_way(home: NodeFolder) -> None:
    """Line ends of Windows, a missing last line break and half a surrogate pair come back as they were sent."""
    sources: dict[str, Any] = {"mine": "a = 1\r\nb = 2", "odd": "\ud800"}
    code = asked(**sources)
    refused(home, code)
    review.approve(home, code.sources_digest)
    assert review.approved(home, code).is_dir()
