"""A user's own loss, metrics, transform and data: what they do to a run, and what is refused before one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fedsim
from fedsim.data.build import build
from fedsim.data.corpus import Corpus
from fedsim.data.transform import of_federation
from fedsim.engine.ray import RayEngine
from fedsim.errors import DataError, FedsimError, ScenarioError
from fedsim.own import Metric, Own, OwnProblem, with_own
from fedsim.problem import evaluate
from fedsim.replay import replay
from fedsim.stored import open_run, stored_environment
from fedsim.tasks.classification import Classification
from fedsim.tasks.reconstruction import Reconstruction
from tests import small

MINE = '''
"""A loss, metrics and a transform of one's own."""

import numpy as np
import torch
from torch.nn import functional

from fedsim import Metric


def squared(output, target):
    return (output.softmax(1) - functional.one_hot(target, output.shape[1])).square().sum(1)


def mean(output, target):
    return functional.cross_entropy(output, target)


def spread_mean(output, target):
    return functional.cross_entropy(output, target).expand(len(output))


def cut_off(output, target):
    return functional.cross_entropy(output.detach(), target, reduction="none")


def failing(output, target):
    return output[:, 99]


def infinite(output, target):
    return functional.cross_entropy(output, target, reduction="none") / 0


top3 = Metric(
    "top3",
    lambda output, target: {"hits": (output.topk(3).indices == target[:, None]).any(1).sum(), "rows": len(target)},
    lambda sums: sums["hits"] / sums["rows"],
)
share = Metric("share", lambda o, target: {"right": (o.argmax(1) == target).float().mean()}, lambda s: s["right"])
widest = Metric("widest", lambda output, target: {"most": output.max()}, lambda s: s["most"])
each = Metric("each", lambda output, target: {"all": output[:, 0]}, lambda s: s["all"].mean())
accuracy = Metric("accuracy", top3.sums, top3.value)
broken = Metric("broken", lambda output, target: {"n": len(output)}, lambda s: s["m"])
nothing = Metric("nothing", lambda output, target: None, lambda s: 0.0)
five = 5


def halved(x):
    return x / 2


def grouped(x):
    return x - x.mean()


def shorter(x):
    return x[1:]


def writing(x):
    x /= 2
    return x


def infinite_rows(x):
    return np.where(x > 0.9, np.inf, x)


def too_large(x):
    return x.astype(np.float64) * 1e300


def digits(folders, seed):
    from fedsim.data.sources.digits import digits

    corpus = digits(folders)
    rows = np.random.default_rng(seed).permutation(len(corpus.x))[:600]
    return type(corpus)(corpus.name, corpus.task, corpus.x[rows], corpus.y[rows], corpus.classes)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def squared(output: Tensor, target: Tensor) -> Tensor:
    """As in `MINE`."""
    return (output.softmax(1) - functional.one_hot(target, output.shape[1])).square().sum(1)


TOP3 = Metric(
    "top3",
    lambda output, target: {
        "hits": (output.topk(3).indices == target[:, None]).any(1).sum(),
        "rows": torch.tensor(len(target)),
    },
    lambda sums: float(sums["hits"][0] / sums["rows"][0]),
)
ALL = {
    "task": {"loss": "mine.py:squared", "metrics": ["mine.py:top3"], "headline": "top3"},
    "data.transform": "mine.py:halved",
}


def test_a_loss_is_what_steps_descend_on_and_a_metric_is_of_all_rows(folder: Path) -> None:
    """Against one step and figures made by hand on the same model and rows."""
    one_step = {
        "rounds": 1,
        "data.partition": {"kind": "iid", "clients": 1},
        "train.steps": 1,
        "train.batch_size": 2000,
    }
    job = small.job({**ALL, **one_step}, folder)
    result = small.run(job, folder / "run")
    module, rows = job.build_model(), job.federation.rows(0, "train")
    whole = torch.from_numpy(rows.x)
    squared(module(whole), torch.from_numpy(rows.y)).mean().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.2 * parameter.grad)
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
    torch.testing.assert_close(result.weights.vector, expected, rtol=1e-5, atol=1e-6)
    test = job.federation.central["test"]
    output, y = module(torch.from_numpy(test.x)).detach(), torch.from_numpy(test.y)
    metrics = result.values["metrics"]
    hits = [int(y[row]) in output[row].topk(3).indices.tolist() for row in range(len(y))]
    assert metrics["global/central-test/rows/top3"] == pytest.approx(np.mean(hits))
    assert metrics["global/central-test/rows/loss"] == pytest.approx(float(squared(output, y).mean()), rel=1e-5)
    assert result.values["headline"]["metric"] == "global/central-test/rows/top3"
    assert result.values["chosen_by"] == "global/central-validation/rows/top3"


def test_a_transform_is_applied_to_every_row(folder: Path) -> None:
    plain, halved = small.job().federation, small.job({"data.transform": "mine.py:halved"}, folder).federation
    assert np.array_equal(halved.x, plain.x / 2) and halved.x.dtype == np.float32
    assert np.array_equal(halved.central["test"].x, plain.central["test"].x / 2)
    assert halved.preprocessing == {**plain.preprocessing, "transform": "mine.py:halved"}
    assert halved.digest != plain.digest


def test_a_transform_reaches_clients_that_are_found_when_they_are_asked_for(folder: Path) -> None:
    crowd = {"data": {"name": "synthetic", "clients": 20, "partition": {"kind": "natural"}, "split": {"central": 0.0}}}
    plain = small.job(crowd).federation.rows(7, "train")
    halved = small.job({**crowd, "data.transform": "mine.py:halved"}, folder).federation.rows(7, "train")
    assert np.array_equal(halved.x, plain.x / 2) and np.array_equal(halved.y, plain.y)


def test_a_transform_gives_no_tokens_beyond_the_vocabulary() -> None:
    """A model's embedding ends there; a client would fail in the middle of a run."""
    rows = np.arange(40) % 5
    corpus = Corpus("words", "classification", np.stack([rows, rows], axis=1), rows % 2, ("a", "b"), vocabulary=6)
    federation = build(corpus, 1, {"kind": "iid", "clients": 2})
    assert of_federation(federation, lambda x: x + 1, "next").vocabulary == 6
    for moved, found in ((lambda x: x + 2, "2 to 6"), (lambda x: x - 1, "-1 to 3")):
        with pytest.raises(DataError, match=f"data.transform: moved gives tokens {found} of a vocabulary of 6"):
            of_federation(federation, moved, "moved")


def test_own_parts_do_not_depend_on_where_they_run(folder: Path, ray_engine: RayEngine) -> None:
    """Workers find parts of files by themselves, and get Python objects by value; all give the same bits."""
    inline = small.run(small.job(ALL, folder), folder / "inline")
    given = Own(squared, [TOP3], lambda x: x / 2)
    there = small.run(small.job(ALL, folder), folder / "ray", ray_engine)
    objects = small.run(small.job({"task.headline": "top3"}, folder, own=given), folder / "objects", ray_engine)
    assert inline.fingerprint == there.fingerprint == objects.fingerprint
    assert inline.values["metrics"] == there.values["metrics"] == objects.values["metrics"]


def test_a_run_keeps_what_was_written_and_goes_on_with_the_same_alone(folder: Path) -> None:
    small.run(small.job({**ALL, "rounds": 1}, folder), folder / "run")
    kept = stored_environment(folder / "run")
    assert (folder / "run" / "sources" / "mine.py").read_text() == MINE
    assert kept["loss"] == "mine.py:squared" and kept["metrics"] == ["mine.py:top3"]
    assert kept["origins"]["mine.py:squared"] == "mine.py"
    fedsim.resume(folder / "run", rounds=2)
    whole = small.run(small.job({**ALL, "rounds": 2}, folder), folder / "whole")
    assert open_run(folder / "run").summary()["fingerprint"] == whole.fingerprint
    (folder / "mine.py").write_text(MINE.replace("square()", "abs()"))
    with pytest.raises(ScenarioError, match=r"own files: mine\.py has changed"):
        fedsim.resume(folder / "run", rounds=3)


def test_objects_are_asked_for_again(tmp_path: Path) -> None:
    values = {**small.SMALL, "rounds": 1}
    parts: dict[str, Any] = {"loss": squared, "metrics": [TOP3], "transform": np.sqrt, "data": arrays()}
    values["data"] = {"name": "digits", "partition": {"kind": "natural"}}
    result = fedsim.run(values, **parts, out=tmp_path / "run")
    kept = stored_environment(result.folder)
    assert kept["sources"].keys() == {"test_own.py"} and kept["data"] == "arrays"
    for missing in parts:
        rest = {name: part for name, part in parts.items() if name != missing}
        with pytest.raises(ScenarioError, match=rf"fedsim\.resume\(path, {missing}=\.\.\.\)"):
            fedsim.resume(result.folder, rounds=2, **rest)
    longer = fedsim.resume(result.folder, rounds=2, **parts)
    assert longer.fingerprint == fedsim.run({**values, "rounds": 2}, **parts, out=tmp_path / "whole").fingerprint
    data = parts.pop("data")
    assert replay(result.folder, 2, 1, data=data, own=Own(**parts)).verdict.same


def arrays(rows: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, rows)
    return rng.random((rows, 4)) + y[:, None], y, np.array(["north", "south", "west"])[np.arange(rows) % 3]


def corpus_of(data: Any) -> Corpus:
    from fedsim.data.given import corpus_of

    return corpus_of(*data)


def test_arrays_are_data() -> None:
    x, y, client = arrays()
    whole = small.job({"data.partition": {"kind": "natural"}}, data=(x, y, client)).federation
    assert list(whole.names) == ["north", "south", "west"] and list(whole.classes) == ["0", "1", "2"]
    assert sorted(
        map(tuple, [*whole.x.tolist(), *whole.central["test"].x.tolist(), *whole.central["validation"].x.tolist()])
    ) == sorted(map(tuple, x.astype(np.float32).tolist()))
    assert corpus_of((x, y.astype(float))).task == "regression"
    assert corpus_of((x, y[:, None] == np.arange(3))).task == "multi-label"
    assert corpus_of((x, np.array(["a", "b"])[y % 2])).classes == ("a", "b")
    text = np.zeros((4, 5), np.uint8)
    assert corpus_of((text, text)).task == "next-token"


def test_classes_are_not_taken_from_rows_unnoticed(caplog: pytest.LogCaptureFixture) -> None:
    x, y, client = arrays()
    corpus_of((x, y.astype(float), client))
    assert not caplog.messages
    corpus_of((x, y, client))
    assert caplog.messages == ["arrays: its classes were taken from the rows of all clients"]


def test_data_of_python_need_no_name(tmp_path: Path) -> None:
    x, y, client = arrays()
    table = {"partition": {"kind": "natural"}, "min_rows": 1}
    content = {**small.SMALL, "data": table, "rounds": 1}
    fedsim.run(content, data=(x, y, client), out=tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"used the data arrays of a Python program"):
        fedsim.resume(tmp_path / "run", rounds=2)
    assert fedsim.resume(tmp_path / "run", rounds=2, data=(x, y, client)).values["status"] == "done"
    with pytest.raises(ScenarioError, match=r"^scenario: data\.name is missing; name a data set, or give"):
        fedsim.run(content)
    with pytest.raises(ScenarioError, match=r"data: nmae is not known\. Did you mean name\?"):
        fedsim.run({**content, "data": {**table, "nmae": "digits"}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((3, 2)),), "data: 1 arrays; give \\(x, y\\) or \\(x, y, client\\)"),
        ((np.zeros((3, 2)), np.zeros(2, int)), r"x has 3 rows and y has shape \[2\]"),
        ((np.zeros(3), np.zeros(3, int)), r"array x has type float64 and shape \[3\]"),
        ((np.zeros((3, 2)), np.zeros((3, 2), int)), "array y has type int64"),
        ((np.zeros((3, 2)), np.zeros(3, int), np.zeros(3)), "array client has type float64"),
        ((np.full((40, 2), np.nan), np.arange(40) % 2), "a value in row 0 of x that is not finite"),
        ((np.full((40, 2), 1e39), np.arange(40) % 2), "a value in row 0 of x that is not finite"),
        (([[1, 2], [3]], [0, 1]), "x is no array, its rows differ in length"),
    ],
)
def test_arrays_that_are_no_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(FedsimError, match=message):
        small.job({"data.partition": {"kind": "iid", "clients": 2}}, data=data)


def test_data_of_a_function_may_depend_on_the_seed(folder: Path) -> None:
    named = {"data.name": "mine.py:digits"}
    first, again, other = (small.job({**named, "seed": seed}, folder).federation for seed in (1, 1, 2))
    assert first.digest == again.digest
    assert {*first.x.sum((1, 2, 3)).tolist()} != {*other.x.sum((1, 2, 3)).tolist()}

    def drawn(seed: int) -> Corpus:
        x = np.random.random((60, 3)).astype(np.float32)  # the global generator, which is seeded
        return Corpus("drawn", "classification", x, np.arange(60) % 2, ("a", "b"))

    assert small.job(data=drawn).federation.digest == small.job(data=drawn).federation.digest
    with pytest.raises(ScenarioError, match=r"returned int, not a Corpus"):
        small.job(data=lambda seed: seed)
    with pytest.raises(ScenarioError, match=r"data\.rows is missing"):
        small.job(data=lambda rows: rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task.loss": "mine.py:mean"},
            r"mean gives shape \[\] for 1 row; return a tensor of one value per row, \[1\]",
        ),
        ({"task.loss": "mine.py:spread_mean"}, "spread_mean gives a row another loss alone than beside others"),
        ({"task.loss": "mine.py:cut_off"}, "cut_off has no gradient"),
        ({"task.loss": "mine.py:failing"}, r"failing fails on outputs \[1, 10\] and targets \[1\]: IndexError"),
        ({"task.loss": "mine.py:infinite"}, "infinite is not finite"),
        ({"task.loss": "mine.py:squarred"}, "Did you mean squared?"),
        ({"task.loss": "mine.py:five"}, "is of type int; name a function or class"),
        ({"task.loss": "squared"}, "loss = 'squared': write it as file.py:name"),
        ({"task.loss": "other.py:squared"}, "there is no file"),
        ({"task.metrics": ["mine.py:share"]}, "'share' is not additive: 'right' of 7 rows is"),
        ({"task.metrics": ["mine.py:widest"]}, "'widest' is not additive"),
        ({"task.metrics": ["mine.py:each"]}, "has sums {'own/each/all': 7} of 7 rows and {'own/each/all': 3} of 3"),
        ({"task.metrics": ["mine.py:accuracy"]}, "'accuracy' is the name of another metric"),
        ({"task.metrics": ["mine.py:broken"]}, "'broken' fails in its value: KeyError"),
        ({"task.metrics": ["mine.py:nothing"]}, "'nothing' fails in its sums"),
        ({"task.metrics": ["mine.py:five"]}, r"'mine\.py:five' is of type int; give a fedsim\.Metric"),
        ({"task.headline": "acuracy"}, r"task\.headline: .*Did you mean accuracy\?"),
        ({"task.los": "mine.py:squared"}, r"Did you mean loss\?"),
        ({"data.transform": "mine.py:grouped"}, "grouped gives row 0 another value alone than among others"),
        ({"data.transform": "mine.py:shorter"}, r"shorter gives shape \[1\d+, 1, 8, 8\] for 1\d+ rows"),
        ({"data.transform": "mine.py:writing"}, "writing fails on rows .*read-only"),
        ({"data.transform": "mine.py:infinite_rows"}, "infinite_rows gives a value in row 0 that is not finite"),
        ({"data.transform": "mine.py:too_large"}, r"too_large gives a value in row \d+ that is not finite"),
        ({"data.transform": "mine.py:squared"}, "squared fails on rows"),
    ],
)
def test_what_is_wrong_with_own_parts_is_one_line(changes: dict[str, Any], message: str, folder: Path) -> None:
    """And it is told before anything is trained or written."""
    with pytest.raises(FedsimError, match=message) as error:
        fedsim.run(small.scenario(changes, folder), out=folder / "run")
    assert "\n" not in str(error.value) and str(error.value).startswith("small: ")
    assert not (folder / "run").exists()


def test_a_metric_without_rows_is_not_defined() -> None:
    problem = with_own(
        Classification(("a", "b", "c")), Own(metrics=[TOP3]), None, Path(), {"own/top3/hits": 1, "own/top3/rows": 1}
    )
    assert np.isnan(problem.metrics(problem.zeros())["top3"])
    divided = Metric(
        "recall", lambda o, t: {"hits": t.sum(), "all": t.sum()}, lambda s: int(s["hits"][0]) / int(s["all"][0])
    )
    none = {**problem.zeros(), "own/recall/hits": np.zeros(1), "own/recall/all": np.zeros(1), "rows": np.ones(1)}
    judged = OwnProblem(Classification(("a", "b", "c")), None, (divided,), "recall", {})
    assert np.isnan(judged.metrics(none)["recall"])


def test_an_own_loss_is_the_mean_over_all_rows() -> None:
    """Also where the task's own is that of some: reconstruction's is that of normal rows."""
    problem = with_own(
        Reconstruction(2), Own(lambda output, target: output[:, 0] * 0 + target[:, -1] + 1), None, Path(), {}
    )
    y = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=np.float32)
    found = problem.metrics(evaluate(torch.nn.Identity(), problem, y[:, :2], y))
    assert found["loss"] == 1.5


def test_a_model_runs_once_for_all_metrics() -> None:
    """And it may work in place."""

    class Counting(torch.nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x.sub_(0.5))

    lengths = {"own/top3/hits": 1, "own/top3/rows": 1}
    problem = with_own(Classification(("a", "b", "c")), Own(metrics=[TOP3]), None, Path(), lengths)
    found = evaluate(Counting(4, 3), problem, np.ones((20, 4), np.float32), np.arange(20) % 3, batch_size=10)
    assert Counting.calls == 2 and found["own/top3/rows"] == found["rows"] == 20 == found["own/top3/hits"]


def test_lower_metrics_are_better_when_lower(folder: Path) -> None:
    miss = Metric("miss", TOP3.sums, lambda sums: 1 - TOP3.value(sums), lower=True)
    result = fedsim.run(small.scenario({"task.headline": "miss"}), metrics=[miss], out=folder / "run")
    rounds = open_run(folder / "run").metrics()
    values = rounds["global/central-validation/rows/miss"]
    assert result.values["best_round"] == min(values, key=lambda number: (values[number], number))
    assert result.values["headline"]["lower_is_better"] is True
