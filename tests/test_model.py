"""Models by name, from a user's own file and as Python objects; and the trial on two rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.data.corpus import Corpus
from fedsim.errors import ModelError, ScenarioError
from fedsim.model import Known, check_model, make_model, model_name
from fedsim.problem import problem_for
from tests import small

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(3, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x))


class Fixed(nn.Linear):
    def __init__(self):
        super().__init__(3, 5)


def pair(shape, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 2))


def broken(classes: int):
    return nn.Linear(3, undefined)


def nothing():
    return None


ready = nn.Linear(3, 2)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def build(model: Any, folder: Path, **settings: Any) -> nn.Module:
    return make_model(model, settings, Known((3,), 2, "classification"), folder, seed=1)


def test_a_users_class_gets_what_it_has_parameters_for(folder: Path) -> None:
    net = build("mine.py:Net", folder, width=7)
    assert [tuple(parameter.shape) for parameter in net.parameters()] == [(7, 3), (7,), (2, 7), (2,)]
    assert build("mine.py:pair", folder)(torch.zeros(4, 3)).shape == (4, 2)


def test_a_users_model_is_built_from_the_seed(folder: Path) -> None:
    first, again = (build("mine.py:Net", folder).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_python_object_is_a_model_too(tmp_path: Path) -> None:
    class Own(nn.Linear):
        def __init__(self, shape: tuple[int, ...], classes: int) -> None:
            super().__init__(shape[0], classes)

    assert model_name(Own) == "Own"
    assert model_name("cnn") == "cnn"
    assert build(Own, tmp_path)(torch.zeros(1, 3)).shape == (1, 2)
    assert build(lambda classes: nn.Linear(3, classes), tmp_path)(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mine.py:broken", "model 'mine.py:broken' cannot be built: NameError: name 'undefined' is not defined"),
        ("mine.py:nothing", "model 'mine.py:nothing' gives a NoneType; it should give an nn.Module"),
        ("mine.py:ready", "model 'mine.py:ready' is a Linear; name a class"),
        ("mine.py:number", "model.name: 'mine.py:number' is of type int; name a function or class"),
    ],
)
def test_what_is_no_model_is_refused(folder: Path, model: str, message: str) -> None:
    with pytest.raises((ModelError, ScenarioError), match=message):
        build(model, folder)


def test_an_unknown_model_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ScenarioError, match=r"model.name: there is no 'ccn'. Did you mean cnn\?"):
        build("ccn", folder)
    with pytest.raises(ScenarioError, match=r"model.widht is not known. Did you mean width\?"):
        build("mine.py:Net", folder, widht=3)


def check(name: str, module: nn.Module, x: np.ndarray) -> None:
    check_model(name, module, problem_for("classification", ["a", "b"]), x, np.zeros(len(x), dtype=np.int64))


def test_a_sound_model_passes_and_is_left_alone(folder: Path) -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check("own", module, np.ones((5, 3), dtype=np.float32))
    assert module.training and module[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_trial_leaves_the_rows_alone() -> None:
    class InPlace(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.sub_(0.5))

    x = np.ones((5, 3), dtype=np.float32)
    check("own", InPlace(3, 2), x)
    assert (x == 1.0).all()


def test_a_wrong_number_of_outputs_is_named(folder: Path) -> None:
    with pytest.raises(ModelError) as error:
        check("mine.py:Fixed", build("mine.py:Fixed", folder), np.ones((5, 3), dtype=np.float32))
    assert str(error.value) == "model 'mine.py:Fixed' gives 5 outputs, the data has 2 classes"


def test_a_forward_that_raises_is_one_line() -> None:
    class Wrong(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise KeyError("no\nsuch")

    with pytest.raises(ModelError) as error:
        check("own", Wrong(3, 2), np.ones((5, 3), dtype=np.float32))
    assert str(error.value) == "model 'own' fails on rows [3] of float32: KeyError: 'no\\nsuch'"
    with pytest.raises(ModelError, match=r"model 'mlp' fails on rows \[4\] of uint8: RuntimeError: "):
        check("mlp", build("mlp", Path()), np.ones((5, 4), dtype=np.uint8))


class Embedded(nn.Module):
    """Knows four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embed(x).mean(1))
        return logits


@pytest.mark.parametrize("largest", [3, 4])
def test_too_small_an_embedding_fails_before_anything_trains(largest: int) -> None:
    """The first rows need not hold the largest token."""
    x = np.ones((40, 3), dtype=np.int64)
    x[-1, 1] = largest
    owners, names = np.repeat(np.arange(4), 10), tuple("abcd")
    corpus = Corpus("tokens", "classification", x, np.arange(40) % 2, ("no", "yes"), clients=owners, client_names=names)
    whole = {**small.POINTS, "data.split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0}}

    def prepared() -> None:
        small.job(whole, model=Embedded, data=lambda folders: replace(corpus, vocabulary=5))

    if largest < 4:
        prepared()
        return
    told = r"Embedded.*fails on rows .*IndexError.*tokens up to 4, so an embedding of them needs 5 \(parameter voc"
    with pytest.raises(ModelError, match=told):
        prepared()
