"""Small jobs that tests share: a few clients of digits, and clients of a user's own with a mark on one."""

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.engine import Workforce
from fedsim.engine.inline import InlineEngine
from fedsim.federating import CorpusSource, DataSource
from fedsim.job import Job, ModelSource, prepare
from fedsim.own import NOTHING as NO_PARTS
from fedsim.own import Own
from fedsim.progress import Silent
from fedsim.rounds import run_job
from fedsim.scenario import Scenario, parse
from fedsim.scenario_files import override
from fedsim.summary import Result

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

Changes = Mapping[str, Any]
NOTHING: Changes = {}
SMALL: dict[str, Any] = {
    "title": "Small",
    "seed": 1,
    "rounds": 3,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 5, "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"learning_rate": 0.2, "batch_size": 32, "epochs": 1},
    "engine": {"kind": "inline"},
}
PRIVATE: Changes = {
    "model": {"name": "cnn", "preset": "small"},
    "privacy.example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0},
}
ODD = 2
"""The number of the client in `points` that `mark` tells apart."""


def scenario(changes: Changes = NOTHING, folder: Path = Path()) -> Scenario:
    """The small scenario with some keys changed, dotted as on the command line."""
    return parse(override(SMALL, changes), folder, "small")


def job(
    changes: Changes = NOTHING,
    folder: Path = Path(),
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NO_PARTS,
) -> Job:
    """The small scenario, prepared."""
    return prepare(scenario(changes, folder), Folders.of(None, folder), model, data, own)


def run(prepared: Job, out: Path, engine: Workforce | None = None) -> Result:
    """Run a job, in this process unless an engine is given."""
    return run_job(prepared, engine or InlineEngine(), out, Silent())


def with_workers(engine: "RayEngine", count: int) -> "RayEngine":
    """The same Ray with `count` of its workers."""
    fewer = copy.copy(engine)
    fewer.workers, fewer.actors = count, engine.actors[:count]
    return fewer


def points(mark: float, clients: int = 4, rows: int = 40) -> CorpusSource:
    """Two clouds in the plane, the same for every client; a third feature is `mark` for client `ODD`, else 0."""

    @cache
    def corpus() -> Corpus:
        rng = np.random.default_rng(0)
        owners = np.repeat(np.arange(clients), rows)
        y = rng.integers(0, 2, len(owners))
        plane = rng.normal(0, 1, (len(owners), 2)) + 4 * y[:, None]
        third = np.where(owners == ODD, mark, 0.0)[:, None]
        return Corpus(
            name="points",
            task="classification",
            x=np.concatenate([plane, third], axis=1).astype(np.float32),
            y=y.astype(np.int64),
            classes=("low", "high"),
            clients=owners,
            client_names=tuple(f"client-{number}" for number in range(clients)),
        )

    return lambda folders: corpus()


POINTS: Changes = {"data.partition": {"kind": "natural"}, "data.split.central": 0.0, "train.batch_size": 8}
"""Changes that suit `points`; without a central set, whose rows would be marked too."""
PICKY = '''
"""A net that refuses a batch now and then, so that clients fail whose states then stay what they were."""

from torch import nn


class Picky(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, above: float):
        super().__init__()
        self.above, self.layer = above, nn.Linear(64, classes)

    def forward(self, x):
        if self.training and x[0].sum() > self.above:
            raise ValueError("this row is too bright")
        return self.layer(x.flatten(1))
'''
"""The text of a model's file."""
