"""What is said of a run from its folder: going on, finished, stopped or interrupted, and of which schema."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.engine.inline import InlineEngine
from fedsim.errors import Interrupted, RunFolderError, StoppedByPolicy
from fedsim.job import Job
from fedsim.overview import run_lines, runs
from fedsim.progress import WIDTH, Silent
from fedsim.records import ClientRow, RoundRecord, connect, disconnect, insert_round
from fedsim.rounds import run_job
from fedsim.runs import RunFolder
from fedsim.show import Shown, as_data, cause_of, show, show_lines
from fedsim.stored import open_run
from fedsim.summary import Result
from fedsim.tags import set_tag
from tests import small
from tests.test_cli import Command

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
HUGE = 3e38
"""A feature so large that a float32 loss is not finite, though the data are."""


class Looking(Silent):
    """Is called after every committed round, while the run goes on."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self._look = look

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        self._look(record.number)


def run(job: Job, out: Path, look: Callable[[int], None] = lambda number: None) -> Result:
    return run_job(job, InlineEngine(), out, Looking(look))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A private run of three rounds."""
    return run(small.job(small.PRIVATE), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in whose every round client 2 fails."""
    job = small.job(small.POINTS, data=small.points(HUGE))
    return run(job, tmp_path_factory.mktemp("runs") / "failing").folder


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def lines_of(shown: Shown) -> list[str]:
    lines = show_lines(shown)
    assert max(map(len, lines)) <= WIDTH
    assert json.loads(json.dumps(as_data(shown)))["title"] == shown.overview.title
    return lines


def test_a_finished_run_says_what_its_summary_says(finished: Result) -> None:
    shown, said = show(finished.folder), finished.values
    about = shown.overview
    assert (about.status, about.reason, about.rounds, about.planned) == ("finished", None, 3, 3)
    assert (about.chosen_by, about.best_round) == (said["chosen_by"], said["best_round"])
    assert about.metric == "global/central-test/rows/accuracy" and about.value == said["metrics"][about.metric]
    assert (about.epsilon, about.delta) == (said["privacy"]["largest"], 1e-3)
    assert about.fingerprint == finished.fingerprint
    assert [row["round"] for row in shown.last_rounds] == [1, 2, 3]
    names = ["central-validation/rows/loss", "central-validation/rows/accuracy"]
    assert [*shown.last_rounds[0]["metrics"]] == [f"global/{name}" for name in names], "too few for a worst tenth"
    assert shown.failures == []
    text = "\n".join(lines_of(shown))
    assert text.startswith("Small · finished\n  3/3 rounds in ")
    assert f"  fingerprint {finished.fingerprint}\n" in text and "at delta 0.001 (largest client)\n" in text


def test_clients_are_ordered_by_what_they_took_lost_and_moved(finished: Result) -> None:
    """Against plain sums over the recorded rows."""
    shown = show(finished.folder)
    with closing(open_run(finished.folder)) as read:
        rows = read.clients()
    seconds: dict[int, list[float]] = {}
    for row in rows:
        if row.phase == "train":
            seconds.setdefault(row.client, []).append(row.seconds)
    means = {client: sum(values) / len(values) for client, values in seconds.items()}
    assert [row["client"] for row in shown.slowest] == sorted(means, key=lambda client: -means[client])
    assert shown.slowest[0]["seconds"] == pytest.approx(max(means.values()))
    last = {row.client: row.loss for row in rows if row.phase == "evaluate" and row.round == 3 and row.rows}
    assert [(row["client"], row["loss"]) for row in shown.worst] == sorted(
        last.items(), key=lambda pair: -(pair[1] or 0)
    )
    assert {row["phase"] for row in shown.worst} == {"evaluate"}


def test_a_run_is_seen_while_it_goes_on(tmp_path: Path) -> None:
    """From another connection, after every round; the best so far is what the run itself holds to be the best."""
    seen: list[Shown] = []
    result = run(small.job(), tmp_path / "run", lambda number: seen.append(show(tmp_path / "run")))
    assert [(shown.overview.status, shown.overview.rounds) for shown in seen] == [("running", n) for n in (1, 2, 3)]
    assert [shown.overview.title for shown in seen] == ["Small"] * 3
    assert lines_of(seen[0])[0] == "Small · running"
    last = seen[-1].overview
    said = result.values
    assert (last.chosen_by, last.best_round, last.best_value) == (
        said["chosen_by"],
        said["best_round"],
        said["best_validation"],
    )
    assert last.metric is None, "nothing is said of test rows before the end"
    assert show(tmp_path / "run").overview.status == "finished"


def test_a_run_is_seen_by_the_metric_that_judges_it(tmp_path: Path) -> None:
    """A scenario's own headline before those of tasks, while the run goes on and at its end."""
    seen: list[Shown] = []
    job = small.job({"task.headline": "macro-f1", "strategy.name": "ditto", "evaluate.min_rows": 1})
    result = run(job, tmp_path / "run", lambda number: seen.append(show(tmp_path / "run")))
    chosen = "global/central-validation/rows/macro-f1"
    assert seen[-1].overview.chosen_by == result.values["chosen_by"] == chosen
    assert all(chosen in row["metrics"] for row in seen[-1].last_rounds)
    at_end = show(tmp_path / "run")
    assert at_end.overview.metric == "global/central-test/rows/macro-f1"
    assert at_end.overview.personal == result.values["metrics_last_round"]["personal/client-test/clients/macro-f1"]
    with closing(open_run(tmp_path / "run")) as records:
        asked = {row.client: row for row in records.clients(3) if row.phase == "evaluate"}
    assert at_end.worst[0]["personal"] == asked[at_end.worst[0]["client"]].metrics["personal/macro-f1"]


def test_an_interrupted_run_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(small.job(), tmp_path / "run", interrupt)
    about = show(tmp_path / "run").overview
    assert (about.status, about.rounds, about.planned) == ("interrupted", 2, 3)
    with RunFolder(tmp_path / "run"):
        assert show(tmp_path / "run").overview.status == "running"


def test_a_run_without_a_round_is_shown_too(tmp_path: Path) -> None:
    scenario = small.scenario()
    RunFolder.create(tmp_path / "run", "small", scenario.to_toml(), [], {}).close()
    shown = show(tmp_path / "run")
    assert (shown.overview.title, shown.overview.status, shown.overview.rounds) == ("Small", "interrupted", 0)
    assert "no round has been committed" in lines_of(shown)


# Failures


def test_failures_are_grouped_by_cause(failing: Path) -> None:
    """One client fails in three rounds for one reason, whatever its figures were."""
    shown = show(failing)
    (cause,) = shown.failures
    assert (cause.count, cause.rounds, cause.clients) == (3, [1, 2, 3], [small.ODD])
    with closing(open_run(failing)) as read:
        errors = [failure.error for failure in read.failures()]
    assert len(errors) == 3 and {cause_of(error) for error in errors} == {cause.cause}
    assert not re.search(r"\d", cause.cause)
    lines = lines_of(shown)
    assert "3 failures of clients" in lines
    assert "     3 x in 3 rounds from 1 to 3, client 2" in lines
    assert small.ODD not in [row["client"] for row in shown.slowest]
    assert shown.worst[0]["client"] == small.ODD, "its held-out rows are as odd"


def test_failures_that_ended_a_run_count_too(tmp_path: Path) -> None:
    """Their round is not committed: they are in its events."""
    job = small.job({**small.POINTS, "cohort.on_client_error": "fail"}, data=small.points(HUGE))
    with pytest.raises(StoppedByPolicy):
        run(job, tmp_path / "run")
    shown = show(tmp_path / "run")
    assert shown.overview.status == "stopped" and "on_client_error is fail" in (shown.overview.reason or "")
    (cause,) = shown.failures
    assert (cause.count, cause.rounds, cause.clients) == (1, [1], [small.ODD])
    assert [event["kind"] for event in shown.events] == ["failure"]
    assert any(line.startswith("  ended early: ") for line in lines_of(shown))


MESSAGES = [
    "round {round}, client {client}: the loss is not finite after step {step} (learning_rate {rate}). Lower it.",
    "round {round}, client {client}: RuntimeError: size of tensor a ({step}) must match {client} at dimension {round}",
    "round {round}, client {client}: took longer than {rate} s",
    "worker of round {round} died with status {step} at 0x7f{step}",
]
CAUSES = [
    "the loss is not finite after step N (learning_rate N). Lower it.",
    "RuntimeError: size of tensor a (N) must match N at dimension N",
    "took longer than N s",
    "worker of round N died with status N at N",
]


@given(
    round=st.integers(1, 10**6),
    client=st.integers(0, 10**7),
    step=st.integers(0, 10**9),
    rate=st.floats(0, 1e9, allow_nan=False),
)
def test_figures_do_not_make_a_cause(round: int, client: int, step: int, rate: float) -> None:
    for message, cause in zip(MESSAGES, CAUSES, strict=True):
        assert cause_of(message.format(round=round, client=client, step=step, rate=rate)) == cause


@pytest.mark.parametrize("error", ["layer 'bn1' (BatchNorm2d) has float32 weights", "use a.b2c and utf8"])
def test_names_with_digits_stay(error: str) -> None:
    assert cause_of(error) == error


def test_only_failures_recorded_is_said(failing: Path, tmp_path: Path) -> None:
    """With `[records] clients = "failed"` nothing is known of the others, and nobody is called the slowest."""
    job = small.job({**small.POINTS, "records.clients": "failed"}, data=small.points(HUGE))
    folder = run(job, tmp_path / "run").folder
    with closing(sqlite3.connect(folder / "run.db")) as database:
        database.execute("DELETE FROM clients WHERE status = 'ok'")
        database.commit()
    shown = show(folder)
    assert shown.recorded == "failed" and shown.failures == show(failing).failures
    assert (shown.slowest, shown.worst, shown.largest, shown.mean_seconds) == ([], [], [], None)
    assert "records.clients keeps failures alone; what follows knows no others" in lines_of(shown)


# Other runs


def test_stacks_and_norms_are_shown_where_they_are_known(tmp_path: Path) -> None:
    """Nobody was evaluated, so losses in training say who is worst; one that is not finite comes first."""
    RunFolder.create(tmp_path / "run", "small", small.scenario().to_toml(), [], {}).close()
    database = connect(tmp_path / "run" / "run.db")
    for number in (1, 2):
        rows = [
            ClientRow(number, c, "train", "ok", 9, loss, 1, 0.5 + c, 1, 1, None, {}, number * 10.0**c, 1 + c)
            for c, loss in enumerate([0.25, None, 0.5])
        ]
        insert_round(database, RoundRecord(number, 1.0, 3, 0, {}, None, "print", rows), None, best=False, ledger=[])
    disconnect(database)
    shown = show(tmp_path / "run")
    assert [(row["client"], row["norm"], row["round"]) for row in shown.largest] == [(2, 200, 2), (1, 20, 2), (0, 2, 2)]
    assert shown.mean_norm == pytest.approx(3 * 111 / 6)
    assert [(row["client"], row["stack"]) for row in shown.slowest] == [(2, 3), (1, 2), (0, 1)]
    assert [row["client"] for row in shown.worst] == [1, 2, 0]
    lines = lines_of(shown)
    assert "         2     2.5000        2        9   an equal share of up to 3 at once" in lines
    assert "         0     0.5000        2        9" in lines
    assert "         1 not finite        9" in lines
    assert "worst clients, loss in training in round 2" in lines


def test_a_run_of_version_1_is_shown(tmp_path: Path) -> None:
    folder = shutil.copytree(VERSION_1, tmp_path / "old")
    shown = show(folder)
    assert (shown.overview.status, shown.overview.rounds, shown.overview.best_round) == ("finished", 2, 2)
    assert shown.overview.epsilon == pytest.approx(8.0, abs=1e-3)
    assert [*shown.last_rounds[0]["metrics"]][-1] == "global/client-validation/worst-10%/accuracy"
    assert shown.largest == [] and len(shown.worst) == 5
    assert lines_of(shown)[0] == "Private FedAvg on uneven digits · finished"


def test_a_long_title_and_many_tags_stay_in_80_columns(tmp_path: Path) -> None:
    title = "A title " * 30
    RunFolder.create(tmp_path / "run", "small", small.scenario({"title": title}).to_toml(), [], {}).close()
    for number in range(9):
        set_tag(tmp_path / "run", f"tag-{number}", "why it matters " * 9)
    lines_of(show(tmp_path / "run"))
    (name, about) = run_lines(*runs(tmp_path))[-2:]
    assert len(name) <= WIDTH and len(about) <= WIDTH


# Lists


def test_runs_are_listed_newest_first(finished: Result, failing: Path, tmp_path: Path) -> None:
    """Also those in folders of folders; what is no run is passed over, what cannot be read is named with the reason."""
    newest = run(small.job(), tmp_path / "runs" / "study" / "newest").folder
    shutil.copytree(failing, tmp_path / "runs" / "failing")
    shutil.copytree(VERSION_1, tmp_path / "runs" / "old")
    shutil.copytree(VERSION_1, tmp_path / "runs" / ".hidden")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "run.txt").write_text("no run")
    shutil.copytree(failing, tmp_path / "runs" / "future")
    with closing(sqlite3.connect(tmp_path / "runs" / "future" / "run.db")) as database:
        database.execute("PRAGMA user_version = 99")
    found, unreadable = runs(tmp_path / "runs")
    assert [Path(each.folder).name for each in found if each.folder != str(tmp_path / "runs" / "old")] == [
        newest.name,
        "failing",
    ]
    assert str(tmp_path / "runs" / "old") in {each.folder for each in found}, "without the run without privacy in it"
    assert len(found) == 3
    assert [each.started for each in found] == sorted((each.started for each in found), reverse=True)
    ((path, reason),) = unreadable.items()
    assert path.name == "future" and "has schema 99" in reason


def test_a_list_is_of_runs_below_an_existing_folder(tmp_path: Path) -> None:
    assert run_lines(*runs(tmp_path)) == ["no runs"]
    with pytest.raises(RunFolderError, match="there is no folder"):
        runs(tmp_path / "nowhere")


# Commands


def test_the_commands_say_the_same_as_data(fedsim: Command, finished: Result, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "runs" / "mine")
    assert fedsim("tag", "runs/mine", "paper", "--note", "figure 2") == (0, "runs/mine is tagged paper\n", "")
    status, out, _ = fedsim("show", "runs/mine")
    assert status == 0 and out.splitlines() == show_lines(show(Path("runs/mine")))
    assert "  #paper: figure 2\n" in out
    assert json.loads(fedsim("show", "runs/mine", "--json").out) == json.loads(
        json.dumps(as_data(show(Path("runs/mine"))))
    )
    status, out, _ = fedsim("list", "runs")
    name, about = out.splitlines()
    assert re.fullmatch(r"runs/mine +finished +3/3  \d{4}-\d\d-\d\d \d\d:\d\d", name) and len(name) <= WIDTH
    assert re.fullmatch(r"    Small · accuracy 0\.\d{4} · epsilon \d\.\d\d · #paper", about)
    listed: dict[str, Any] = json.loads(fedsim("list", "runs", "runs", "--json").out)
    assert listed["unreadable"] == {} and listed["runs"][0]["tags"][0]["note"] == "figure 2"
    assert json.loads(fedsim("tag", "runs/mine", "paper", "--remove", "--json").out)["removed"] is True
    assert show(Path("runs/mine")).overview.tags == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("show", "nowhere"), "nowhere is not a run folder: it has no run.db"),
        (("list", "runs"), "there is no folder runs; name the one that holds runs"),
        (("list", "models", "runs"), "`fedsim list models` takes no folder"),
        (("tag", "old", "paper"), "old has schema 1, which has no tags"),
        (("tag", "nowhere", "paper", "--remove"), "nowhere is not a run folder"),
        (("tag", "old", "two words"), "'two words' is no tag"),
    ],
)
def test_a_mistake_costs_one_line(fedsim: Command, arguments: tuple[str, ...], hint: str, tmp_path: Path) -> None:
    shutil.copytree(VERSION_1, tmp_path / "old")
    status, out, err = fedsim(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {hint}")
