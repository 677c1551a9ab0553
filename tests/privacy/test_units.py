"""A unit of several rows, such as a person: sampled, averaged, clipped and counted as one, whatever its rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import PrivacyError
from fedsim.job import Job
from fedsim.local import Received, Work
from fedsim.models.mlp import mlp
from fedsim.models.transformer import transformer
from fedsim.privacy import example
from fedsim.privacy.batches import poisson_batch
from fedsim.privacy.example import clipped_gradient_sum, private_module
from fedsim.privacy.plan import ExampleMechanism
from tests import small
from tests.privacy.test_example import clipped, floats, losses_of, one_by_one, tokens

OWNERS = torch.tensor([0, 2, 2, 0, 1, 2, 3, 2, 2])
"""Of nine rows: two, one, five and one."""


@pytest.fixture(params=["mlp", "transformer"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 model, nine rows and targets."""
    with seeds.scope(2, "model"):
        if request.param == "mlp":
            model, inputs = mlp((4, 4), 7, "classification", hidden=(6, 5)).double(), floats(9, 4, 4)
        else:
            model, inputs = transformer((6,), 7, "next-token", width=12, vocabulary=7).double(), tokens(9, 6, 7)
    return model, inputs, torch.randint(0, 7, model(inputs).shape[:-1], generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_mean_gradient_of_a_unit_is_clipped(case: tuple[nn.Module, Tensor, Tensor], per_layer: bool) -> None:
    """By one-example autograd; a bound that clips about half the units."""
    model, inputs, targets = case
    each = one_by_one(model, inputs, targets)
    means = torch.stack([each[unit == OWNERS].mean(0) for unit in range(4)])
    bound = float(means.norm(dim=1).median())
    sizes = [parameter.numel() for parameter in model.parameters()]
    parts = torch.split(means, sizes, dim=1) if per_layer else (means,)
    expected = torch.cat([clipped(part, bound / len(parts) ** 0.5) for part in parts], dim=1).sum(0)
    flat = private_module(model, "case")
    losses = losses_of(flat.module(inputs), targets)
    found = clipped_gradient_sum(flat, losses, bound, owners=OWNERS, per_layer=per_layer)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_a_unit_moves_the_sum_by_at_most_the_bound_however_many_rows_it_has(
    case: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, inputs, targets = case
    flat, bound = private_module(model, "case"), 0.01

    def total(rows: Tensor) -> Tensor:
        owners = torch.unique(OWNERS[rows], return_inverse=True)[1]
        losses = losses_of(flat.module(inputs[rows]), targets[rows])
        return clipped_gradient_sum(flat, losses, bound, owners=owners).clone()

    everyone = total(torch.arange(9))
    for unit in range(4):
        distance = (everyone - total(torch.arange(9)[OWNERS.ne(unit)])).norm()
        assert bound * (1 - 1e-6) <= distance <= bound * (1 + 1e-9)


def test_a_unit_with_a_row_that_overflows_counts_as_none() -> None:
    """Its other rows too: the mean of all of them is not finite."""
    flat = private_module(mlp((4,), 3, "classification").double(), "mlp")
    broken = floats(3, 4)
    broken[1] *= 1e200
    logits = flat.module(broken)
    losses = losses_of(logits, logits.argmin(1))  # the least likely class, so that no softmax saturates
    found = clipped_gradient_sum(flat, losses, 1.0, owners=torch.tensor([0, 1, 1])).clone()
    alone = clipped_gradient_sum(flat, losses_of(flat.module(broken[:1]), logits.argmin(1)[:1]), 1.0)
    assert torch.allclose(found, alone, rtol=1e-12) and alone.any()


# --- a client with patients


def patients(repeated: int = 1) -> Callable[[Folders], Corpus]:
    """Two clinics with 60 patients, of whom each has one to four rows; the first 30 each row several times."""

    def corpus(folders: Folders) -> Corpus:
        draw = np.random.default_rng(3)
        owner = np.repeat(np.arange(60), 1 + np.arange(60) % 4)
        y = draw.integers(0, 2, len(owner)).astype(np.int64)
        x = (draw.normal(0, 1, (len(owner), 5)) + y[:, None]).astype(np.float32)
        rows = np.repeat(np.arange(len(owner)), np.where(owner < 30, repeated, 1))
        return Corpus(
            name="clinics",
            task="classification",
            x=x[rows],
            y=y[rows],
            classes=("a", "b"),
            clients=owner[rows] % 2,
            client_names=("north", "south"),
            groups=owner[rows],
            group_name="patient_id",
        )

    return corpus


def job(repeated: int = 1, changes: small.Changes = small.NOTHING) -> Job:
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 0.1, "unit": "patient_id"}
    table = {**small.POINTS, "privacy.example": privacy, **changes}
    return small.job(table, data=patients(repeated))


def patients_of(job: Job, client: int) -> int:
    groups, federation = job.federation.groups, job.federation
    assert groups is not None
    return len(set(groups[federation.offsets[client] : federation.train_ends[client]].tolist()))


@pytest.mark.parametrize("repeated", [1, 5])
def test_rates_steps_and_divisors_count_patients_not_rows(repeated: int) -> None:
    planned = job(repeated)
    plan = planned.privacy
    assert plan is not None and isinstance(plan.mechanism, ExampleMechanism)
    assert plan.mechanism.unit == "patient_id"
    for client in range(2):
        count = patients_of(planned, client)
        assert planned.federation.train_rows[client] > count > 8
        assert plan.rates[client] == 8 / count
        assert plan.steps[client] == -(-count // 8)
        assert plan.mechanism.divisors[client] == pytest.approx(8)


def test_every_step_has_all_rows_of_some_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    seen: list[Tensor] = []

    def drawing(*of: Any) -> np.ndarray:
        drawn.append(poisson_batch(*of))
        return drawn[-1]

    def noting(*of: Any, owners: Tensor, per_layer: bool) -> Tensor:
        seen.append(owners)
        return clipped_gradient_sum(*of, owners=owners, per_layer=per_layer)

    monkeypatch.setattr("fedsim.training.poisson_batch", drawing)
    monkeypatch.setattr(example, "clipped_gradient_sum", noting)
    work = Work(job(changes={"train.steps": 60}))
    work.train(0, 1, Received(work.initial, {}), None)
    rows = np.bincount(work.job.federation.units(0))
    assert len(drawn) == 60
    for units, owners in zip(filter(len, drawn), seen, strict=True):
        assert owners.bincount().tolist() == rows[units].tolist()


def test_a_patient_with_each_row_five_times_trains_as_with_each_once() -> None:
    """The mean over rows is the same, and nothing else of a unit's rows enters: to rounding."""
    once, often = (Work(job(repeated)) for repeated in (1, 5))
    assert often.job.federation.train_rows[0] > 2 * once.job.federation.train_rows[0]
    first, second = (work.train(0, 1, Received(work.initial, {}), None) for work in (once, often))
    assert first.steps == second.steps
    assert (first.vector - second.vector).norm() <= 1e-5 * first.vector.norm()


def test_a_table_names_its_patients(tmp_path: Path) -> None:
    """`data.group` is the column, and `privacy.example.unit` the same name."""
    draw = np.random.default_rng(1)
    lines = [f"{draw.normal():.3f},p{patient},{'ab'[patient % 2]}" for patient in range(40) for _ in range(3)]
    (tmp_path / "visits.csv").write_text("\n".join(["pressure,patient_id,kind", *lines]))
    data = {"name": "csv", "path": "visits.csv", "label": "kind", "group": "patient_id"}
    changes = {
        "data": {**data, "preprocess": {"kind": "constants"}, "partition": {"kind": "iid", "clients": 2}},
        "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "unit": "patient_id"},
    }
    federation = small.job(changes, tmp_path).federation
    assert federation.group_name == "patient_id"
    assert federation.train_units().tolist() == [patients_of(small.job(changes, tmp_path), client) for client in (0, 1)]


def test_windows_that_share_measurements_are_no_units() -> None:
    """One measurement would move several rows, and epsilon would be claimed for one."""

    def overlapping(folders: Folders) -> Corpus:
        plain = small.points(0.0)(folders)
        assert isinstance(plain, Corpus)
        return replace(plain, preprocessing={"overlapping": True})

    example = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}
    with pytest.raises(PrivacyError, match="share measurements"):
        small.job({**small.POINTS, **example}, data=overlapping)
    small.job(small.POINTS, data=overlapping)
