"""What is given to somebody without the run gives what the model gave, and says what it is."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import fedsim
from fedsim.card import markdown
from fedsim.errors import ModelError, RunFolderError
from fedsim.handover import Handed, opened, predict
from fedsim.model_export import ROWS, TOLERANCE, as_onnx, as_program, export_model
from fedsim.models.lstm import lstm
from fedsim.models.ratings import ratings
from fedsim.models.transformer import transformer
from fedsim.planning import fast
from fedsim.raw_rows import Preprocessing
from fedsim.scenario import load
from tests import small
from tests.handed import Made, made
from tests.test_cli import Command

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made("pixels", tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def own_net(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made("own net", tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def given(own_net: Made) -> Path:
    """The run with the user's own model and transform, exported as torch."""
    export_model(own_net.folder, "torch", own_net.place / "given")
    return own_net.place / "given"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def test_an_exported_model_is_the_run_s_to_the_bit(own_net: Made, given: Path) -> None:
    """The folder has all that is needed: the run may go. Its transform is there as well."""
    exported, of_run = opened(given), opened(own_net.folder)
    raw = np.arange(128).reshape(2, 8, 8) % 17
    x = torch.from_numpy(of_run.preprocessing(raw))
    assert np.array_equal(exported.preprocessing(raw), x)
    assert torch.equal(exported.module(x), of_run.module(x)) and not exported.module.training
    assert sorted(path.name for path in given.iterdir()) == [
        *("README.md", "model.json", "model.pt2", "sources", "weights.safetensors"),
    ]


def test_the_program_takes_any_number_of_rows(own_net: Made, given: Path) -> None:
    program, net = torch.export.load(given / "model.pt2").module(), fedsim.load(own_net.folder)
    for rows in (1, 2, 7):
        x = torch.randn(rows, 1, 8, 8)
        assert torch.equal(program(x), net(x))


def test_onnx_gives_what_torch_gives_on_raw_pixels(pixels: Made, tmp_path: Path) -> None:
    """The digits of the test set, as they come, by another runtime; normalising them is in the graph."""
    done = export_model(pixels.folder, "onnx", tmp_path / "given")
    session = onnxruntime.InferenceSession(tmp_path / "given" / "model.onnx")
    test = pixels.job.federation.central["test"].x
    found = session.run(["y"], {"x": np.round(test * 16)})[0]
    with torch.no_grad():
        wanted = fedsim.load(pixels.folder)(torch.from_numpy(test)).numpy()
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert done.difference is not None and done.difference <= TOLERANCE
    card = json.loads((tmp_path / "given" / "model.json").read_text())
    assert card["onnx"] == {"preprocessing_inside": True, "largest_difference": done.difference, "rows": ROWS}
    with pytest.raises(RunFolderError, match=r"given has a graph for onnxruntime and no weights.*--model torch"):
        fedsim.load(tmp_path / "given")


class Batchwise(nn.Module):
    """Another answer for two rows than for more, as code that looks at the number of rows may give."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out + float(np.random.default_rng(0).random()) * float(x.detach().sum() > 1e9)


def handed(module: nn.Module, shape: tuple[int, ...], *, whole: bool = False) -> Handed:
    preprocessing = Preprocessing({"kind": "none"}, shape, whole, 16 if whole else None, "classification")
    return Handed(module.eval(), {}, preprocessing, Path())


def test_what_cannot_be_traced_is_told() -> None:
    for export in (as_program, as_onnx):
        with pytest.raises(ModelError, match="the model cannot be exported"):
            export(handed(Batchwise(), (3,)))


def test_a_graph_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters may be wrong; the graph of a net whose weights have moved stands for one that is."""
    net = handed(nn.Linear(3, 2), (3,))

    def checked(graph: bytes) -> None:
        with torch.no_grad():
            next(net.module.parameters()).add_(1e-3)

    monkeypatch.setattr(onnx.checker, "check_model", checked)
    with pytest.raises(
        ModelError, match=r"the ONNX graph differs from torch by 0\.00\d+ on 100 rows, more than \d(\.\d)?e-05"
    ):
        as_onnx(net)


FAMILIES: dict[str, Callable[[], Handed]] = {
    "lstm": lambda: handed(lstm((12,), 5, "classification", vocabulary=16), (12,), whole=True),
    "lstm of floats": lambda: handed(lstm((6, 4), 5, "classification"), (6, 4)),
    "transformer": lambda: handed(transformer((12,), 16, "next-token", vocabulary=16), (12,), whole=True),
    "transformer, pooled": lambda: handed(transformer((12,), 5, "classification", vocabulary=16), (12,), whole=True),
}


@pytest.mark.proof
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_every_family_can_be_exported(make: Callable[[], Handed]) -> None:
    """Beside the nets of pixels: recurrence, attention, and the mask over what fills a row up."""
    torch.manual_seed(0)
    net = make()
    assert as_onnx(net)[1] <= TOLERANCE
    assert as_program(net)


def test_tokens_are_drawn_of_those_that_a_place_may_hold() -> None:
    """A user and a film share one vocabulary, but no place of a row; without the places it is one line."""
    torch.manual_seed(0)
    module = ratings((2,), 1, "regression", 16, users=5)
    net = handed(module, (2,), whole=True)
    told = replace(net.preprocessing, stored={"kind": "none", "places": [[0, 5], [5, 16]]})
    assert as_onnx(net._replace(preprocessing=told))[1] <= TOLERANCE
    with pytest.raises(ModelError, match="the model fails on rows drawn at random: IndexError"):
        as_onnx(net)


# An environment of links


def closure(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Packages and what they need, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needed = map(Requirement, found[name].requires or [])
            todo += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def linked(folder: Path, *names: str) -> Path:
    """A folder of links to some packages and to what they need, and nothing else."""
    folder.mkdir()
    for package in closure(names).values():
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder


def python(packages: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program that sees these packages and the standard library."""
    program = f"import sys; sys.path.insert(0, {str(packages)!r})\n{program}"
    command = [sys.executable, "-S", "-I", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WEIGHTS = """
import runpy
from pathlib import Path
import torch
from safetensors.torch import load_file
given = Path(sys.argv[1])
net = runpy.run_path(str(given / "sources" / "net.py"))["Net"]((1, 8, 8), 10, 6).eval()
missing, unexpected = net.load_state_dict(load_file(given / "weights.safetensors"), strict=False)
assert not missing and unexpected == ["scale"]
x = torch.arange(64.0).view(1, 1, 8, 8) / 64
assert torch.equal(net(x), torch.export.load(given / "model.pt2").module()(x))
assert not {"fedsim", "pydantic", "flwr", "ray", "opacus"} & set(sys.modules)
print(net(x).tolist())
"""


def test_weights_need_torch_and_safetensors_alone(own_net: Made, given: Path, tmp_path: Path) -> None:
    """The module is the user's own; a buffer that it does not save is in the file for those who want it."""
    done = python(linked(tmp_path / "packages", "torch", "numpy", "safetensors"), WEIGHTS, given)
    assert done.returncode == 0, done.stderr
    x = torch.arange(64.0).view(1, 1, 8, 8) / 64
    assert json.loads(done.stdout) == fedsim.load(own_net.folder)(x).tolist()


COMMANDS = """
from fedsim.cli import main
for command in sys.argv[1:]:
    sys.argv = ["fedsim", *command.split()]
    try:
        main()
    except SystemExit as ended:
        print("status", ended.code)
assert not {"flwr", "ray", "opacus"} & set(sys.modules)
"""


def test_predict_needs_neither_flower_nor_ray_nor_opacus(pixels: Made, command: Command, tmp_path: Path) -> None:
    """They are not there; a client's own model, which is put together from the run, says what it misses."""
    packages = linked(tmp_path / "packages", "torch", "numpy", "safetensors", "pydantic", "typer")
    (packages / "fedsim").symlink_to(ROOT / "fedsim")
    np.savez(tmp_path / "rows.npz", x=np.arange(320).reshape(5, 8, 8) % 17)
    asked = f"predict {pixels.folder} --data {tmp_path / 'rows.npz'}"
    done = python(packages, COMMANDS, asked, f"{asked} --client 1")
    assert (done.returncode, done.stdout) == (0, f"{command(*asked.split()).out}status 0\nstatus 2\n"), done.stderr
    assert "error: a client's own model is put together with flwr, which is not installed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# The command


def test_the_command_hands_over_and_asks(pixels: Made, command: Command, tmp_path: Path) -> None:
    out = command("export", str(pixels.folder), "--model", "torch", "--out", "given")
    assert out.status == 0 and out.out.startswith("weights.safetensors, model.pt2, model.json, README.md in given")
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 8, 8)))
    printed = command("predict", "given", "--data", "rows.npz")
    header, *lines = printed.out.splitlines()
    assert header.startswith("row,prediction,p(0)") and len(lines) == 2
    assert command("predict", "given", "--data", "rows.npz", "--out", "told.csv").out == "2 rows in told.csv\n"
    assert (tmp_path / "told.csv").read_text() == printed.out
    rows = json.loads(command("predict", "given", "--data", "rows.npz", "--json").out)
    assert [row["row"] for row in rows] == [0, 1] and str(rows[0]["prediction"]) == lines[0].split(",")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "rounds", "--model", "torch"), "give one of --table, --public and --model"),
        (("--client", "1", "--table", "rounds"), "--client goes with --model"),
        (("--model", "torch"), "--model writes a folder; name it with --out"),
        (("--model", "tf", "--out", "given"), "--model tf: give torch or onnx"),
        (("--model", "torch", "--out", "there"), "there exists already; choose another with --out, or remove it"),
        (("--model", "torch", "--out", "given", "--client", "1"), "gives clients no model of their own"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: tuple[str, ...], said: str, pixels: Made, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    printed = command("export", str(pixels.folder), *arguments)
    assert printed.status == 2 and said in printed.err and len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "given").exists()


# The card


PRIVATE = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}


def test_the_card_has_every_figure_and_says_what_is_promised(tmp_path: Path) -> None:
    small.run(small.job({"rounds": 1, **PRIVATE}), tmp_path / "run")
    card = opened(tmp_path / "run").card
    page = markdown(card, {"model.pt2": "the computation"})
    figures = {name: value for name, value in card["metrics"].items() if name.count("/") == 3 and np.isfinite(value)}
    assert len(figures) > 10 and all(
        f"| {name.split('/')[3]} | {value:.4f} |" in page for name, value in figures.items()
    )
    assert "\n".join(card["privacy"]["statement"]) in page
    assert "figures on them, has no noise and is not covered; `fedsim export --public` leaves it out." in page
    assert "mlp, " in page and "* `model.pt2`: the computation" in page and "* image: divide_by 16.0" in page


def test_the_card_of_a_run_without_privacy_promises_none(pixels: Made) -> None:
    assert "None was promised: single train rows may be told from the weights." in markdown(
        opened(pixels.folder).card, {}
    )


def test_the_card_says_whose_words_classes_are(pixels: Made) -> None:
    """Taken from rows, they tell every client what others have."""
    card, stored = opened(pixels.folder).card, {"kind": "table", "fit": "constants"}
    for declared, said in ((True, "were declared"), (False, "were taken from the rows of all clients, not declared")):
        page = markdown({**card, "preprocessing": {**stored, "declared": declared}}, {})
        assert f"* classes and categories {said}\n" in page
    page = markdown({**card, "preprocessing": {"kind": "image", "divide_by": 255.0, "declared": False}}, {})
    assert "* image: divide_by 255.0\n* classes were taken from the rows" in page


def test_a_client_s_card_is_about_its_own_model(tmp_path: Path) -> None:
    run = small.run(small.job({"rounds": 1, "strategy.name": "local"}), tmp_path / "run")
    export_model(run.folder, "torch", tmp_path / "given", 2)
    page, net = (tmp_path / "given" / "README.md").read_text(), fedsim.load(tmp_path / "given")
    assert "The own model of client 2 (2) after round 1, the last." in page and "each client's own" not in page
    assert f"| accuracy | {run.own_figures[2]:.4f} | this | its client's test rows | over all rows |" in page
    own = fedsim.load(run.folder, 2).state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())


def test_a_run_of_before_is_read_and_not_exported(pixels: Made, tmp_path: Path) -> None:
    """Its card lacks what the page tells."""
    run = shutil.copytree(pixels.folder, tmp_path / "run")
    card = json.loads((run / "model" / "model.json").read_text())
    old = {key: card[key] for key in ("task", "classes", "preprocessing", "metrics", "best_round", "privacy")}
    old["architecture"] = {key: card["architecture"][key] for key in ("model", "settings", "input_shape", "parameters")}
    (run / "model" / "model.json").write_text(json.dumps(old))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(fedsim.load(run)(x), fedsim.load(pixels.folder)(x))
    with pytest.raises(
        RunFolderError, match="does not say enough of its model to export it; give a run of this version"
    ):
        export_model(run, "torch", tmp_path / "given")


def test_a_policy_is_not_exported(tmp_path: Path) -> None:
    """It acts in an environment: nobody could ask it of rows."""
    fedsim.run(fast(load("cartpole", ["engine.kind=inline", "references=[]"])), out=tmp_path / "run")
    with pytest.raises(ModelError, match=r"a policy acts in its environment.*fedsim\.load"):
        export_model(tmp_path / "run", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="answers no rows"):  # before it is asked for another kind of file
        predict(tmp_path / "run", tmp_path / "rows.csv")
