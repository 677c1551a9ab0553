"""Clients that are trained at once come out as they do one by one, under every strategy, plain and private.

The oracle is the same client trained alone. Rounding differs, so the law is |together - alone| <= 1e-5 of the update's
norm in float32, and 1e-9 in float64, for nets small enough that no rounding decides a ReLU.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from fedsim.algorithm import Algorithm, Local, Upload, add_update, local_update
from fedsim.data.corpus import Corpus, Folders
from fedsim.devices import DeviceMemoryError
from fedsim.engine.inline import InlineEngine
from fedsim.errors import ClientError, ScenarioError
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import Chunk, client_number
from fedsim.job import Job
from fedsim.local import Contribution, Received, Work
from fedsim.parameters import to_record
from fedsim.replies import vector_of
from fedsim.states import State
from fedsim.stored import open_run
from fedsim.together import Member, train_together
from fedsim.worker import chunk_program
from tests import small
from tests.strategies.exchange import NAMES, of
from tests.strategies.test_contract import REFUSED

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

CLIENTS = 7
ALONE = {"constant": "reads the rows of its client by itself", "central": "one client"}
"""Strategies that are never stacked, and why."""
STACKED = [name for name in NAMES if name not in ALONE]
SETTINGS: Mapping[str, small.Changes] = {
    "plain": {},
    "momentum": {"train.momentum": 0.9, "train.weight_decay": 0.01, "train.clip": 0.5, "train.epochs": 2},
    "adam": {"train.optimizer": "adam", "train.learning_rate": 0.01, "train.clip": 0.1},
    "adamw": {"train.optimizer": "adamw", "train.learning_rate": 0.01, "train.weight_decay": 0.1},
}
PRIVATE: Mapping[str, small.Changes] = {
    "example": {"privacy.example": {"noise_multiplier": 0.5, "delta": 1e-3, "max_grad_norm": 0.1}},
    "per layer": {
        "privacy.example": {"noise_multiplier": 0.5, "delta": 1e-3, "max_grad_norm": 0.1, "clipping": "per-layer"}
    },
    "client": {"privacy.client": {"noise_multiplier": 1.0, "delta": 1e-2, "clip": 0.05}},
    "local": {"privacy.local": {"noise_multiplier": 1.0, "delta": 1e-2, "clip": 0.05}},
}


class Net(nn.Module):
    """A smooth net with a normalisation whose parameters have names, in float64."""

    def __init__(self, classes: int, kind: torch.dtype) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 4), nn.LayerNorm(4), nn.Linear(4, classes)
        self.kind = kind
        self.to(kind)

    def features(self, x: Tensor) -> Tensor:
        """[B, 4]."""
        features: Tensor = self.norm(self.body(x.flatten(1).to(self.kind))).tanh()
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def exact(classes: int) -> nn.Module:
    return Net(classes, torch.float64)


def usual(classes: int) -> nn.Module:
    return Net(classes, torch.float32)


def changed(name: str, changes: small.Changes, stack: int) -> dict[str, Any]:
    """A scenario's keys: clients of unequal sizes, in batches of which the last is short."""
    strategy: dict[str, Any] = {"name": name, **({"alpha_lr": 0.1} if name == "apfl" else {})}
    if any(key in changes for key in ("privacy.client", "privacy.local")) and name != "afl":
        strategy["weights"] = "uniform"
    base = {"data.partition": {"kind": "dirichlet", "clients": CLIENTS, "alpha": 0.5}, "strategy": strategy}
    return {**base, "train.batch_size": 20, "engine.stack": stack, **changes}


@cache
def job(name: str, kind: str, stack: int = 3, model: Callable[..., nn.Module] = exact) -> Job | None:
    """The job of a strategy under some settings; None where they are refused."""
    try:
        return small.job(changed(name, {**SETTINGS, **PRIVATE}[kind], stack), model=model)
    except ScenarioError as error:
        assert any(word in str(error) for word in ("theory covers", "no private form")), error
        return None


def received(work: Work) -> Received:
    """The first model, and vectors of the server that are not zero."""
    shared = {name: torch.full_like(work.initial.vector, 0.01) for name in work.algorithm.shared}
    return Received(work.initial, shared)


def members(work: Work, states: Mapping[int, State]) -> list[Member]:
    return [Member(number, states.get(number)) for number in range(CLIENTS) if work.federation.train_rows[number]]


def together(work: Work, states: Mapping[int, State], round: int) -> dict[int, Contribution]:
    """Everybody's round in stacks of W."""
    everybody, made = members(work, states), {}
    for start in range(0, len(everybody), work.width):
        stack = everybody[start : start + work.width]
        for member, result in zip(stack, train_together(work, stack, round, received(work)), strict=True):
            assert isinstance(result, Contribution), result
            made[member.number] = result
    return made


def assert_close(ours: Contribution, alone: Contribution, start: Tensor) -> None:
    """Everything that leaves the client or stays with it."""
    share = 1e-9 if start.dtype == torch.float64 else 1e-5
    assert (ours.vector - alone.vector).norm() <= share * alone.vector.norm()
    assert ours.state.keys() == alone.state.keys()
    for name, kept in ours.state.items():
        assert kept.shape == alone.state[name].shape
        assert (kept - alone.state[name]).norm() <= share * alone.state[name].norm()
    assert ours.scalars == pytest.approx(alone.scalars, rel=10 * share, abs=0)
    assert ours.loss == pytest.approx(alone.loss, rel=share, nan_ok=True)
    assert ours.norm == pytest.approx(alone.norm, rel=share)
    assert ours.steps == alone.steps


def check(found: Job, rounds: int = 2) -> None:
    """Two rounds, so that what clients keep counts."""
    work, states = Work(found), dict[int, State]()
    assert len(set(found.federation.train_rows.tolist())) > CLIENTS // 2, "unequal sizes"
    for number in range(1, rounds + 1):
        made = together(work, states, number)
        for client, ours in made.items():
            alone = work.train(client, number, received(work), states.get(client))
            assert_close(ours, alone, work.initial.vector)
            states[client] = alone.state


OWN_HALVES = [name for name in STACKED if of(name).client is not local_update or name == "fedavg"]
"""Strategies with a client half of their own, and one of those that share the plain one."""


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_is_its_clients_one_by_one(name: str) -> None:
    found = job(name, "plain")
    assert found is not None
    check(found)


@pytest.mark.parametrize(("name", "kind"), [pair for pair in product(OWN_HALVES, SETTINGS) if pair[1] != "plain"])
def test_so_it_is_under_every_local_optimiser(name: str, kind: str) -> None:
    """Momentum, decay, clipped steps, and the moments of Adam, whose clients have unequal numbers of steps."""
    if (found := job(name, kind)) is not None:
        check(found)
    else:
        assert set(of(name).optimizers) < {"sgd", "plain sgd", "adam"}


@pytest.mark.parametrize(("name", "kind"), list(product(OWN_HALVES, PRIVATE)))
def test_so_it_is_in_private(name: str, kind: str) -> None:
    """Every client's Poisson batches and noise are its own; contributions are clipped and noised one by one."""
    if (found := job(name, kind)) is not None:
        check(found)
    else:
        assert name in REFUSED[kind.replace("per layer", "example")]


@pytest.mark.parametrize("name", OWN_HALVES)
def test_so_it_is_in_float32(name: str) -> None:
    check(small.job({**changed(name, {}, 3), "train.learning_rate": 0.05}, model=usual))


@pytest.mark.parametrize("kind", ["momentum", "example"])
@pytest.mark.parametrize("stack", [2, 11])
def test_so_it_is_in_stacks_of_any_width(kind: str, stack: int) -> None:
    """One that leaves a last stack of one client, and one wider than the cohort."""
    found = job("scaffold" if kind == "example" else "ditto", kind, stack)
    assert found is not None
    check(found)


MODELS: Mapping[str, small.Changes] = {
    "cnn": {"model": {"name": "cnn", "channels": [2], "kernel": 3, "dense": 0, "activation": "tanh"}},
    "cnn with groups": {"model": {"name": "cnn", "channels": [2], "kernel": 3, "dense": 4, "norm": "group"}},
    "lstm": {"model": {"name": "lstm", "width": 4, "layers": 1}},
    "transformer": {"model": {"name": "transformer", "width": 4, "layers": 1, "heads": 2}},
}


@cache
def windows() -> Corpus:
    """Windows of a few tokens, for clients of unequal sizes."""
    rng, owners = np.random.default_rng(0), np.repeat(np.arange(CLIENTS), np.arange(12, 12 + 2 * CLIENTS, 2))
    text = rng.integers(0, 256, (len(owners), 4), dtype=np.uint8)
    return Corpus(
        name="windows",
        task="next-token",
        x=text[:, :-1],
        y=text[:, 1:],
        classes=tuple(map(str, range(256))),
        clients=owners,
        client_names=tuple(map(str, range(CLIENTS))),
    )


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("model", MODELS)
def test_so_it_is_for_every_family_of_models(model: str, private: bool) -> None:
    """In float32, as they are."""
    level = PRIVATE["example"] if private else {}
    base = {**MODELS[model], **level, "engine.stack": 4, "train.batch_size": 5, "train.learning_rate": 0.05}
    if model in ("lstm", "transformer"):
        natural = {"data": {"name": "windows", "partition": {"kind": "natural"}}}
        check(small.job({**base, **natural}, data=lambda folders: windows()), rounds=1)
    else:
        check(small.job({**changed("fedavg", {}, 4), **base, "train.batch_size": 100}), rounds=1)


# --- a client's failure is its own


def stack_of(work: Work, silent: int | None = None) -> list[Member]:
    return [Member(number, None, number == silent) for number in range(work.federation.clients)]


def sound(work: Work, failing: int, silent: int | None = None) -> dict[int, tuple[bytes, float]]:
    """What the others contribute, to the bit; the failing one fails as it does alone, or is not asked."""
    received_ = Received(work.initial, {})
    results = train_together(work, stack_of(work, silent), 1, received_)
    with pytest.raises(ClientError) as alone:
        work.train(failing, 1, received_, None)
    failure = results.pop(failing)
    assert isinstance(failure, ClientError)
    assert str(failure) == str(alone.value) or silent is not None
    assert all(isinstance(result, Contribution) for result in results), results
    return {
        place: (result.vector.numpy().tobytes(), result.loss)
        for place, result in enumerate(results)
        if isinstance(result, Contribution)
    }


def test_numbers_that_are_not_finite_fail_their_client_alone() -> None:
    """In the words of a client that trains alone; the others' bits do not depend on what it computes."""
    work = Work(small.job({**small.POINTS, "engine.stack": 5, "train.epochs": 2}, data=small.points(1e38)))
    assert sound(work, small.ODD) == sound(work, small.ODD, silent=small.ODD)


def test_a_client_that_breaks_the_computation_is_left_out() -> None:
    """A token that the model does not know: the others have the bits of a stack in which it was never asked."""

    def tokens(folders: Folders) -> Corpus:
        text = windows().x.copy() % 100
        text[windows().clients == small.ODD] += 100
        return replace(windows(), x=text, y=text)

    model = {"model": {"name": "lstm", "width": 4, "layers": 1, "vocabulary": 100}, "train.batch_size": 5}
    natural = {"data": {"name": "tokens", "partition": {"kind": "natural"}}, "data.split.central": 0.0}
    work = Work(small.job({**model, **natural, "engine.stack": CLIENTS}, data=tokens))
    assert sound(work, small.ODD) == sound(work, small.ODD, silent=small.ODD)


def test_where_nobody_fails_alone_all_fail_together() -> None:
    work = Work(small.job({"engine.stack": 5}))

    def half(local: Local) -> Upload:
        if local.received.ndim > 1:
            raise KeyError("only one")
        return Upload(local.train(local.received).params - local.received)

    work.algorithm = Algorithm("probe", half, add_update)
    results = train_together(work, stack_of(work), 1, Received(work.initial, {}))
    assert [str(result) for result in results] == [
        f"round 1, client {number}: trained with others, not one by one: KeyError: 'only one'" for number in range(5)
    ]


def test_too_little_memory_ends_the_run_also_when_the_others_train_again() -> None:
    """A narrower stack would have other bits, so it is nobody's failure."""
    work, tries = Work(small.job({"engine.stack": 5})), count()

    def half(local: Local) -> Upload:
        if local.received.ndim > 1 and next(tries):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if local.received.ndim > 1 or local.number == small.ODD:
            raise KeyError("odd")
        return Upload(local.train(local.received).params - local.received)

    work.algorithm = Algorithm("probe", half, add_update)
    with pytest.raises(DeviceMemoryError):
        train_together(work, stack_of(work), 1, Received(work.initial, {}))


def test_a_client_that_is_taken_out_of_its_chunk_has_the_same_bits() -> None:
    """As those are whose worker has died several times; its message names the chunk's clients, who are silent."""
    found = job("scaffold", "plain", 2)
    assert found is not None
    work = Work(found)
    program, strategy, grid = chunk_program(work), AlgorithmStrategy(work), InlineEngine().grid(found)
    record = to_record(work.layout, work.initial)
    messages = list(strategy.configure_train(1, record, ConfigRecord({"reply": "update"}), grid))
    for message in messages:
        message.metadata.__dict__["_message_id"] = str(client_number(message))
        message.content.config_records["config"]["reply"] = "update"
    whole = program(Chunk(messages, {})).replies
    beside = [client_number(message) for message in messages]
    for message, expected in zip(messages, whole, strict=True):
        message.content.config_records["config"]["beside"] = beside
        (reply,) = program(Chunk([message], {})).replies
        ours, theirs = vector_of(reply), vector_of(expected)
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


# --- and the bits are the same wherever stacks are


RUNS: Mapping[str, small.Changes] = {
    "states": {"strategy": {"name": "scaffold"}, "cohort.size": 14, "rounds": 2},
    "private": {"strategy": {"name": "fedper"}, **PRIVATE["example"]},
    "flower": {"strategy": {"name": "flower:FedAvg"}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_bits_do_not_depend_on_workers(kind: str, ray_engine: "RayEngine", tmp_path: Path) -> None:
    """Stacks depend on the cohort alone, and a chunk has whole ones; 20 clients and 14 leave a stack of two."""
    clients = {"data.partition": {"kind": "dirichlet", "clients": 20, "alpha": 1.0}, "data.min_rows": 10}
    found = small.job({**clients, "rounds": 1, **RUNS[kind], "engine.stack": 3})
    runs = [small.run(found, tmp_path / "inline")]
    runs += [small.run(found, tmp_path / f"ray{n}", small.with_workers(ray_engine, n)) for n in (1, 2)]
    assert len({run.fingerprint for run in runs}) == 1
    for run in runs:
        with closing(open_run(run.folder)) as read:
            assert {row.stack for row in read.clients() if row.phase == "train"} == {2, 3}
