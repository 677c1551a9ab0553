"""An owner's commands: what they print, that a mistake is one line, and that who has left has left."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w

from fedsim import cli
from fedsim.data.dealt import write
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import review
from fedsim.deploy.node.checked import require
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.leave import leave
from fedsim.deploy.node.log import entries
from fedsim.deploy.node.supervise import _print
from fedsim.errors import DeployError, Refused
from fedsim.privacy.accountant import Charge
from fedsim.scenario import load
from tests import small
from tests.deploy.owners import node_folder
from tests.deploy.test_holding import HEADER, SCHEMA, rows

CHARGE = Charge(1.1, 0.05, 20)


class Printed(NamedTuple):
    status: int
    out: str
    err: str


Fedsim = Callable[..., Printed]


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedsim:
    """The command in this process."""

    def run(*arguments: str | Path) -> Printed:
        monkeypatch.setattr(sys, "argv", ["fedsim", "deploy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Printed(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def home(tmp_path: Path) -> NodeFolder:
    """A node with a key, charges of two runs, entries, code that waits, states and replies."""
    node = node_folder(tmp_path / "node")
    for secret in (node.key, node.folder / "secret", node.folder / "statistics.json"):
        secret.write_text("secret")
    for folder in (node.states, node.replies, node.flower, node.logs):
        folder.mkdir()
        (folder / "file").write_text("x")
    ledger, log = node.books()
    for run in ("a" * 16, "a" * 16, "b" * 16):
        ledger.charge(run, 1, "d" * 64, CHARGE, "example", 100.0, 1e-5)
        facts = {"run": run, "round": 1, "left": [{"field": "arrays/0", "bytes": 4096}], "why": "x\x1b[31m\n"}
        log.write("answered", **facts)
    ledger.close()
    with pytest.raises(Refused):
        review.approved(node, Assignment('title = "T"\n', {"mine.py": "x = 1\n"}))
    return node


def test_ledger(fedsim: Fedsim, home: NodeFolder) -> None:
    """A line a run, and what all of them come to at the owner's delta."""
    ledger, _ = home.books()
    done = fedsim("ledger", home.folder)
    head, *lines, total = done.out.splitlines()
    assert done.status == 0 and head.split() == ["run", "level", "charges", "epsilon", "first", "last"]
    assert [line.split()[:3] for line in lines] == [["a" * 16, "example", "2"], ["b" * 16, "example", "1"]]
    assert total.startswith("all 3: epsilon ") and total.endswith(" of 10 at delta 1e-05")
    assert float(total.split()[3]) >= ledger.spent(1e-5)
    assert max(map(len, done.out.splitlines())) <= 80
    told = json.loads(fedsim("ledger", home.folder, "--json").out)
    assert told["counter"] == 3 and told["epsilon"] == ledger.spent(1e-5) and len(told["runs"]) == 2


def test_catching_up(fedsim: Fedsim, home: NodeFolder) -> None:
    """What the coordinator has seen more is charged, and the log says so."""
    done = fedsim("ledger", home.folder, "--catch-up", "5")
    assert done.out.startswith("charged 2 missing participations")
    assert "all 5:" in done.out and "caught-up" in done.out
    *_, last = entries(home.log_file)
    assert (last["kind"], last["charged"], last["counter"]) == ("caught-up", 2, 5)
    again = fedsim("ledger", home.folder, "--catch-up", "5")
    assert again.status == 2 and "nothing to catch up with" in again.err


def test_log(fedsim: Fedsim, home: NodeFolder) -> None:
    """One printable line an entry; and a chain that is whole, or not."""
    done = fedsim("log", home.folder, "--last", "2")
    assert len(done.out.splitlines()) == 2 and "\x1b" not in done.out
    assert "answered: run bbbb" in done.out and "left arrays/0 (4,096 bytes)" in done.out
    assert len(json.loads(fedsim("log", home.folder, "--json").out)) == 3
    assert "3 entries, none changed" in fedsim("log", home.folder, "--verify").out
    home.log_file.write_bytes(home.log_file.read_bytes().replace(b'"round": 1', b'"round": 2', 1))
    broken = fedsim("log", home.folder, "--verify")
    assert broken.status == 2 and "line 2: does not follow" in broken.err


def test_rules(fedsim: Fedsim, home: NodeFolder) -> None:
    """As the node understands them and the file writes them; a mistake is named."""
    told = fedsim("rules", home.folder).out
    assert "largest_epsilon  10.0\n" in told
    assert "own_code         true\n" in told and "largest_reply    1_000_000_000\n" in told
    assert json.loads(fedsim("rules", home.folder, "--json").out)["delta"] == 1e-5
    home.rules_file.write_text("metric = true")
    wrong = fedsim("rules", home.folder)
    assert wrong.status == 2 and "metric is not known. Did you mean metrics?" in wrong.err


def test_a_node_does_not_start_with_rules_that_cannot_be_read(fedsim: Fedsim, home: NodeFolder) -> None:
    """It would refuse whatever is asked, and its owner would hear of it from the coordinator."""
    home.rules_file.write_text("metric = true")
    done = fedsim("node", home.folder, "--data", ".")
    assert done.status == 2 and "metric is not known. Did you mean metrics?" in done.err


def test_no_sign_of_a_coordinators_moves_an_owners_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A message's type, say, is quoted in what a node prints; Flower lets it be anything."""
    _print("refused: query.\x1b[2J\nanswered: all is well")
    assert capsys.readouterr().out.count("\n") == 1
    _print("\x1b[2J")
    assert "\x1b" not in capsys.readouterr().out


def test_review(fedsim: Fedsim, home: NodeFolder) -> None:
    """Show, approve, and nothing waits."""
    (code,) = review.pending(home)
    shown = fedsim("review", home.folder).out
    assert f"code {code.digest}" in shown and "+x = 1" in shown and "\x1b" not in shown
    assert shown.endswith(f"\nto let it run: fedsim deploy review {home.folder} --approve {code.digest[:12]}\n")
    assert len(json.loads(fedsim("review", home.folder, "--json").out)["pending"]) == 1
    both = fedsim("review", home.folder, "--approve", code.digest, "--reject", code.digest)
    assert both.status == 2 and "give one of" in both.err
    assert fedsim("review", home.folder, "--approve", code.digest[:10]).out == f"approved {code.digest}: mine.py\n"
    assert fedsim("review", home.folder).out == "none waits\n"
    told = json.loads(fedsim("review", home.folder, "--json").out)
    assert [each["digest"] for each in told["approved"]] == [code.digest] and told["pending"] == []


def test_many_wait(fedsim: Fedsim, home: NodeFolder) -> None:
    """A line each, and how to see one."""
    with pytest.raises(Refused):
        review.approved(home, Assignment('title = "U"\n', {"mine.py": "x = 2\n"}))
    *lines, last = fedsim("review", home.folder).out.splitlines()
    assert len(lines) == 2 and last.startswith("2 wait; show one with")


def test_a_run_without_nodes_discloses_nothing(fedsim: Fedsim) -> None:
    """A number of nodes that no run has is a mistake of the command line, and no traceback."""
    done = fedsim("disclosure", "quickstart", "--data", ".", "--nodes", "0")
    assert done.status == 2 and "'--nodes'" in done.err


def test_checking_rows(fedsim: Fedsim, home: NodeFolder, tmp_path: Path) -> None:
    """Each column that differs is a line here; nothing is started, sent or logged."""
    data = {"name": "csv", "schema": SCHEMA, "partition": {"kind": "natural"}, "preprocess": {"kind": "constants"}}
    (tmp_path / "study.toml").write_text(tomli_w.dumps({**small.SMALL, "data": data}))
    table = rows()

    def checked(*more: str) -> Printed:
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *table])
        return fedsim("node", home.folder, "--data", tmp_path / "rows.csv", "--check", tmp_path / "study.toml", *more)

    done = checked()
    assert done.status == 0 and " fits " in done.out and "train" in done.out
    require(home, load(str(tmp_path / "study.toml")))  # from now on rows may be read so
    before = home.log_file.read_bytes()
    table[3][1], table[4][3] = "200", "d"
    done = checked()
    assert done.status == 2 and len(done.out.splitlines()) == 2 and "2 things do not fit" in done.err
    assert home.log_file.read_bytes() == before


def test_own_code_does_not_run_for_a_check_before_it_was_approved(fedsim: Fedsim, home: NodeFolder) -> None:
    """A coordinator sends a scenario and a file beside it; what the file does when it is imported, it would do here."""
    place = home.folder.parent
    source = f"from pathlib import Path\nPath({str(place / 'ran')!r}).touch()\ndef turned(x):\n    return x\n"
    (place / "mine.py").write_text(source)
    data = {"name": "csv", "schema": SCHEMA, "partition": {"kind": "natural"}, "preprocess": {"kind": "constants"}}
    study = tomli_w.dumps({**small.SMALL, "data": {**data, "transform": "mine.py:turned"}})
    (place / "study.toml").write_text(study)
    with (place / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows()])
    command = ("node", home.folder, "--data", place / "rows.csv", "--check", place / "study.toml")
    done = fedsim(*command)
    assert done.status == 2 and "mine.py would run to read your rows" in done.err and not (place / "ran").exists()
    asked = Assignment(study, {"mine.py": source})
    with pytest.raises(Refused):
        review.approved(home, asked)
    review.approve(home, asked.sources_digest)
    assert " fits " in fedsim(*command).out and (place / "ran").exists()
    (place / "mine.py").write_text(f"{source}x = 1\n")
    assert "mine.py would run" in fedsim(*command).err


def test_rows_that_are_ready(fedsim: Fedsim, home: NodeFolder, tmp_path: Path) -> None:
    """What a rehearsal writes fits, and node.toml can say where it lies."""
    write(small.job().federation, 1, tmp_path / "node" / "rows")
    settings = (home.folder / "node.toml").read_text()
    (home.folder / "node.toml").write_text(settings + '[data]\npath = "rows"\n')
    done = fedsim("node", home.folder, "--check", "quickstart")
    assert done.status == 0 and " fits quickstart: " in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --data PATH"),
        (("--data", "nowhere"), "there is no such file or folder"),
        (("--data", ".", "--set", "seed=1"), "--set goes with --check"),
        (("--data", ".", "--check", "quickstrat"), "Did you mean quickstart?"),
    ],
)
def test_mistakes_of_node(fedsim: Fedsim, home: NodeFolder, arguments: tuple[str, ...], told: str) -> None:
    """One line that says what to give."""
    done = fedsim("node", home.folder, *arguments)
    assert done.status == 2 and told in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["node", "ledger", "log", "rules", "review", "leave"])
def test_a_folder_that_is_no_node(fedsim: Fedsim, tmp_path: Path, command: str) -> None:
    """Every command says so and how to make one; each has an example."""
    done = fedsim(command, tmp_path)
    assert done.status == 2 and "is no node: it has no node.toml" in done.err
    assert f"Example: fedsim deploy {command}" in " ".join(fedsim(command, "--help").out.split())


def everything(home: NodeFolder) -> set[str]:
    return {path.name for path in home.folder.iterdir()}


def test_leaving(fedsim: Fedsim, home: NodeFolder) -> None:
    """What could answer is gone, what tells what was spent stays, and whatever is asked is refused by name."""
    running = NodeFolder.open(home.folder)
    running.require_member()
    done = fedsim("leave", home.folder)
    assert done.status == 0 and "ledger and log stay" in done.out
    kept = {"node.toml", "rules.toml", "ledger.db", "log.jsonl", "logs", "statistics.json", "withdrawn"}
    assert everything(home) == kept
    *_, last = entries(home.log_file)
    assert last["kind"] == "withdrawn"
    with pytest.raises(Refused, match="the owner of north has withdrawn"):
        running.require_member()  # a node that runs while its owner leaves
    assert "has withdrawn" in fedsim("node", home.folder, "--data", ".").err
    again, told = fedsim("leave", home.folder).out.splitlines()
    assert again == "withdrawn; removed nothing; ledger and log stay" and "deploy revoke north" in told


def test_leaving_without_a_trace(fedsim: Fedsim, home: NodeFolder) -> None:
    """On demand nothing is kept; that it left is still known."""
    assert fedsim("leave", home.folder, "--forget").status == 0
    assert everything(home) == {"node.toml", "rules.toml", "withdrawn"}
    assert NodeFolder.open(home.folder).withdrawn


def test_leaving_that_was_cut_short(home: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark comes first: whatever is not removed yet, nothing is answered, and the command goes on where it was."""

    def fails(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error", str(self))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", fails)
        with pytest.raises(DeployError, match=r"key: cannot be removed .*run this again"):
            leave(home)
    assert home.withdrawn and home.key.exists()
    assert "key" in leave(home) and not home.key.exists()
