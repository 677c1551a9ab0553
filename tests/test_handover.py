"""A run's model in the hands of somebody else gives what it gave in the run, of rows that are made ready anew."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fedsim
from fedsim.errors import DataError, FedsimError, ModelError, RunFolderError, ScenarioError
from fedsim.handover import opened, predict
from fedsim.own import Own
from fedsim.problem import evaluate
from fedsim.raw_rows import Preprocessing
from tests import small
from tests.handed import KINDS, NET, Made, made


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A run of each kind, made when it is first asked for."""
    found: dict[str, Made] = {}

    def of(kind: str) -> Made:
        if kind not in found:
            found[kind] = made(kind, tmp_path_factory.mktemp("made"))
        return found[kind]

    return of


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, run_of: Callable[[str], Made]) -> Made:
    return run_of(request.param)


def raw_pixels(run: Made) -> np.ndarray:
    """The digits as they come, 0 to 16, of the central test set."""
    return np.round(run.job.federation.central["test"].x * 16)


# Rows


def rows_through(transform: Callable[[np.ndarray], np.ndarray], task: str, kind: str) -> Preprocessing:
    stored = {"kind": kind, "transform": "mine.py:own"}
    return Preprocessing(stored, (4,), kind == "bytes", None, task, transform=transform)


def test_a_transform_s_floats_are_those_of_training() -> None:
    """NumPy makes float64 of many things, and a model of float32 fails on them."""
    raw = np.arange(8.0).reshape(2, 4)
    ready = rows_through(lambda x: x / np.array([3.0, 7.0, 9.0, 11.0]), "classification", "none")(raw)
    assert ready.dtype == np.float32
    assert ready == pytest.approx(raw / [3, 7, 9, 11])


@pytest.mark.parametrize("task", ["next-token", "generation"])
def test_lines_of_text_go_through_a_transform_too(task: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("abcd\nxyz\n")
    read = rows_through(lambda x: x - 32, task, "bytes").read(file)
    assert [bytes(row) for row in read.x] == [b"ABCD", b"XYZ"]


@pytest.mark.parametrize("transform", [lambda x: x @ np.eye(3), lambda x: x[0], lambda x: x.astype(str)])
def test_a_transform_that_fails_on_new_rows_is_told_in_one_line(transform: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"^data\.transform: mine\.py:own (fails on|gives) ") as caught:
        rows_through(transform, "classification", "none")(np.ones((2, 4)))
    assert "\n" not in str(caught.value)


# The model


def test_a_loaded_model_has_the_figures_of_the_run(run: Made) -> None:
    net, test = fedsim.load(run.folder), run.job.federation.central["test"]
    assert not net.training
    problem = run.job.build_problem()
    figures = problem.metrics(evaluate(net, problem, test.x, test.y))
    recorded = run.result.values["metrics"]
    wanted = {name: recorded[f"global/central-test/rows/{name}"] for name in figures}
    assert figures == pytest.approx(wanted, rel=1e-5, nan_ok=True)  # the run lays images out otherwise


def test_a_loaded_model_has_the_run_s_bits(run: Made) -> None:
    net = fedsim.load(run.folder)
    kept = {**dict(net.named_buffers()), **net.state_dict()}
    for name, tensor in load_file(run.folder / "model" / "best.safetensors").items():
        assert torch.equal(kept[name], tensor)


def test_loading_draws_nothing(run_of: Callable[[str], Made]) -> None:
    """Initial values are drawn when a module is built; who loads one in the middle of a program should not feel it."""
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fedsim.load(run_of("pixels").folder)
    assert torch.equal(torch.rand(3), wanted)


def test_own_code_is_the_run_s_copy(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    """The file may have been changed since, or be on another machine."""
    run = run_of("own net")
    elsewhere = shutil.copytree(run.folder, tmp_path / "run")
    changed = (run.place / "net.py").read_text().replace("relu()", "tanh()")
    (run.place / "net.py").write_text(changed)
    net, test = fedsim.load(elsewhere), run.job.federation.central["test"]
    problem = run.job.build_problem()
    accuracy = problem.metrics(evaluate(net, problem, test.x, test.y))["accuracy"]
    assert accuracy == run.result.values["metrics"]["global/central-test/rows/accuracy"]


def test_classes_and_preprocessing_come_along_unless_the_module_has_its_own(run_of: Callable[[str], Made]) -> None:
    table, own = (vars(fedsim.load(run_of(kind).folder)) for kind in ("table", "own net"))
    assert table["classes"] == ("no", "yes") and table["preprocessing"].kind == "table"
    assert own["classes"] == "my own" and own["preprocessing"].kind == "image"


def test_a_class_that_was_imported_from_a_file_is_found_in_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handed_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("handed_net")
    small.run(small.job({"rounds": 1, "model": {"name": "mlp"}}, model=module.Net), tmp_path / "run")
    (tmp_path / "handed_net.py").unlink()
    monkeypatch.delitem(sys.modules, "handed_net")
    assert type(fedsim.load(tmp_path / "run")).__name__ == "Net"


def test_a_class_of_python_is_given_again(tmp_path: Path) -> None:
    """Code of a notebook or of a program that is run is in no file that could be imported for it."""

    class Plain(nn.Module):
        def __init__(self, shape: tuple[int, ...], classes: int) -> None:
            super().__init__()
            self.layer = nn.Linear(64, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x.flatten(1))
            return out

    result = small.run(small.job({"rounds": 1}, model=Plain), tmp_path / "run")
    with pytest.raises(
        ModelError, match=r"Plain' is code that is not here; give its class, fedsim\.load\(\.\.\., model="
    ):
        fedsim.load(tmp_path / "run")
    net = fedsim.load(tmp_path / "run", model=Plain)
    assert torch.equal(net.state_dict()["layer.weight"], result.weights.vector[:640].view(10, 64))
    with pytest.raises(RunFolderError, match=r"does not fit the model: it has 'layer\.bias', which the model has not$"):
        fedsim.load(tmp_path / "run", model=lambda shape, classes: nn.Identity())


# A client's own model


@pytest.mark.parametrize("strategy", ["fedper", "ditto", "local", "apfl"])
def test_a_client_s_model_has_the_figures_of_the_run(strategy: str, tmp_path: Path) -> None:
    result = small.run(small.job({"strategy.name": strategy, "evaluate.min_rows": 1}), tmp_path / "run")
    assert len(result.own_figures) == 5
    for client in (0, 3):
        card = opened(tmp_path / "run", client).card
        assert card["metrics"]["personal/client-test/rows/accuracy"] == result.own_figures[client]
    first, other = (fedsim.load(tmp_path / "run", client).state_dict() for client in (0, 3))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_client_s_model_is_put_together_by_what_the_run_was_given(tmp_path: Path) -> None:
    """Its own loss, metric and transform, which are in no file; and raw rows go through that transform."""

    def brighter(x: np.ndarray) -> np.ndarray:
        return 2 * x

    def off(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (1 - output.softmax(1)[torch.arange(len(target)), target]).square()

    right = fedsim.Metric(
        "right", lambda output, target: {"right": (output.argmax(1) == target).sum()}, lambda sums: sums["right"].item()
    )
    given: dict[str, Any] = {"loss": off, "metrics": [right], "transform": brighter}
    changes = {"strategy.name": "fedper", "evaluate.min_rows": 1}
    result = small.run(small.job(changes, own=Own(**given)), tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"used the loss .*off of a Python program"):
        fedsim.load(tmp_path / "run", 3)
    handed = opened(tmp_path / "run", 3, **given)
    figures = {name.rpartition("/")[2]: value for name, value in handed.card["metrics"].items()}
    assert figures["accuracy"] == result.own_figures[3]
    assert figures["right"] == figures["accuracy"] * handed.card["client"]["test_rows"]
    net = fedsim.load(tmp_path / "run", 3, **given)
    assert net.preprocessing(np.full((1, 8, 8), 16.0)).max() == 2.0  # type: ignore[operator]


def test_a_client_has_a_model_only_where_its_strategy_gives_it_one(
    run_of: Callable[[str], Made], tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"'fedavg' gives clients no model of their own; for the global one"):
        fedsim.load(run_of("pixels").folder, 2)
    small.run(small.job({"strategy.name": "local", "rounds": 1}), tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"its strategy shares no model; ask for a client's own with client"):
        fedsim.load(tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"client 5: .* has 5 clients, 0 to 4$"):
        fedsim.load(tmp_path / "run", 5)


def test_rows_of_a_client_have_its_scales(tmp_path: Path) -> None:
    """With scales of its own every client needs to be named, and its rows come out as they were in the run."""
    run = made("table", tmp_path, {"data.preprocess": {"kind": "per-client"}, "data.split.central": 0.0})
    with pytest.raises(DataError, match="every client has scales of its own"):
        predict(run.folder, tmp_path / "patients.csv")
    lines = (tmp_path / "patients.csv").read_text().splitlines()
    (tmp_path / "site.csv").write_text("\n".join([lines[0], *(line for line in lines if ",site-1," in line)]))
    read = opened(run.folder, 1).preprocessing.read(tmp_path / "site.csv")
    federation = run.job.federation
    own = federation.x[federation.offsets[1] : federation.offsets[2]]
    assert federation.names[1] == "site-1" and np.array_equal(ordered(np.asarray(read.x)), ordered(own))


# Rows


def ordered(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    return np.asarray(flat[np.lexsort(flat.T)])


def all_rows(run: Made) -> np.ndarray:
    federation = run.job.federation
    return np.concatenate([federation.x, *(rows.x for rows in federation.central.values())])


@pytest.mark.parametrize("kind", ["table", "numbers"])
def test_the_rows_of_a_table_are_made_ready_as_they_were(kind: str, run_of: Callable[[str], Made]) -> None:
    """The file that the run was made of gives the run's rows again, to the bit: as a file, and as columns in memory."""
    run = run_of(kind)
    preprocessing = opened(run.folder).preprocessing
    read = preprocessing.read(run.place / "patients.csv")
    assert np.array_equal(ordered(np.asarray(read.x)), ordered(all_rows(run)))
    assert read.names[0] == 2  # the line below the header
    header, *lines = (line.split(",") for line in (run.place / "patients.csv").read_text().splitlines())
    columns = dict(zip(header, zip(*lines, strict=True), strict=True))
    assert np.array_equal(preprocessing({**columns, "age": [float(age) for age in columns["age"]]}), read.x)


@pytest.mark.parametrize("kind", ["pixels", "own net"])
def test_pixels_are_made_ready_as_they_were(kind: str, run_of: Callable[[str], Made]) -> None:
    """The own net's run has a transform of the user's, which doubles what comes out."""
    run = run_of(kind)
    raw = np.round(run.job.federation.central["test"].x * (16 if kind == "pixels" else 8))
    made = opened(run.folder).preprocessing(raw[:, 0])
    assert np.allclose(made, run.job.federation.central["test"].x, atol=1e-6)


def test_texts_are_made_ready_as_they_were(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    """The run's own texts, without their classes, give its rows again."""
    run = run_of("words")
    texts = [line.partition("\t")[2] for line in (run.place / "texts.tsv").read_text().splitlines()]
    (tmp_path / "new.txt").write_text("\n".join(texts))
    preprocessing = opened(run.folder).preprocessing
    read = preprocessing.read(tmp_path / "new.txt")
    assert np.array_equal(ordered(np.asarray(read.x)), ordered(all_rows(run)))
    assert np.array_equal(preprocessing(texts), read.x)


@pytest.mark.parametrize(("kind", "files"), [("pictures", "pictures/*/*.png"), ("sounds", "sounds/*/*.wav")])
def test_files_are_made_ready_as_they_were(
    kind: str, files: str, run_of: Callable[[str], Made], tmp_path: Path
) -> None:
    run = run_of(kind)
    for file in run.place.glob(files):
        shutil.copy(file, tmp_path)
    read = opened(run.folder).preprocessing.read(tmp_path)
    assert np.allclose(ordered(np.asarray(read.x)), ordered(all_rows(run)), atol=1e-6)
    assert [Path(str(name)).stem for name in read.names] == [f"{number:02}" for number in range(60)]


def test_texts_of_a_next_byte_model_end_where_the_window_does(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    run, text = run_of("bytes"), "import numpy as np and more\nx = 1\n"
    (tmp_path / "texts.txt").write_text(text)
    read = opened(run.folder).preprocessing.read(tmp_path / "texts.txt")
    assert [bytes(row.tolist()) for row in read.x] == [b"t numpy as np and more"[-19:], b"x = 1"]
    assert list(read.names) == [1, 2]


# Answers


def test_answers_are_the_likeliest_classes(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    run = run_of("pixels")
    test, problem = run.job.federation.central["test"], run.job.build_problem()
    np.savez(tmp_path / "rows.npz", x=raw_pixels(run))
    told = predict(run.folder, tmp_path / "rows.npz")
    assert told.columns == ["row", "prediction", *(f"p({digit})" for digit in range(10))]
    right = sum(row[1] == str(label) for row, label in zip(told.rows, test.y, strict=True))
    assert right / len(test.y) == run.result.values["metrics"]["global/central-test/rows/accuracy"]
    odds = np.array([row[2:] for row in told.rows])
    assert np.allclose(odds.sum(1), 1) and [row[0] for row in told.rows] == list(range(len(test.y)))
    loss = -np.log(odds[np.arange(len(odds)), test.y]).mean()
    assert np.isclose(loss, problem.metrics(evaluate(fedsim.load(run.folder), problem, test.x, test.y))["loss"])


def test_numbers_are_in_the_data_s_units(run_of: Callable[[str], Made]) -> None:
    """Over the whole file the error is that which the problem measures on all rows."""
    run = run_of("numbers")
    problem, federation = run.job.build_problem(), run.job.federation
    told = predict(run.folder, run.place / "patients.csv")
    assert told.columns == ["row", "score"]
    lines = [line.split(",") for line in (run.place / "patients.csv").read_text().splitlines()]
    true = [float(line[lines[0].index("score")]) for line in lines[1:]]
    rmse = np.sqrt(np.mean([(row[1] - value) ** 2 for row, value in zip(told.rows, true, strict=True)]))
    y = np.concatenate([federation.y, *(rows.y for rows in federation.central.values())])
    measured = problem.metrics(evaluate(fedsim.load(run.folder), problem, all_rows(run), y))
    assert np.isclose(rmse, measured["rmse"], rtol=1e-5)


def test_the_next_byte_is_that_of_the_last_place(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    run = run_of("bytes")
    (tmp_path / "texts.txt").write_text("self.\nimport")
    told = predict(run.folder, tmp_path / "texts.txt")
    net, classes = fedsim.load(run.folder), run.job.federation.classes
    for row, text in zip(told.rows, (b"self.", b"import"), strict=True):
        odds = net(torch.tensor([list(text)])).detach()[0, -1].double().softmax(0)
        assert row[1:] == [classes[int(odds.argmax())], pytest.approx(float(odds.max()))]


def test_what_stands_between_fields_is_seen(run_of: Callable[[str], Made], tmp_path: Path) -> None:
    for name, mark in (("commas", ","), ("semicolons", ";"), ("tabs", "\t")):
        (tmp_path / f"{name}.csv").write_text(TABLE.replace(",", mark))
    told = [predict(run_of("table").folder, file).rows for file in sorted(tmp_path.iterdir())]
    assert len(told) == 3 and told[0] == told[1] == told[2]


# What is not right is said


TABLE = "age,dose,sex\n41,2.5,f\n"
WRONG_TABLES = {
    "a column is missing": ("age,sex\n41,f\n", r"there is no column 'dose'"),
    "a number is none": (TABLE + "old,2.5,f\n", r"line 3: column 'age' is 'old', no finite number"),
    "a number is out of its range": (TABLE + "141,2.5,f\n", r"line 3: column 'age' is 141, outside 0 to 120 years"),
    "a category is new": (TABLE + "41,2.5,x\n", r"line 3: column 'sex' is 'x', none of f, m"),
    "the unit is another": ("age [months],dose,sex\n41,2.5,f\n", r"column 'age' is in 'months', data\.schema declares"),
    "a value is missing": (TABLE + ",2.5,f\n", r"line 3: column 'age' is missing"),
    "a field is missing": (TABLE + "41,2.5\n", r"line 3: 2 fields where the header has 3"),
}


@pytest.mark.parametrize(("text", "said"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_wrong_table_is_told(text: str, said: str, run_of: Callable[[str], Made], tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        predict(run_of("table").folder, tmp_path / "new.csv")


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "rows.npz", **arrays)
        return folder / "rows.npz"

    return write


def text(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "rows.txt").write_bytes(content)
        return folder / "rows.txt"

    return write


def picture(height: int, width: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "rows.png")
        return folder / "rows.png"

    return write


WRONG_ROWS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "pixels too bright": (
        "pixels",
        npz(x=np.full((2, 8, 8), 255)),
        r"pixels from 255 to 255; the model's go from 0 to 16",
    ),
    "another size": ("pixels", npz(x=np.zeros((2, 9, 8))), r"rows have shape \[1, 9, 8\], the model takes \[1, 8, 8\]"),
    "not finite": ("pixels", npz(prepared=np.full((2, 1, 8, 8), np.nan)), r"rows\.npz, row 0: has a value that is not"),
    "texts for numbers": ("pixels", npz(x=np.array(["a"])), r"pixels of type <U1; give numbers"),
    "no array": (
        "pixels",
        npz(y=np.zeros(3)),
        r"holds no array 'prepared', rows as the model takes them, and no raw 'x'",
    ),
    "raw values of a table": (
        "table",
        npz(x=np.zeros((2, 3))),
        r"holds no array 'prepared', rows as the model takes them$",
    ),
    "no .npz": ("pixels", lambda folder: text(b"no")(folder).rename(folder / "no.npz"), r"not a sound \.npz of plain"),
    "no file": ("pixels", lambda folder: folder / "none.npz", r"none\.npz: No such file"),
    "a token that there is not": ("bytes", npz(prepared=np.full((1, 19), 256)), r"row 0: has a token outside 0 to 255"),
    "an empty line": ("bytes", text(b"one\n\ntwo\n"), r"rows\.txt, line 2: is empty"),
    "nothing": ("bytes", text(b""), r"rows\.txt: is empty"),
    "an empty text": ("words", text(b"fine\n   \n"), r"rows\.txt, line 2: is empty"),
    "another tokenizer": ("tokenized otherwise", text(b"fine\n"), r"tokenizer: the model read hashed words 0000"),
    "no picture": ("pictures", text(b"fine\n"), r"rows\.txt: is no image that Pillow knows"),
    "a picture of another size": ("pictures", picture(7, 5), r"rows\.png: is 7x5, data says 6x5"),
    "no sound": ("sounds", text(b"fine\n"), r"rows\.txt: is no audio"),
    "no file in the folder": ("pictures", lambda folder: folder, r"holds no files"),
    "bad encoding": ("bytes", text(b"caf\xe9\n"), r"byte 3 is not UTF-8"),
}


@pytest.mark.parametrize(("kind", "write", "said"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_rows_are_told(
    kind: str, write: Callable[[Path], Path], said: str, run_of: Callable[[str], Made], tmp_path: Path
) -> None:
    run = run_of("words" if kind == "tokenized otherwise" else kind).folder
    rows = tmp_path / "rows"
    rows.mkdir()
    if kind == "tokenized otherwise":
        run = shutil.copytree(run, tmp_path / "run")
        card = json.loads((run / "model" / "model.json").read_text())
        card["preprocessing"]["digest"] = "0000"
        (run / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=said) as told:
        predict(run, write(rows))
    assert "\n" not in str(told.value)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no run": (shutil.rmtree, r"is no run and no exported model: .*model\.json: No such file or directory$"),
    "unfinished": (
        lambda run: shutil.rmtree(run / "model"),
        r"has not finished, so it has no model yet: fedsim resume",
    ),
    "card": (lambda run: (run / "model/model.json").write_text("{"), r"model\.json is damaged: JSONDecodeError"),
    "empty card": (
        lambda run: (run / "model/model.json").write_text("{}"),
        r"model\.json is damaged: it does not desc",
    ),
    "card of another kind": (
        lambda run: (run / "model/model.json").write_text('{"architecture": 3, "task": "t", "classes": []}'),
        r"model\.json is damaged: it does not describe a model",
    ),
    "odd card": (lambda run: changed(run, input_shape=3), r"model\.json is damaged: TypeError"),
    "weights": (
        lambda run: (run / "model/best.safetensors").unlink(),
        r"best\.safetensors cannot be read: No such file",
    ),
    "cut weights": (lambda run: (run / "model/best.safetensors").write_bytes(b"1234"), r"is no file of tensors"),
    "another size": (
        lambda run: changed(run, settings={"hidden": [4]}),
        r"'body\.0\.weight' is \[16, 64\], not \[4, 64\]",
    ),
    "more layers": (
        lambda run: changed(run, settings={"hidden": [16, 4]}),
        r"'body\.1\.\w+' is missing|is \[\d+, \d+\]",
    ),
    "another model": (lambda run: changed(run, model="mlpp"), r"model\.name: there is no 'mlpp'\. Did you mean mlp\?"),
}


def changed(run: Path, **architecture: Any) -> None:
    file = run / "model" / "model.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps({**card, "architecture": {**card["architecture"], **architecture}}))


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_told(
    damage: Callable[[Path], object], said: str, run_of: Callable[[str], Made], tmp_path: Path
) -> None:
    run = shutil.copytree(run_of("pixels").folder, tmp_path / "run")
    damage(run)
    with pytest.raises(FedsimError) as told:
        fedsim.load(run)
    assert re.search(said, str(told.value)), str(told.value)
