"""Every private form of a strategy on neighbouring data sets: what its uploads may depend on, and by how much.

A client trains on its rows; then, with one unit taken out (declared counts kept: zero-out), at the same parameters, on
the same coins. Every step's clipped sum may differ by C. With the releases of the first world put in the place of
those of the other, nothing that the client sends or keeps may differ at all, whatever its rows are.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.algorithm import Algorithm, Local, Upload, add_update
from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import ClientError
from fedsim.job import Job, prepare
from fedsim.local import Contribution, Received, Work
from fedsim.models.mlp import mlp
from fedsim.privacy import example
from fedsim.privacy.batches import poisson_batch
from fedsim.privacy.plan import ExampleMechanism
from fedsim.strategies.ditto import ditto
from fedsim.strategies.fedavg import fedavg
from fedsim.strategies.qfedavg import qfedavg
from fedsim.training import LocalClient
from tests import small
from tests.strategies.exchange import NAMES, of

PRIVATE = [name for name in NAMES if of(name).private]
"""The others are refused under `privacy.example` (contract suite)."""
ROUNDS = 2
"""So that what a client keeps of the first shows in the second."""
EPOCHS = 2
CLIP = 0.05
"""Clips every row."""


class Double(nn.Module):
    """A perceptron in float64, in which a sum of clipped gradients is exact enough to see a bound broken by 1e-7."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.net = mlp(shape, classes, "classification", hidden=(4,)).double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        logits: Tensor = self.net(x.double())
        return logits


def people(folders: Folders) -> Corpus:
    """Points of 40 people at eight clients, each person with one to three rows."""
    draw = np.random.default_rng(3)
    rows = np.repeat(np.arange(40), 1 + np.arange(40) % 3)
    y = draw.integers(0, 3, len(rows))
    return Corpus(
        name="people",
        task="classification",
        x=(draw.normal(0, 1, (len(rows), 5)) + y[:, None]).astype(np.float32),
        y=y.astype(np.int64),
        classes=("a", "b", "c"),
        clients=rows % 8,
        client_names=tuple(f"town {number}" for number in range(8)),
        groups=np.array([f"person {number}" for number in rows]),
        group_name="person",
    )


@cache
def job(name: str, unit: str | None = None, clipping: str = "flat") -> Job:
    """Eight clients, small batches and large noise under a strategy."""
    privacy = {
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "max_grad_norm": CLIP,
        "clipping": clipping,
    }
    personal = {"personal": "net.head.*"} if of(name).personal not in (None, "*") else {}
    return small.job(
        {
            **small.POINTS,
            "data.min_rows": 1,
            "train.batch_size": 4,
            "train.epochs": EPOCHS,
            "strategy": {"name": name, **personal},
            "privacy.example": {**privacy, **({"unit": unit} if unit is not None else {})},
        },
        model=Double,
        data=people,
    )


@dataclass
class World:
    """A client's rounds in one world: what each private step summed and released, and what the client sent.

    Attributes:
        sums: [D] each, before noise.
        public: what noise and divisor of each step are made of.
        releases: [D] each.
        sent: of each round.
    """

    sums: list[Tensor] = field(default_factory=list)
    public: list[tuple[float, ...]] = field(default_factory=list)
    releases: list[Tensor] = field(default_factory=list)
    sent: list[Contribution] = field(default_factory=list)


@contextmanager
def watched(world: World, replayed: Sequence[Tensor] | None, without: int | None) -> Iterator[None]:
    """Note sums and releases; put others in the place of the latter, and leave one unit out of every batch."""
    release = example.noisy_gradient

    def noting(clipped_sum: Tensor, *mechanism: Any) -> Tensor:
        world.sums.append(clipped_sum.clone())
        world.public.append(mechanism[:3])
        made = release(clipped_sum, *mechanism) if replayed is None else replayed[len(world.releases)]
        world.releases.append(made.clone())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "noisy_gradient", noting)
        patch.setattr("fedsim.training.poisson_batch", lambda *of: (drawn := poisson_batch(*of))[drawn != without])
        yield


def lived(work: Work, client: int, replayed: Sequence[Tensor] | None = None, without: int | None = None) -> World:
    """Some rounds of a client, from the initial model each."""
    world, state = World(), None
    shared = {name: torch.full_like(work.initial.vector, 0.01) for name in work.algorithm.shared}
    with watched(world, replayed, without):
        for number in range(1, ROUNDS + 1):
            world.sent.append(work.train(client, number, Received(work.initial, shared), state))
            state = world.sent[-1].state
    return world


def with_rows(work: Work, client: int, changed: Callable[[np.ndarray, np.ndarray], None]) -> Work:
    """The same work on a federation in which a client's train rows are others."""
    federation = work.job.federation
    x, y = federation.x.copy(), federation.y.copy()
    rows = slice(federation.offsets[client], federation.train_ends[client])
    changed(x[rows], y[rows])
    other = copy.copy(work)
    other.federation = replace(federation, x=x, y=y)
    other.job = replace(work.job, federation=other.federation)
    return other


def check_private_form(work: Work, client: int = 0) -> None:
    """The law of this file, for each of a client's units.

    Raises:
        AssertionError: a step's sum moves by more than C, or data reach the upload past the sums.
    """
    plan = work.job.privacy
    assert plan is not None and isinstance(plan.mechanism, ExampleMechanism)
    federation = work.job.federation
    units = federation.units(client) if plan.mechanism.grouped else np.arange(federation.train_rows[client])
    truth = lived(work, client)
    assert len(truth.sums) == ROUNDS * plan.steps[client], "every charged step is taken, and no other"
    moved = 0.0
    for unit in range(int(units.max()) + 1):
        other = lived(with_rows(work, client, partial(gone, of=units == unit)), client, truth.releases, unit)
        for ours, theirs in zip(truth.sums, other.sums, strict=True):
            distance = float((ours - theirs).norm())
            assert distance <= CLIP * (1 + 2**-23), f"unit {unit} moves a sum by {distance / CLIP:.3f} clips"
            moved = max(moved, distance)
        assert_same(truth, other)
    assert moved > 0.5 * CLIP, "nobody was taken out of anything"
    assert_same(truth, lived(with_rows(work, client, scrambled), client, truth.releases))


def gone(x: np.ndarray, y: np.ndarray, of: np.ndarray) -> None:
    """Nothing left of a unit's rows."""
    x[of], y[of] = 7.0, 0


def scrambled(x: np.ndarray, y: np.ndarray) -> None:
    """Other rows in the place of these."""
    x[:], y[:] = seeds.numpy_generator(5, "other rows").normal(0, 3, x.shape), (y + 1) % 3


def assert_same(first: World, second: World) -> None:
    """Given the same releases, all that leaves the client or stays for its next round is the same to the bit."""
    assert first.public == second.public, "noise or divisor depends on the data"
    for ours, theirs in zip(first.sent, second.sent, strict=True):
        assert torch.equal(ours.vector, theirs.vector), "data reach the update past the noised sums"
        assert ours.scalars == theirs.scalars, "data reach a scalar past the noised sums"
        assert ours.steps == theirs.steps
        assert ours.state.keys() == theirs.state.keys()
        for name, kept in ours.state.items():
            assert torch.equal(kept, theirs.state[name]), "data reach the client's state past the noised sums"


# --- the forms that strategies declare


@pytest.mark.parametrize("name", PRIVATE)
def test_one_row_moves_a_step_by_at_most_the_clip_and_nothing_else(name: str) -> None:
    check_private_form(Work(job(name)))


@pytest.mark.parametrize("unit", [None, "person"])
@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_so_does_a_person_however_gradients_are_clipped(unit: str | None, clipping: str) -> None:
    check_private_form(Work(job("ditto", unit, clipping)))


def test_a_second_pass_has_coins_of_its_own_and_leaves_the_first_as_it_was() -> None:
    """Noise used twice would cancel in a difference of releases; Ditto's global model is FedAvg's, to the bit."""
    once, twice = lived(Work(job("fedavg")), 0), lived(Work(job("ditto")), 0)
    assert all(torch.equal(*pair) for pair in zip(sent(once), sent(twice), strict=True))
    assert len(twice.sums) == 2 * len(once.sums)
    pairs = zip(twice.releases, twice.sums, twice.public, strict=True)
    noise = torch.stack([release * divisor - total for release, total, (_, _, divisor) in pairs])
    cosines = noise @ noise.T / noise.norm(dim=1).outer(noise.norm(dim=1))
    assert (cosines - torch.eye(len(noise))).abs().max() < 0.8  # 5 / sqrt(39 parameters)


def sent(world: World) -> list[Tensor]:
    return [contribution.vector for contribution in world.sent]


@pytest.mark.parametrize(("name", "settings", "passes"), [("fedrep", {"head_epochs": 3}, 5), ("apfl", {}, 4)])
def test_every_pass_over_the_rows_is_charged(name: str, settings: dict[str, int], passes: int) -> None:
    """By its epochs: FedRep's head has its own, its body the scenario's two."""
    scenario = job("fedavg").scenario.changed({"strategy": {**job(name).scenario.strategy.model_dump(), **settings}})
    one, all_of_them = job("fedavg").privacy, prepare(scenario, Folders.of(None, Path()), Double, people).privacy
    assert one is not None and all_of_them is not None
    assert all_of_them.steps.tolist() == (one.steps // EPOCHS * passes).tolist()
    assert all_of_them.epsilon > one.epsilon


# --- and what the law catches


def forged(algorithm: Algorithm) -> Work:
    """Work of an algorithm that claims a private form which it has not."""
    work = Work(job("fedavg"))
    work.algorithm = replace(algorithm, private="so it says")
    return work


def test_a_raw_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """q-FedAvg's, were it not refused when it is asked for."""
    work = forged(qfedavg())
    with pytest.raises(ClientError, match=r"loss on a client's rows is not covered by privacy\.example"):
        check_private_form(work)
    refusing = LocalClient.loss

    def open_to_all(client: LocalClient, params: Tensor) -> Tensor:
        bench = cast(Work, client.work)
        private, bench.private = bench.private, None
        try:
            return refusing(client, params)
        finally:
            bench.private = private

    monkeypatch.setattr(LocalClient, "loss", open_to_all)
    with pytest.raises(AssertionError, match="data reach the update past"):
        check_private_form(work)


def tilted(local: Local) -> Upload:
    """An update with the mean of the rows in it."""
    rows = cast(LocalClient, local).trained_on.inputs
    return Upload(local.train(local.received).params - local.received + rows.mean())


def counting(local: Local) -> Upload:
    """A state that says how often the first class occurs; of later rounds' updates it says more."""
    rows = cast(LocalClient, local).trained_on.targets
    update = local.train(local.received).params - local.received
    return Upload(update, state={"count": (rows == 0).sum()[None].double()})


def weighing(local: Local) -> Upload:
    """Steps as long as all rows together say."""
    level = cast(LocalClient, local).trained_on.inputs.mean().abs()
    return Upload(local.train(local.received, correct=lambda gradient, params: gradient * level).params)


@pytest.mark.parametrize(
    ("client", "how"),
    [
        (tilted, "data reach the update past"),
        (counting, "data reach the client's state past"),
        (weighing, "data reach the update past|moves a sum by"),
    ],
)
def test_what_is_read_off_the_rows_beside_training_is_caught(client: Callable[[Local], Upload], how: str) -> None:
    with pytest.raises(AssertionError, match=how):
        check_private_form(forged(Algorithm("forged", client, add_update)))


Sum = Callable[..., Tensor]
BROKEN: dict[str, tuple[Callable[[Sum], Sum], str]] = {
    "a clip too large": (lambda sum: lambda *of, **how: 1.1 * sum(*of, **how), r"moves a sum by 1\.1"),
    "no clip": (lambda sum: lambda flat, losses, clip, **how: sum(flat, losses, 9.0, **how), "moves a sum by"),
    "no data": (lambda sum: lambda flat, *of, **how: torch.zeros_like(flat.vector), "nobody was taken out"),
}


@pytest.mark.parametrize("bug", BROKEN)
def test_a_broken_clip_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, message = BROKEN[bug]
    monkeypatch.setattr(example, "clipped_gradient_sum", broken(example.clipped_gradient_sum))
    with pytest.raises(AssertionError, match=message):
        check_private_form(Work(job("fedavg")))


def test_steps_beyond_those_that_are_charged_are_refused() -> None:
    """Neither a second pass nor a longer one goes beyond the plan's steps, should an algorithm declare too little."""
    work = Work(job("fedavg"))
    assert work.job.privacy is not None
    charged = int(work.job.privacy.steps[0])
    for algorithm in (ditto(), replace(fedavg(), client=tripled)):
        work.algorithm = algorithm
        with pytest.raises(ClientError, match=f"private step {charged + 1} of a round that is charged for {charged}"):
            work.train(0, 1, Received(work.initial, {}), None)


def tripled(local: Local) -> Upload:
    """More epochs than the scenario has."""
    return Upload(local.train(local.received, epochs=3 * EPOCHS).params - local.received)
