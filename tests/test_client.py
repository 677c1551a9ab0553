"""What is said of one client of a run, against its rows, the federation, and where the model went."""

import json
import math
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.client import Client, as_data, client_lines, draw, look
from fedsim.data.picture import table
from fedsim.engine.inline import InlineEngine
from fedsim.errors import DataError, RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.examples import blocks
from fedsim.local import Work
from fedsim.past import cohorts
from fedsim.progress import WIDTH, Silent
from fedsim.records import ClientRow, RoundRecord
from fedsim.rounds import run_job
from fedsim.stored import open_run
from fedsim.summary import Result
from tests import small
from tests.test_cli import Command

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
HUGE = 3e38
NOISE = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}
TEXT: small.Changes = {
    "rounds": 1,
    "data": {"name": "python-source", "partition": {"kind": "natural"}, "min_rows": 20, "max_bytes": 200_000},
    "model": {"name": "lstm", "layers": 1, "width": 8, "embedding": 4},
    "train.steps": 1,
    "cohort.size": 1,
}


def rows_of(folder: Path, client: int) -> dict[str, dict[int, ClientRow]]:
    """Recorded rows by phase and round."""
    found: dict[str, dict[int, ClientRow]] = {"train": {}, "evaluate": {}}
    with closing(open_run(folder)) as read:
        for row in read.clients(client=client):
            found[row.phase][row.round] = row
    return found


def lines_of(client: Client) -> list[str]:
    lines = client_lines(client)
    assert max(map(len, lines)) <= WIDTH
    assert json.loads(json.dumps(as_data(client)))["number"] == client.number
    return lines


@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rounds of FedAvg with all clients, every checkpoint kept."""
    changes = {"rounds": 4, "checkpoint.keep": 4}
    return small.run(small.job(changes), tmp_path_factory.mktemp("runs") / "everyone").folder


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Six private rounds with two of five clients in each."""
    changes = {"rounds": 6, "cohort.size": 2, "privacy.example": NOISE}
    return small.run(small.job(changes), tmp_path_factory.mktemp("runs") / "private")


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


# Rows


@pytest.mark.parametrize("number", range(5))
def test_rows_and_labels_are_those_of_the_federation(everyone: Path, number: int) -> None:
    client, expected = look(everyone, number), table(small.job().federation)[number]
    assert client.rows == {part: expected[part] for part in ("train", "validation", "test")}
    assert client.labels is not None
    total: dict[str, int] = dict.fromkeys(expected["labels"], 0)
    for counts in client.labels.values():
        for label, count in counts.items():
            total[label] += count
    assert total == expected["labels"]


def test_examples_are_rows_of_the_client(everyone: Path) -> None:
    """Of different classes while there are."""
    federation = small.job().federation
    client = look(everyone, 0)
    assert len({each.label for each in client.examples}) == len(client.examples) == 4
    for each in client.examples:
        rows = federation.rows(0, each.part)
        assert np.array_equal(each.values, rows.x[each.row])
        assert each.label == federation.classes[rows.y[each.row]]


# History


def test_the_history_is_what_was_recorded(private: Result) -> None:
    for number in range(5):
        client, rows = look(private.folder, number), rows_of(private.folder, number)
        assert [part.round for part in client.history] == sorted({*rows["train"], *rows["evaluate"]})
        for part in client.history:
            row, own = rows["train"].get(part.round), rows["evaluate"].get(part.round)
            told = (part.status, part.loss, part.steps, part.seconds, part.norm, part.epsilon)
            assert told == (
                (row.status, row.loss, row.steps, row.seconds, row.norm, row.epsilon) if row else (None,) * 6
            )
            assert part.own_loss == (own.loss if own else None)
        assert client.rounds == sorted(rows["train"])
        lines_of(client)


def test_epsilon_is_the_ledgers(private: Result) -> None:
    with closing(open_run(private.folder)) as read:
        accounts = {row.client: row for row in read.privacy()}
    for number in range(5):
        client = look(private.folder, number)
        if number in accounts:
            assert (client.epsilon, client.delta) == (accounts[number].epsilon, 1e-3)
            assert len(client.rounds) == accounts[number].participations
            assert any(line.startswith("  epsilon ") and line.endswith(" at delta 0.001") for line in lines_of(client))
        else:
            assert (client.epsilon, client.rounds) == (None, [])


def test_a_metric_on_its_own_rows_is_shown_where_it_is_recorded(everyone: Path, tmp_path: Path) -> None:
    """As in a run of an earlier version, which recorded the loss alone."""
    folder = shutil.copytree(everyone, tmp_path / "run")
    with closing(sqlite3.connect(folder / "run.db")) as database:
        database.execute("UPDATE clients SET metrics = '{}' WHERE phase = 'evaluate' AND round != 2")
        database.commit()
    client = look(folder, 0)
    recorded = [part.own_metric for part in client.history]
    assert recorded == [None, look(everyone, 0).history[1].own_metric, None, None] and recorded[1] is not None
    assert any("accuracy" in line for line in lines_of(client))


# Where updates pointed


def test_weighted_projections_on_what_the_model_became_add_up_to_it(everyone: Path) -> None:
    """FedAvg's change is the mean of updates by rows, so sum n_k |u_k| cos_k / sum n_k = |change|, and so on for it.

    The oracle: the lengths of changes, from the models in checkpoints.
    """
    clients = [look(everyone, number) for number in range(5)]
    weights = np.array([client.rows["train"] for client in clients])
    for index in range(4):
        parts = [client.history[index] for client in clients]
        assert all(part.cosine is not None for part in parts)
        projections = np.array([(part.norm or 0.0) * (part.cosine or 0.0) for part in parts])
        length = float((weights * projections).sum() / weights.sum())
        assert length == pytest.approx(lengths(everyone)[index], rel=1e-4)
    assert clients[0].notes == []


def lengths(folder: Path) -> list[float]:
    """[rounds] Euclidean lengths of the model's change in every round."""
    work = Work(small.job())
    models = [work.initial.vector.numpy()]
    for number in range(1, 5):
        tensors = load_file(folder / "checkpoints" / f"round-{number:06d}.safetensors")
        models.append(np.concatenate([tensors[f"model/{slot.name}"].ravel() for slot in work.layout.parameters]))
    return [float(np.linalg.norm(after - before)) for before, after in pairwise(models)]


def test_a_client_alone_in_its_round_points_where_the_model_went(tmp_path: Path) -> None:
    changes = {"rounds": 3, "cohort.size": 1, "strategy": {"name": "scaffold"}, "checkpoint.keep": 3}
    folder = small.run(small.job(changes), tmp_path / "run").folder
    for number, (client,) in enumerate(cohorts(small.job(changes), 3), 1):
        (part,) = (part for part in look(folder, client).history if part.round == number)
        assert part.cosine == pytest.approx(1.0, abs=1e-5)


def test_what_is_not_kept_is_not_known_and_it_is_said_what_helps(private: Result) -> None:
    client = look(private.folder, 0)
    assert client.history[0].cosine is None
    assert any("raise checkpoint.keep (2)" in note for note in client.notes)


def test_a_replay_that_is_not_the_run_gives_no_angle(everyone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(everyone, tmp_path / "run")
    with closing(sqlite3.connect(folder / "run.db")) as database:
        database.execute("UPDATE clients SET norm = 1.0 WHERE client = 0 AND round = 2 AND phase = 'train'")
        database.commit()
    client = look(folder, 0)
    assert [part.cosine is None for part in client.history] == [False, True, False, False]
    assert client.notes[0].startswith("round 2 cannot be replayed: not as recorded: norm 1.0 then")


# Failures, and those who never took part


def test_failures_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.points(HUGE)
    folder = small.run(small.job({**small.POINTS, "rounds": 5}, data=data), tmp_path / "run").folder
    client, other = look(folder, small.ODD, data=data), look(folder, 0, data=data)
    errors = [row.error for row in rows_of(folder, small.ODD)["train"].values() if row.error is not None]
    assert client.failures == errors and len(errors) > 2 and other.failures == []
    assert {part.round for part in client.history if part.status == "failed"} == set(range(1, len(errors) + 1))
    lines = lines_of(client)
    monkeypatch.setattr("fedsim.client.SHOWN_FAILURES", 2)
    assert f"{len(errors)} failures" in lines
    assert lines_of(client)[-1] == f"  and {len(errors) - 2} more: fedsim export RUN --table failures"


def test_the_failure_that_ended_a_run_is_listed(tmp_path: Path) -> None:
    data = small.points(HUGE)
    with pytest.raises(StoppedByPolicy):
        small.run(small.job({**small.POINTS, "cohort.on_client_error": "fail"}, data=data), tmp_path / "run")
    client = look(tmp_path / "run", small.ODD, data=data)
    assert len(client.failures) == 1 and client.history == []
    assert "no round of this client is recorded" in lines_of(client)


def test_a_client_that_was_never_drawn(tmp_path: Path) -> None:
    changes = {"rounds": 1, "cohort.size": 1, "evaluate.clients_every": 0}
    folder = small.run(small.job(changes), tmp_path / "run").folder
    (drawn,) = next(cohorts(small.job(changes), 1))
    lines = lines_of(look(folder, (drawn + 1) % 5))
    assert "  took part in no round so far" in lines and "no round of this client is recorded" in lines


def test_what_records_leave_out_is_said(tmp_path: Path) -> None:
    folder = small.run(small.job({"rounds": 1, "records.clients": "failed"}), tmp_path / "run").folder
    client = look(folder, 0)
    assert client.rounds == [1]
    assert "no round of this client is recorded: records.clients = 'failed' leaves it out" in lines_of(client)


def test_a_client_is_looked_at_while_the_run_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looking:
        def round_finished(self, record: RoundRecord) -> None:
            client = look(tmp_path / "run", 0)
            assert client.history[-1].cosine is not None
            seen.append(len(client.history))

        def run_finished(self, result: Result) -> None:
            pass

    run_job(small.job(), InlineEngine(), tmp_path / "run", Silent(), [Looking()])
    assert seen == [1, 2, 3]


# What its rows look like


def test_text_is_shown_as_text(tmp_path: Path) -> None:
    folder = small.run(small.job(TEXT), tmp_path / "run").folder
    client = look(folder, 0)
    assert client.labels is None and len(client.examples) == 3
    text = as_data(client)["examples"][0]["text"]
    assert text.encode() == client.examples[0].values.tobytes()
    shown = text.replace("\n", "⏎")[: WIDTH - 2]
    assert f"  {shown}".rstrip() in [line.rstrip() for line in lines_of(client)]
    with pytest.raises(DataError, match=r"^--picture draws images.*, and the rows of python-source are text"):
        draw(client, tmp_path / "a.svg")


def test_features_are_shown_as_numbers(tmp_path: Path) -> None:
    data = small.points(0.0)
    folder = small.run(small.job({**small.POINTS, "rounds": 1}, data=data), tmp_path / "run").folder
    client = look(folder, 1, data=data)
    lines = lines_of(client)
    start = lines.index("train: class and features of some rows") + 1
    for line, each in zip(lines[start : start + 3], client.examples, strict=True):
        label, _, numbers = line.strip().partition(": ")
        assert label == each.label
        assert np.allclose([float(number) for number in numbers.split()], each.values, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_images_are_drawn(everyone: Path, tmp_path: Path, suffix: str) -> None:
    client = look(everyone, 0)
    for name in ("a", "b"):
        draw(client, tmp_path / f"{name}{suffix}")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second and first.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), (8, 16)), ((28, 28), (14, 28)), ((200, 300), (9, 28)), ((1, 1), (1, 2))]
)
def test_blocks_fit_and_keep_the_shape(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """About square, and as dark as the image where it is even."""
    lines = blocks(np.ones(shape))
    assert (len(lines), {len(line) for line in lines}) == (size[0], {size[1]})
    assert set("".join(lines)) == {"█"}
    half = np.zeros(shape)
    half[:, shape[1] // 2 :] = 1
    drawn = blocks(half)
    if shape[1] > 1:
        assert all(line.startswith(" " * (size[1] // 2)) and line.endswith("█" * (size[1] // 2)) for line in drawn)


# The command


def test_the_command_prints_what_the_function_gives(fedsim: Command, everyone: Path, tmp_path: Path) -> None:
    shutil.copytree(everyone, tmp_path / "run")
    status, out, err = fedsim("client", "run", "3", "--picture", "three.png")
    client = look(Path("run"), 3)
    assert (status, out.splitlines(), err) == (0, [*client_lines(client), "picture: three.png"], "")
    assert (tmp_path / "three.png").is_file()
    told: Mapping[str, Any] = json.loads(fedsim("client", "run", "3", "--json").out)
    assert told == json.loads(json.dumps({**as_data(client), "picture": None}))
    assert told["participations"] == 4 and math.isclose(told["history"][0]["cosine"], client.history[0].cosine or 0)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "5"), "client 5: run has 5 clients, 0 to 4"),
        (("nowhere", "0"), "nowhere is not a run folder"),
        (("old", "0"), "old was written by an earlier fedsim, with schema 1"),
        (("run", "0", "--picture", "a.gif"), "a.gif: pictures are written as .svg, .png, .pdf"),
        (("run", "0", "--picture", "nowhere/a.svg"), "nowhere/a.svg: cannot be written"),
    ],
)
def test_a_mistake_costs_one_line(
    fedsim: Command, everyone: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    shutil.copytree(everyone, tmp_path / "run")
    shutil.copytree(VERSION_1, tmp_path / "old")
    status, out, err = fedsim("client", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {hint}")


def test_other_data_are_refused(everyone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(everyone, tmp_path / "run")
    made = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**made, "data_sha256": "0" * 64}))
    with pytest.raises(ScenarioError, match="was made with something else, the data"):
        look(folder, 0)
    (folder / "run.db").unlink()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        look(folder, 0)
