"""Latent factors: the model is Koren's equation, and what a user is like never leaves it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import ModelError
from fedsim.model import Known, make_model
from fedsim.models.ratings import Ratings
from tests import small

USERS, ITEMS = 6, 30
TASTES: small.Changes = {
    "data": {"name": "tastes", "partition": {"kind": "natural"}, "split.central": 0.1},
    "model": {"name": "ratings", "users": USERS, "width": 3},
    "train": {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 8, "epochs": 2},
    "strategy": {"name": "fedper", "personal": "user*"},
    "rounds": 8,
}


def tastes() -> Callable[[Folders], Corpus]:
    """Users who differ by how much they like everything, and items that all like alike."""

    @cache
    def corpus() -> Corpus:
        user, item = np.divmod(np.arange(USERS * ITEMS), ITEMS)
        liking = 5 + 0.6 * (user - 2.5) + 1.5 * np.sin(item)
        return Corpus(
            name="tastes",
            task="regression",
            x=np.stack([user, USERS + item], axis=1),
            y=liking.astype(np.float32),
            classes=(),
            preprocessing={"kind": "none", "target": {"mean": 5.0, "std": 2.0, "range": [0.0, 10.0]}},
            clients=user,
            client_names=tuple(f"user {number}" for number in range(USERS)),
            vocabulary=USERS + ITEMS,
        )

    return lambda folders: corpus()


@torch.no_grad()
def test_a_rating_is_koren_bell_and_volinskys_equation_4() -> None:
    model = Ratings(3, 5, 2)
    for table in (model.user_bias, model.item_bias):
        torch.nn.init.normal_(table.weight)
    torch.nn.init.constant_(model.mean, 0.5)
    found = model(torch.tensor([[2, 3 + 4], [0, 3 + 0]]))
    expected = [
        0.5
        + float(model.user_bias.weight[user, 0] + model.item_bias.weight[item, 0])
        + sum(float(model.user.weight[user, k] * model.item.weight[item, k]) for k in range(2))
        for user, item in ((2, 4), (0, 0))
    ]
    assert found[:, 0].tolist() == pytest.approx(expected)


def test_what_a_user_is_like_never_leaves_it(tmp_path: Path) -> None:
    """The global model keeps its first user tables to the bit; each user's own row has moved, at that user alone."""
    job = small.job(TASTES, data=tastes())
    first, result = job.build_model(), small.run(job, tmp_path / "run")
    after = torch.nn.utils.parameters_to_vector(first.parameters()).clone()
    assert len(after) == len(result.weights.vector)
    sizes = {name: parameter.numel() for name, parameter in first.named_parameters()}
    moved, start = {}, 0
    for name, size in sizes.items():
        moved[name] = not torch.equal(after[start : start + size], result.weights.vector[start : start + size])
        start += size
    assert moved == {
        "mean": True,
        "user.weight": False,
        "user_bias.weight": False,
        "item.weight": True,
        "item_bias.weight": True,
    }
    own = result.values["metrics_last_round"]["personal/client-test/clients/rmse"]
    assert own < result.values["metrics"]["global/client-test/clients/rmse"]


@pytest.mark.parametrize(
    ("known", "settings", "message"),
    [
        (Known((3,), 1, "regression", 36), {"users": 6}, r"takes rows \[2\] of a user and an item"),
        (Known((2,), 2, "regression", 36), {"users": 6}, r"takes rows \[2\] of a user and an item"),
        (Known((2,), 4, "classification", 36), {"users": 6}, r"takes rows \[2\] of a user and an item"),
        (Known((2,), 1, "regression", 36), {"users": 36}, "users = 36 leaves no item among 36 tokens"),
        (Known((2,), 1, "regression", 36), {"users": 6, "width": 0}, "width = 0 should be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(known: Known, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_model("ratings", settings, known, Path(), seed=1)
