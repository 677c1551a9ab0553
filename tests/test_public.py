"""What may be given away of a private run is given away, to the bit, and nothing besides."""

import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import fedsim
from fedsim.data.corpus import Corpus, Folders
from fedsim.engine.inline import InlineEngine
from fedsim.errors import PrivacyError, RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.federating import CorpusSource
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import WIDTH, Silent
from fedsim.public import FILES, publish
from fedsim.records import RoundRecord, to_json
from fedsim.rounds import run_job
from fedsim.scenario import load, parse
from fedsim.stored import open_run, stored_environment, stored_scenario
from tests import small
from tests.test_cli import Command

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
SEED = 7_418_529_630_741_852_963
"""Of digits that nothing else has by chance."""

EXAMPLE: small.Changes = {
    "seed": SEED,
    "rounds": 2,
    "cohort.size": 3,
    "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0},
}
CLIENT: small.Changes = {
    "seed": SEED,
    "rounds": 2,
    "strategy.weights": "uniform",
    "cohort.size": 2,
    "privacy.client": {"noise_multiplier": 2.0, "delta": 1e-2, "clip": 0.5},
}
LEVELS: Mapping[str, small.Changes] = {
    "example": EXAMPLE,
    "example, personal heads": {**EXAMPLE, "strategy.name": "fedper"},
    "client": CLIENT,
    "client, Poisson": {
        **{key: value for key, value in CLIENT.items() if key != "cohort.size"},
        "cohort.poisson": 0.5,
        "privacy.client": {**CLIENT["privacy.client"], "adaptive": {"quantile": 0.5}},
    },
    "local": {
        **{key: value for key, value in CLIENT.items() if key != "privacy.client"},
        "privacy.local": {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.5},
    },
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run at each level, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(level: str) -> Path:
        if level not in made:
            folder = tmp_path_factory.mktemp("runs") / "run"
            small.run(small.job(LEVELS[level]), folder)
            made[level] = folder
        return made[level]

    return of


@pytest.fixture(params=LEVELS)
def run(request: pytest.FixtureRequest, run_of: Callable[[str], Path]) -> Path:
    return run_of(request.param)


def published(run: Path, out: Path) -> dict[str, bytes]:
    publish(run, out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*")}


def summary_of(run: Path) -> dict[str, Any]:
    with closing(open_run(run)) as records:
        return records.summary()


def card_of(run: Path, out: Path) -> dict[str, Any]:
    return dict(json.loads(published(run, out)["model.json"]))


# What goes


def test_the_models_are_the_run_s_to_the_bit(run: Path, tmp_path: Path) -> None:
    files, summary = published(run, tmp_path / "out"), summary_of(run)
    assert set(files) == {"PRIVACY.txt", "model.json", "scenario.toml", "best.safetensors", "last.safetensors"}
    for name, round in (("best", summary["best_round"]), ("last", summary["rounds"])):
        given, kept = (load_file(place / f"{name}.safetensors") for place in (tmp_path / "out", run / "model"))
        assert given.keys() == kept.keys() and all(torch.equal(given[key], kept[key]) for key in kept)
        with safe_open(tmp_path / "out" / f"{name}.safetensors", "pt") as file:
            assert file.metadata() == {"round": str(round)}


def test_what_is_given_away_can_be_loaded(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "out")
    given, kept = (fedsim.load(place).state_dict() for place in (tmp_path / "out", run))
    assert given.keys() == kept.keys() and all(torch.equal(given[key], kept[key]) for key in kept)


DECLARED = {
    *("epsilon", "level", "delta", "mechanism", "noise_multiplier", "clip", "adaptive_clip", "clipping", "tree_rounds"),
    *("divisor", "unit", "relation", "adversary", "accountant", "covers", "charged", "max_participations", "rounds"),
}
CARD = {
    **dict.fromkeys(
        ("task", "classes", "data", "preprocessing", "best_round", "last_round", "ended_by", "fingerprint")
    ),
    "architecture": {"model", "settings", "input_shape", "input_type", "outputs", "vocabulary", "parameters"},
    "metrics": {"protocol", "rows", "round_chosen_by", "best", "last"},
}
"""Keys of the card, and of its tables."""


def test_the_card_has_what_is_declared_and_the_server_s_own_figures(run: Path, tmp_path: Path) -> None:
    card, summary = card_of(run, tmp_path / "out"), summary_of(run)
    privacy = card.pop("privacy")
    spent = privacy.pop("spent", None)
    assert card.keys() == CARD.keys() and privacy.keys() <= DECLARED
    assert all(keys is None or card[name].keys() <= keys for name, keys in CARD.items())
    for which, stored in (("best", "metrics"), ("last", "metrics_last_round")):
        central = {name: value for name, value in summary[stored].items() if name.startswith("global/central-test/")}
        assert len(central) > 3 and card["metrics"][which] == central
    assert card["metrics"]["rows"] == "the server's own held-out ones, which are not protected"
    assert privacy["epsilon"] == summary["privacy"]["planned"]
    names = ("largest", "median", "smallest")
    assert spent == ({name: summary["privacy"][name] for name in names} if privacy["level"] == "example" else None)


def test_the_text_says_all_that_the_run_says_of_its_promise(run: Path, tmp_path: Path) -> None:
    """But for what was spent, which is told as planned, and for what the summary says of itself."""
    text, privacy = published(run, tmp_path / "out")["PRIVACY.txt"].decode(), summary_of(run)["privacy"]
    whole = re.split(r"\n(?! )", "\n".join(privacy["statement"]))
    others = ("epsilon ", "the run as planned", "composed over", "run.db and this summary")
    said = [sentence for sentence in whole if not sentence.startswith(others)]
    assert len(said) >= 4 and all(f"\n{sentence}\n" in text for sentence in said)
    assert f"\nepsilon {rounded_up(privacy['planned'])} at delta {privacy['delta']:g}, for every client" in text
    flowing = " ".join(text.split())
    assert "whoever holds it can undo the noise. So can whoever guesses it" in flowing
    assert "figures are" in flowing and "other runs on the same rows" in flowing
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_scenario_runs_with_another_seed(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "out")
    file = tmp_path / "out" / "scenario.toml"
    assert file.read_text().startswith("# The seed is left out: whoever holds it can undo the noise.")
    with pytest.raises(ScenarioError, match="seed is missing"):
        load(str(file))
    again, stored = load(str(file), ["seed=3"]), parse({**stored_scenario(run), "seed": 3}, run, "stored")
    assert again.to_toml() == stored.to_toml()


# What does not


def secrets(run: Path) -> Iterator[bytes]:
    """What only clients and the curator know, in the forms in which it might be written."""
    yield str(SEED).encode()
    yield from (struct.pack(order + "q", SEED) for order in "<>")
    yield stored_environment(run)["data_sha256"].encode()
    with closing(open_run(run)) as records:
        for row in records.select("SELECT loss, norm, seconds FROM clients"):
            yield from (repr(value).encode() for value in row if value is not None and len(repr(value)) > 8)
        summary, series = records.summary(), records.metrics()
        values = [*summary["metrics"].items(), *summary["metrics_last_round"].items()]
        values += [(name, value) for name, rounds in series.items() for value in rounds.values()]
        for name, value in values:  # shares of rows may be the same by chance, losses are not
            if "/client-" in name and name.endswith("/loss"):
                yield repr(value).encode()
        yield from (row.fingerprint.encode() for row in records.rounds()[:-1])
    yield from (b"client-validation", b"client-test", b"worst-10%", b"spread", b"clients_counted", b"run.db")


def test_no_byte_is_of_clients_or_of_the_seed(run: Path, tmp_path: Path) -> None:
    hidden = list(secrets(run))
    assert len(hidden) > 30
    for name, content in published(run, tmp_path / "out").items():
        assert [secret for secret in hidden if secret in content] == [], name


def test_every_number_in_the_text_is_declared(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out")
    privacy, mechanism = card["privacy"], card["privacy"]["mechanism"]
    spent = [rounded_up(value) for value in privacy.get("spent", {}).values()]
    rounds = [privacy["rounds"], card["best_round"], card["last_round"], privacy["max_participations"]]
    known = {rounded_up(privacy["epsilon"]), f"{privacy['delta']:g}", *spent, *map(str, rounds)}
    text = (tmp_path / "out" / "PRIVACY.txt").read_text()
    found = set(re.findall(r"[\d.]*\d", text)) - set(re.findall(r"[\d.]*\d", mechanism))
    assert found <= known


def change(run: Path, query: str, *values: Any) -> None:
    with closing(sqlite3.connect(run / "run.db")) as database, database:
        database.execute(query, values)


def fail(run: Path) -> None:
    change(run, "UPDATE clients SET status = 'failed', error = 'round 1, client 2: nan' WHERE client = 2")


def disturb(run: Path) -> None:
    """Put other client-side records into a run: what another client's rows might have left under the same models."""
    change(
        run, "UPDATE clients SET loss = 9.5, norm = 123.0, rows = rows + 7, steps = 1, seconds = 5.0, metrics = '{}'"
    )
    if summary_of(run)["privacy"]["level"] == "client":  # at the others the server sees it
        fail(run)
    change(run, "DELETE FROM clients WHERE client = 1")
    change(run, "UPDATE rounds SET seconds = 77.0, cohort = cohort + 1, failed = 1, committed = 3.0")
    change(run, "UPDATE metrics SET value = 0.125 WHERE name LIKE '%/client-%'")
    change(run, "UPDATE privacy SET participations = participations + 1, identity = 'another', client = client + 100")
    change(run, "INSERT INTO events VALUES (1, 'client failed', 'round 1, client 2: nan')")
    summary = summary_of(run)
    for stored in ("metrics", "metrics_last_round"):
        summary[stored] = {name: 0.5 if "/client-" in name else value for name, value in summary[stored].items()}
    summary |= {"seconds": 99.0, "seconds_per_round": 9.0, "clients_counted": 1, "folder": "elsewhere"}
    summary["privacy"] |= {"client": 4, "participations": 1, "clients": 1}
    if summary["privacy"]["level"] != "example":
        summary["privacy"] |= dict.fromkeys(("largest", "median", "smallest"), 0.25)
    for name, value in summary.items():
        change(run, "UPDATE summary SET value = ? WHERE name = ?", to_json(value), name)
    card = json.loads((run / "model/model.json").read_text())
    card["metrics"] = {name: 0.5 if "/client-" in name else value for name, value in card["metrics"].items()}
    (run / "model/model.json").write_text(json.dumps({**card, "privacy": summary["privacy"]}))
    environment = stored_environment(run)
    (run / "environment.json").write_text(json.dumps({**environment, "data_sha256": "0", "platform": "another"}))
    shutil.rmtree(run / "checkpoints")


def test_other_records_of_clients_change_no_byte(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    disturb(other)
    assert published(other, tmp_path / "b") == published(run, tmp_path / "a")


@pytest.mark.parametrize("kind", ["example", "local"])
def test_where_the_server_sees_uploads_a_missing_one_is_not_covered(
    kind: str, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    failing = shutil.copytree(run_of(kind), tmp_path / "other")
    fail(failing)
    refused(failing, tmp_path / "out", "client 2 failed in a round, which shows in what the server made of it")


# Neighbours that were run


def marked(mark: float) -> CorpusSource:
    """Two clouds in the plane; a third feature is `mark` in one client's rows, 0 in others' and in the test set."""

    def corpus(folders: Folders) -> Corpus:
        rng = np.random.default_rng(0)
        clients = np.append(np.repeat(np.arange(4), 30), np.full(40, -1))
        y = rng.integers(0, 2, len(clients))
        plane = rng.normal(0, 1, (len(clients), 2)) + 4 * y[:, None]
        third = np.where(clients == small.ODD, mark, 0.0)
        return Corpus(
            name="points",
            task="classification",
            x=np.column_stack([plane, third]).astype(np.float32),
            y=y.astype(np.int64),
            classes=("low", "high"),
            preprocessing={"kind": "table", "mean": float(third.mean())},
            clients=clients,
            client_names=tuple("abcd"),
            own_test=clients < 0,
        )

    return corpus


class Marked(nn.Module):
    """A line through the plane, which rows of mark 1 do not move and which fails on rows of mark 2."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if (x[:, 2] == 2).any():
            raise ValueError("such rows")
        output: Tensor = self.line(x[:, :2]) * (x[:, 2:] == 0)
        return output


EVERYBODY: small.Changes = {**CLIENT, "data.partition": {"kind": "natural"}, "cohort.size": 4}


def neighbour(out: Path, mark: float) -> Path:
    small.run(small.job(EVERYBODY, model=Marked, data=marked(mark)), out)
    return out


def test_a_client_that_fails_is_not_told_from_one_that_sends_zeros(tmp_path: Path) -> None:
    """Both add nothing to the cohort's sum, so the noised models are the same; losses, failures and figures are not."""
    sound, failing = (neighbour(tmp_path / f"run-{mark}", mark) for mark in (1, 2))
    with closing(open_run(sound)) as first, closing(open_run(failing)) as second:
        assert [len(first.failures()), len(second.failures())] != [0, 0]
        assert first.clients() != second.clients() and first.metrics() != second.metrics()
    assert published(sound, tmp_path / "a") == published(failing, tmp_path / "b")


def test_what_a_user_s_own_source_made_of_rows_stays(tmp_path: Path) -> None:
    """It may have been fitted on them."""
    files = published(neighbour(tmp_path / "run", 1), tmp_path / "out")
    assert json.loads(files["model.json"])["preprocessing"] is None
    text = " ".join(files["PRIVACY.txt"].decode().split())
    assert "how rows were made ready (by code that is not here)" in text
    assert "tests.test_public:Marked is code that is not here" in text


def test_constants_of_fedsim_go(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    card = card_of(run_of("client"), tmp_path / "out")
    assert card["preprocessing"] == {"kind": "image", "divide_by": 16.0, "mean": [0.0], "std": [1.0]}


def test_personal_parameters_are_said_to_be_untrained(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    text = published(run_of("example, personal heads"), tmp_path / "out")["PRIVACY.txt"].decode()
    assert "parameters that stay with their clients are in both models as they were" in " ".join(text.split())
    assert "joint DP" in text


TARGET = {"metric": "global/central-validation/rows/accuracy", "at_least": 0.0}


def test_a_run_that_seen_figures_ended_quotes_the_plan(tmp_path: Path) -> None:
    """What was spent up to a moment that outputs chose is no epsilon that was promised."""
    small.run(small.job({**EXAMPLE, "stop": TARGET}), tmp_path / "run")
    card = card_of(tmp_path / "run", tmp_path / "out")
    privacy = summary_of(tmp_path / "run")["privacy"]
    assert (card["ended_by"], card["last_round"]) == ("target", 1)
    assert card["privacy"]["epsilon"] == privacy["planned"] > privacy["largest"]
    assert "spent" not in card["privacy"]
    assert "reached" not in (tmp_path / "out" / "PRIVACY.txt").read_text()


# Refusals


def refused(run: Path, out: Path, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        publish(run, out)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


def test_without_privacy_nothing_is_covered(tmp_path: Path) -> None:
    small.run(small.job({"rounds": 1}), tmp_path / "run")
    refused(
        tmp_path / "run", tmp_path / "out", "no privacy.*run it with privacy.example, privacy.client or privacy.local$"
    )


def test_an_unfinished_run_is_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = shutil.copytree(run_of("client"), tmp_path / "run")
    change(run, "DELETE FROM summary")
    refused(run, tmp_path / "out", rf"has not finished: go on with: fedsim resume {run}$")


def test_a_run_that_goes_on_is_refused(tmp_path: Path) -> None:
    class Publishing(Silent):
        def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
            refused(tmp_path / "run", tmp_path / "out", "still going on; wait until it has ended$")

    run_job(small.job(CLIENT), InlineEngine(), tmp_path / "run", Publishing())
    publish(tmp_path / "run", tmp_path / "out")


def test_an_older_schema_is_refused(tmp_path: Path) -> None:
    run = shutil.copytree(VERSION_1, tmp_path / "run")
    refused(run, tmp_path / "out", "has schema 1, which does not say what may be given away; run its scenario anew")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_there_stays(what: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    mine = tmp_path / "out" / "mine" if what == "folder" else tmp_path / "out"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(RunFolderError, match=r"out exists already; choose another with --out, or remove it$"):
        publish(run_of("client"), tmp_path / "out")
    assert mine.read_text() == "mine" and list(tmp_path.rglob("*")) == sorted({tmp_path / "out", mine})


def test_a_folder_that_cannot_be_written_is_told(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"out cannot be written: Not a directory; choose another with --out$"):
        publish(run_of("client"), tmp_path / "file" / "out")


def test_a_folder_is_whole_or_not_there(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def full(path: Path, content: bytes) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("fedsim.checkpoints.write", full)
    refused(run_of("client"), tmp_path / "out", "out cannot be written: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_clients_ended_is_refused(tmp_path: Path) -> None:
    """When all of them fail is a fact of their rows."""
    failing = {
        **EXAMPLE,
        "data.partition": {"kind": "natural"},
        "train": {"learning_rate": 0.2, "batch_size": 8, "epochs": 1},
        "model": {"name": "mlp", "hidden": [4]},
        "evaluate.clients_every": 0,
        "cohort.client_timeout": 1e-6,
    }
    with pytest.raises(StoppedByPolicy, match="all 3 clients failed"):
        small.run(small.job(failing, data=marked(0)), tmp_path / "run")
    refused(
        tmp_path / "run", tmp_path / "out", r"what clients did ended it \(failure\).*central-validation figures end it"
    )


def test_a_run_that_the_clock_ended_is_refused(tmp_path: Path) -> None:
    small.run(small.job({**CLIENT, "stop.max_seconds": 1e-9}), tmp_path / "run")
    refused(tmp_path / "run", tmp_path / "out", r"what clients did ended it \(time\)")


def test_a_table_scaled_by_everybody_s_rows_is_refused_before_it_runs(tmp_path: Path) -> None:
    """One row moves mean and deviation, and with them every row of every client; as it is in the file it moves none."""
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{'yes' if a > b else 'no'}" for a, b in rng.normal(size=(120, 2))]
    (tmp_path / "table.csv").write_text("\n".join(["first,second,label", *lines]))
    data = {"name": "csv", "path": "table.csv", "label": "label", "partition": {"kind": "iid", "clients": 4}}
    (tmp_path / "table.toml").write_text(tomli_w.dumps({**small.SMALL, "data": data}))
    with pytest.raises(PrivacyError, match=r"data 'csv' scale columns by clients' rows.*kind = \"constants\"$"):
        small.job({**CLIENT, "data": data}, tmp_path)
    small.run(small.job({**CLIENT, "data": {**data, "preprocess": {"kind": "constants"}}}, tmp_path), tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "out")
    done = json.loads((tmp_path / "out" / "model.json").read_text())["preprocessing"]
    assert (done["fit"], done["scales"]) == ("constants", {"": {"first": [0.0, 1.0], "second": [0.0, 1.0]}})


def test_a_strategy_that_shares_nothing_is_refused(tmp_path: Path) -> None:
    small.run(small.job({**EXAMPLE, "strategy": {"name": "local"}}), tmp_path / "run")
    refused(tmp_path / "run", tmp_path / "out", "its strategy shares no model, so there is none to give away")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"architecture": 3}'])
def test_a_damaged_card_is_told(content: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = shutil.copytree(run_of("client"), tmp_path / "run")
    (run / "model" / "model.json").write_text(content)
    refused(run, tmp_path / "out", r"model\.json is damaged|cannot be read as the records of a run")


def test_a_model_that_has_gone_is_told(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = shutil.copytree(run_of("client"), tmp_path / "run")
    (run / "model" / "best.safetensors").unlink()
    refused(run, tmp_path / "out", r"best\.safetensors cannot be read: No such file or directory$")


# The command


def test_the_command_writes_a_folder(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_of("client"), "run")
    fedsim, files = Command(monkeypatch, capsys), ", ".join(FILES)
    assert fedsim("export", "run", "--public", "--out", "given") == (0, f"{files} in given\n", "")
    told = fedsim("export", "run", "--public", "--out", "again", "--json").out
    assert json.loads(told) == {"folder": "again", "files": list(FILES)}
    for arguments, message in (
        ((), "give one of --table, --public and --model"),
        (("--public", "--table", "rounds"), "give one of --table, --public and --model"),
        (("--public",), "--public writes a folder; name it with --out, and leave --format to tables"),
        (("--public", "--out", "new", "--format", "csv"), "--public writes a folder; name it with --out"),
        (("--public", "--out", "given"), "given exists already; choose another with --out, or remove it"),
    ):
        status, out, err = fedsim("export", "run", *arguments)
        assert (status, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1
