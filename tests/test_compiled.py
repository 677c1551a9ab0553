"""A compiled step computes what autograd and torch.optim do, padded batches included."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import seeds
from fedsim.compiled import Libraries, Program, libraries_of
from fedsim.errors import ClientError, ModelError, ScenarioError
from fedsim.local import Received, Work
from fedsim.models.lstm import lstm
from fedsim.parameters import FlatModule, Weights
from fedsim.problem import Problem
from fedsim.stored import stored_environment
from fedsim.tasks.classification import Classification
from fedsim.tasks.next_token import NextToken
from fedsim.training import Step
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

BATCH, GROUP, RATE = 4, 3, 0.3
CLIENTS = {GROUP: 1}
CLASSES = Classification(("a", "b", "c"))

compiles = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="engine.compile needs a C++ compiler"
)


class Net(nn.Module):
    """Tied weights, one that a group does not write, a frozen parameter, a floating and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.wide, self.narrow = nn.Linear(6, 2 * BATCH * GROUP), nn.Linear(2 * BATCH * GROUP, 3)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.full((6,), 0.5), requires_grad=False)
        self.shift: Tensor
        self.order: Tensor
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.register_buffer("order", torch.randperm(6))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.narrow(torch.tanh(self.wide(x)))
        x = torch.tanh(self.one(x)) * self.scale + self.shift
        logits: Tensor = self.head(torch.tanh(self.two(x[:, self.order]))) + beside
        return logits


def net() -> nn.Module:
    with seeds.scope(1, "net"):
        return Net().double()


def rows(count: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(count)
    x = torch.randn(count, 6, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=draws)


@pytest.fixture(scope="module", autouse=True)
def cache(pytestconfig: pytest.Config) -> Iterator[Path]:
    """Libraries are kept from one run of the tests to the next."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def libraries() -> Libraries:
    return libraries_of(net(), "net", CLASSES, *rows(BATCH), BATCH, plain=True, clients=CLIENTS)


@pytest.fixture
def flat() -> FlatModule:
    return FlatModule(net().train())


@pytest.fixture
def program(libraries: Libraries, flat: FlatModule) -> Program:
    return Program(libraries, flat)


def unheard(loss: float) -> None:
    """Who notes no losses."""


def weights(flat: FlatModule) -> Weights:
    return Weights(flat.vector, flat.buffers).clone()


@compiles
@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_the_gradient_is_that_of_autograd(program: Program, flat: FlatModule, count: int) -> None:
    """Rows that fill a batch weigh nothing; of more rows than a batch the mean is over all of them."""
    x, y = rows(count)
    found, loss = program.gradient(weights(flat), x, y)
    expected = functional.cross_entropy(flat.module(x), y)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(found, flat.differentiate(expected), rtol=1e-11, atol=1e-14)


def orders(count: int, epochs: int = 1) -> list[tuple[Tensor, int]]:
    draws = torch.Generator().manual_seed(epochs)
    return [(torch.randperm(count, generator=draws), -(-count // BATCH)) for _ in range(epochs)]


@compiles
@pytest.mark.parametrize(
    ("count", "epochs"),
    [(1, 1), (BATCH + 1, 1), (3 * BATCH, 1), (3 * BATCH - 1, 1), (4 * BATCH + 1, 1), (BATCH + 1, 3)],
)
def test_steps_are_those_of_torch(program: Program, flat: FlatModule, count: int, epochs: int) -> None:
    """Single steps, a group, one with padding, a group and single steps, a group over the end of an epoch."""
    x, y = rows(count)
    start, noted, seen = weights(flat), list[float](), list[Tensor]()
    moved = program.descend(start, RATE, (x, y), orders(count, epochs), noted.append)
    observed = program.descend(start, RATE, (x, y), orders(count, epochs), unheard, seen.append)
    torch.testing.assert_close(start.vector, flat.vector, rtol=0, atol=0)  # the next client starts there too
    optimizer = torch.optim.SGD([p for p in flat.module.parameters() if p.requires_grad], RATE)
    batches = [picked for order, _ in orders(count, epochs) for picked in torch.split(order, BATCH)]
    assert len(noted) == len(seen) == len(batches)
    for place, picked in enumerate(batches):
        optimizer.zero_grad(set_to_none=False)
        loss = functional.cross_entropy(flat.module(x[picked]), y[picked])
        torch.autograd.backward(loss)
        assert noted[place] == pytest.approx(loss.item(), rel=1e-11)
        torch.testing.assert_close(seen[place], flat.gradient, rtol=1e-10, atol=1e-13)
        optimizer.step()
    torch.testing.assert_close(moved, flat.vector, rtol=1e-11, atol=1e-14)
    assert torch.equal(observed, moved)  # who looks on changes nothing


@compiles
def test_an_order_may_be_cut_short(program: Program, flat: FlatModule) -> None:
    """A client of two steps takes them on the first rows of its order."""
    x, y = rows(3 * BATCH)
    [(order, _)] = orders(3 * BATCH)
    cut = program.descend(weights(flat), RATE, (x, y), [(order, 2)], unheard)
    alone = program.descend(weights(flat), RATE, (x, y), [(order[: 2 * BATCH], 2)], unheard)
    assert torch.equal(cut, alone)


@compiles
def test_without_steps_nothing_moves(program: Program, flat: FlatModule) -> None:
    assert torch.equal(program.descend(weights(flat), RATE, rows(BATCH), [], unheard), flat.vector)


@compiles
def test_losses_are_told_in_order_until_one_is_refused(program: Program, flat: FlatModule) -> None:
    x, y = rows(3 * BATCH)
    told, heard = list[float](), list[float]()
    program.descend(weights(flat), RATE, (x, y), orders(3 * BATCH), told.append)

    def note(loss: float) -> None:
        heard.append(loss)
        if len(heard) == 2:
            raise ClientError("the second step")

    with pytest.raises(ClientError, match="the second step"):
        program.descend(weights(flat), RATE, (x, y), orders(3 * BATCH), note)
    assert heard == told[:2]


@compiles
def test_buffers_are_those_that_were_received(program: Program, flat: FlatModule) -> None:
    """A library holds no values of the model that it was made of."""
    x, y = rows(BATCH)
    before = weights(flat)
    moved = before._replace(buffers=before.buffers + 1.0)
    flat.load(moved)
    expected = flat.differentiate(functional.cross_entropy(flat.module(x), y)).clone()
    found = program.gradient(moved, x, y)[0]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    assert not torch.allclose(program.gradient(before, x, y)[0], expected)


@compiles
def test_a_client_that_fails_leaves_nothing_behind(program: Program, flat: FlatModule) -> None:
    x, y = rows(BATCH)
    before = program.descend(weights(flat), RATE, (x, y), orders(BATCH), unheard)
    for epochs in (2, 2 * GROUP):  # single steps, and groups
        with pytest.raises(ClientError, match=r"the compiled step failed: index out of bounds"):
            program.descend(weights(flat), RATE, (x, y + 1), orders(BATCH, epochs), unheard)
    assert torch.equal(program.descend(weights(flat), RATE, (x, y), orders(BATCH), unheard), before)


@compiles
def test_another_process_finds_the_library(libraries: Libraries, cache: Path) -> None:
    """What a library is called does not depend on the process that asks for it: else each start would compile."""
    known = sorted(cache.rglob("*.so"))
    code = (
        "from tests.test_compiled import *;"
        "found = libraries_of(net(), 'net', CLASSES, *rows(BATCH), BATCH, plain=True, clients=CLIENTS);"
        "print(found.digest)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == libraries.digest
    assert sorted(cache.rglob("*.so")) == known


class Branch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Hidden(nn.Linear):
    """A tensor of its own that is no buffer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.secret)

    secret = torch.ones(6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), "draws numbers while it trains"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), "changes its buffers while it trains, so it cannot"),
        (Branch(6, 3), "cannot be compiled.*data-dependent"),
        (Hidden(6, 3), "cannot be compiled"),
    ],
    ids=["dropout", "batch norm", "branch", "hidden tensor"],
)
def test_what_a_library_could_not_hold_is_refused(model: nn.Module, reason: str) -> None:
    x, y = rows(BATCH)
    with pytest.raises(ModelError, match=f"model 'odd'.*{reason}") as refused:
        libraries_of(model, "odd", CLASSES, x.float(), y, BATCH, plain=True, clients=CLIENTS)
    assert "set engine.compile = false" in str(refused.value)


def test_torchs_recurrent_kernel_is_refused() -> None:
    problem: Problem = NextToken()
    x, y = torch.zeros(BATCH, 5, dtype=torch.int64), torch.zeros(BATCH, 5, dtype=torch.int64)
    model = lstm((5,), 256, "next-token", width=4, layers=1)
    with pytest.raises(ModelError, match="model 'lstm' has torch's own recurrent kernel"):
        libraries_of(model, "lstm", problem, x, y, BATCH, plain=True, clients=CLIENTS)


class Mixing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


@pytest.mark.proof
@compiles
def test_a_model_that_mixes_rows_is_refused() -> None:
    """It would see the rows that fill a batch."""
    x, y = rows(BATCH)
    with pytest.raises(ModelError, match="model 'mixing' mixes the rows of a batch"):
        libraries_of(Mixing(6, 3), "mixing", CLASSES, x.float(), y, BATCH, plain=False)


@pytest.mark.proof
@compiles
def test_so_is_one_that_does_so_with_two_rows_of_a_client() -> None:
    """Whose rows are tried decides: a row alone is its own mean, and then padding is not seen."""
    with pytest.raises(ModelError, match="model 'Centring' mixes the rows of a batch"):
        small.job({"engine.compile": True}, model=Centring)


class Centring(nn.Linear):
    def __init__(self, classes: int) -> None:
        super().__init__(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) - x.flatten(1).mean(0))


@compiles
@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1])
def test_rows_may_lie_in_memory_as_they_like(program: Program, flat: FlatModule, count: int) -> None:
    """A library takes memory as it lies, and would read columns for rows."""
    x, y = rows(count)
    at = Weights(flat.vector, flat.buffers)
    across = x.t().contiguous().t()
    assert not across.is_contiguous()
    (ours, loss), (expected, same) = program.gradient(at, across, y), program.gradient(at, x, y)
    assert torch.equal(ours, expected) and loss == same
    moved, straight = (program.descend(at, RATE, (inputs, y), orders(count, GROUP), unheard) for inputs in (across, x))
    assert torch.equal(moved, straight)


def test_without_a_compiler_the_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    needed = pytest.raises(ScenarioError, match=r"engine\.compile = true needs a C\+\+ compiler.*apt install g\+\+")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), needed:
        libraries_of(net(), "net", CLASSES, *rows(BATCH), BATCH, plain=True, clients=CLIENTS)
    assert not list(tmp_path.rglob("*.so"))


COMPILED: small.Changes = {"engine.compile": True}


def assert_as_eager(changes: small.Changes) -> None:
    """Every client of a job, of unequal numbers of rows, does the same compiled and not."""
    job = small.job({**COMPILED, **changes})
    assert job.compiled is not None
    compiled, eager = Work(job), Work(replace(job, compiled=None))
    inits = compiled.algorithm.shared
    shared = {name: first(compiled.initial.vector, job.federation.clients) for name, first in inits.items()}
    floor = 8 * torch.finfo(torch.float32).eps * float(compiled.initial.vector.norm())  # last digits of the model
    for client in range(job.federation.clients):
        found, expected = (work.train(client, 1, Received(work.initial, shared), None) for work in (compiled, eager))
        distance = float((found.vector - expected.vector).norm())
        assert distance <= 1e-5 * float(expected.vector.norm()) + floor
        assert found.steps == expected.steps and found.loss == pytest.approx(expected.loss, rel=1e-5)


@compiles
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.epochs": 3},
        {"train.momentum": 0.9, "train.weight_decay": 0.01, "train.clip": 0.1},
        {"strategy.name": "fedsgd"},
        {"strategy.name": "scaffold"},
        {"strategy.name": "fedrep"},
        {"strategy.name": "apfl"},
    ],
    ids=str,
)
def test_clients_do_what_they_do_uncompiled(changes: small.Changes) -> None:
    """Plain steps, every step of `walk`, all rows at once, corrected, in part and at another point."""
    assert_as_eager(changes)


@pytest.mark.proof
@compiles
@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ({"name": "mlp", "hidden": [200, 20]}, True),
        ({"name": "cnn", "preset": "small"}, False),
        ({"name": "cnn", "norm": "group"}, False),
    ],
    ids=["wide mlp", "cnn", "group norm"],
)
def test_other_models_do_too(model: dict[str, Any], groups: bool) -> None:
    changes = {"model": model, "train.batch_size": 10, "train.epochs": 2}
    libraries = small.job({**COMPILED, **changes}).compiled
    assert libraries is not None and (len(libraries.steps) == 2) == groups
    assert_as_eager(changes)


@compiles
def test_a_client_that_diverges_is_told_its_step() -> None:
    job = small.job({**COMPILED, "train.learning_rate": 1e30})
    said = []
    for each in (job, replace(job, compiled=None)):
        work = Work(each)
        with pytest.raises(ClientError, match=r"the loss is not finite in step \d") as failed:
            work.train(0, 1, Received(work.initial, {}), None)
        said.append(str(failed.value))
    assert said[0] == said[1]


@compiles
def test_bits_depend_on_no_engine(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """Every worker loads the one library that the job carries."""
    job = small.job({**COMPILED, "rounds": 2})
    inline = small.run(job, tmp_path / "inline").fingerprint
    assert job.compiled is not None and stored_environment(tmp_path / "inline")["compiled"] == job.compiled.digest
    for workers in (1, 2):
        engine = small.with_workers(ray_engine, workers)
        assert small.run(job, tmp_path / str(workers), engine).fingerprint == inline
    assert small.run(replace(job, compiled=None), tmp_path / "eager").fingerprint != inline


@compiles
@pytest.mark.parametrize("changes", [{}, {"train.momentum": 0.9}], ids=["plain", "momentum"])
def test_looking_on_changes_no_bit(changes: small.Changes) -> None:
    work, steps = Work(small.job({**COMPILED, **changes})), list[Step]()
    received = Received(work.initial, {})
    alone, watched = work.train(1, 1, received, None), work.train(1, 1, received, None, steps)
    assert torch.equal(alone.vector, watched.vector) and len(steps) == alone.steps


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy.name": "moon"}, r"engine\.compile: strategy 'moon' adds a term to the loss"),
        ({"engine.stack": 2}, r"engine\.compile trains one client at a time on a core"),
        (small.PRIVATE, r"engine\.compile does not go with privacy\.example"),
    ],
    ids=["loss term", "stack", "private"],
)
def test_what_it_does_not_go_with_is_refused(changes: small.Changes, reason: str) -> None:
    with pytest.raises(ScenarioError, match=reason):
        small.job({**COMPILED, **changes})


def test_who_trains_nothing_compiles_nothing() -> None:
    assert small.job({**COMPILED, "strategy.name": "constant"}).compiled is None
