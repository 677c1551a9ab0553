"""What every algorithm in `strategies/` keeps, whatever its theory: alone, and in every combination that is allowed."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim import checkpoints
from fedsim.algorithm import Combined, add_update, local_update
from fedsim.checkpoints import snapshot_of
from fedsim.cohorts import CohortRule
from fedsim.combiners import Fold, mean
from fedsim.data.federation import Rows
from fedsim.errors import ClientError, ScenarioError
from fedsim.local import Received, Work
from fedsim.parameters import Weights, from_record
from fedsim.strategies.ditto import ditto
from fedsim.tables import Cohort
from tests.privacy.test_uploads import check_normal
from tests.strategies.exchange import CLIENTS, NAMES, Parts, Server, job, of, parted, uploads, work

TRAINING = [name for name in NAMES if name != "constant"]
"""All but the reference that counts instead."""
COMBINERS = [name for name in NAMES if of(name).combine is not mean]
SERVERS = [name for name in NAMES if of(name).client is local_update and of(name).server is not add_update]


def received(on: Work) -> Received:
    start = on.algorithm.start(on.initial.vector, on.federation.clients)
    return Received(on.initial, start.shared)


def trainer(on: Work) -> int:
    """A client that trains: of pooled rows the last."""
    return int(on.federation.train_rows.nonzero()[0][0])


# --- each algorithm, training on real rows


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_is_a_frozen_value_under_its_files_name(name: str) -> None:
    assert of(name).name == name
    with pytest.raises(FrozenInstanceError):
        of(name).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_every_default_trains(name: str) -> None:
    """One round on real rows: a finite upload of the model's size, the declared extras, scalars and state."""
    on = work(name)
    done = on.train(trainer(on), 1, received(on), None)
    size = on.layout.size * (1 + len(on.algorithm.extra)) + on.layout.buffer_size
    assert done.vector.shape == (size,)
    assert done.vector.dtype == on.initial.vector.dtype
    assert bool(done.vector.any()) is (name != "local"), "a client alone sends nothing, the others something"
    personal = {"personal", "personal-buffers"} if on.algorithm.personal else set()
    assert set(done.state) == set(on.algorithm.client_state) | personal
    assert set(done.scalars) == set(on.algorithm.scalars)
    assert (done.steps > 0) is (name in TRAINING)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_leaves_what_it_was_given_as_it_was(name: str) -> None:
    """All clients of a chunk get the same tensors."""
    on = work(name)
    sent, number = received(on), trainer(on)
    before = [sent.weights.vector.clone(), *(vector.clone() for vector in sent.shared.values())]
    first = on.train(number, 1, sent, None)
    states = {key: value.clone() for key, value in first.state.items()}
    on.train(number, 2, sent, first.state)
    assert all(torch.equal(*pair) for pair in zip(before, [sent.weights.vector, *sent.shared.values()], strict=True))
    assert all(torch.equal(states[key], first.state[key]) for key in states)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_does_the_same_again(name: str) -> None:
    """Whoever worked before it in the same process; in another round it draws other batches."""
    on = work(name)
    number, other = trainer(on), int(on.federation.train_rows.nonzero()[0][-1])
    first = on.train(number, 3, received(on), None)
    on.train(other, 3, received(on), None)
    again = on.train(number, 3, received(on), None)
    assert torch.equal(first.vector, again.vector)
    if name in set(TRAINING) - {"fedsgd", "local"}:  # all rows at once, and nothing sent
        assert not torch.equal(first.vector, on.train(number, 4, received(on), None).vector)


@pytest.mark.parametrize("name", [name for name in NAMES if of(name).personal])
def test_personal_coordinates_stay_with_the_client(name: str) -> None:
    """They are cut out of the upload, kept, and put into the model that the client receives next time."""
    on = work(name)
    assert on.personal is not None
    mine, size = on.personal.parameters, on.layout.size
    first = on.train(0, 1, received(on), None)
    assert not first.vector[:size][mine].any()
    assert not first.vector[size : size + on.layout.buffer_size][on.personal.buffers].any()
    assert mine.all() or first.vector[:size][~mine].any()
    assert not torch.equal(first.state["personal"], on.initial.vector[mine])
    other = Weights(on.initial.vector.masked_fill(mine, 7.0), on.initial.buffers.masked_fill(on.personal.buffers, 7.0))
    from_other = on.train(0, 2, received(on)._replace(weights=other), first.state)
    from_own = on.train(0, 2, received(on), first.state)
    assert torch.equal(from_other.vector, from_own.vector), "the server's values there are never looked at"
    assert torch.equal(from_other.state["personal"], from_own.state["personal"])


@pytest.mark.parametrize("name", [name for name in NAMES if of(name).personalised])
def test_a_clients_own_model_fits_its_rows_better_than_before_it_trained(name: str) -> None:
    """What personalised evaluation measures: its state in place, or the model that the algorithm says is its own."""
    on = work(name)
    state, sent = None, received(on)
    for number in range(1, 9):
        state = on.train(1, number, sent, state).state

    def loss(weights: Weights) -> float:
        rows: Rows = on.federation.rows(1, "train")
        return on.problem.metrics(on.evaluate(weights, rows, "rows"))["loss"]

    assert loss(on.own_model(1, 8, sent, state)) < loss(on.own_model(1, 8, sent, None))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_only_covered_optimisers_are_accepted(name: str, optimizer: str) -> None:
    settings = job(name).scenario.train.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    changed = job(name).scenario.model_copy(update={"train": settings})
    covered = {"sgd" if kind == "plain sgd" else kind for kind in of(name).optimizers}
    if optimizer in covered:
        on = Work(replace(job(name), scenario=changed))
        assert bool(on.train(trainer(on), 1, received(on), None).steps) is (name in TRAINING)
    else:
        with pytest.raises(ScenarioError, match="theory covers"):
            _checked(name, {"train.optimizer": optimizer, "train.learning_rate": 0.01})


@pytest.mark.parametrize("name", [name for name in NAMES if of(name).optimizers == ("plain sgd",)])
@pytest.mark.parametrize("setting", ["momentum", "weight_decay", "clip"])
def test_some_take_plain_steps_only(name: str, setting: str) -> None:
    """They read a mean gradient, or a learning rate, off the update."""
    with pytest.raises(ScenarioError, match="theory covers: plain sgd"):
        _checked(name, {f"train.{setting}": 0.5})


LEVELS: Mapping[str, Mapping[str, Any]] = {
    "example": {
        "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0},
        "model": {"name": "cnn", "preset": "small", "norm": "group"},
    },
    "client": {"privacy.client": {"noise_multiplier": 1.0, "delta": 1e-2, "clip": 0.05}},
    "local": {"privacy.local": {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.05}},
}
ROBUST = ("bulyan", "centred-clipping", "krum", "median", "multi-krum", "norm-bounding", "rfa", "trimmed-mean")
EVERYWHERE = {
    "afl": "each client's own loss, which is neither clipped nor noised",
    "central": "it is a reference",
    "constant": "it is a reference",
    "fednova": "each client's own step_size, which is neither clipped nor noised",
    "local": "no value of a client ever leaves it",
    "qfedavg": "each client's own h, which is neither clipped nor noised",
}
REFUSED: Mapping[str, Mapping[str, str]] = {
    "example": dict.fromkeys(
        ("afl", "central", "constant", "fedbn", "fedsgd", "moon", "qfedavg"), "it declares no private form"
    ),
    "client": {**EVERYWHERE, **dict.fromkeys(ROBUST, "by more than the noise hides; it needs a sum")},
    "local": EVERYWHERE,
}
"""Strategies without a private form at a level, and why; all others have one."""


def private(name: str, level: str, **keys: Any) -> Work:
    """Work on a strategy at a level of privacy, all clients counting alike where they must."""
    table, *_ = LEVELS[level]
    changes = {**LEVELS[level], table: {**LEVELS[level][table], **keys}}
    alike = {"strategy.weights": "uniform"} if level != "example" and of(name).weights == "examples" else {}
    return Work(_checked(name, copy.deepcopy(changes) | (alike if name not in REFUSED[level] else {})))


FORMS = [(name, level) for level in LEVELS for name in NAMES]


@pytest.mark.parametrize(("name", "level"), [form for form in FORMS if form[0] in REFUSED[form[1]]])
def test_a_strategy_without_a_private_form_is_refused_with_the_reason(name: str, level: str) -> None:
    with pytest.raises(ScenarioError, match=f"{name!r} has no private form for privacy.{level}: .*") as refused:
        private(name, level)
    assert REFUSED[level][name] in str(refused.value)


@pytest.mark.parametrize("name", [name for name in NAMES if of(name).weights == "examples" and name not in EVERYWHERE])
@pytest.mark.parametrize("level", ["client", "local"])
def test_a_weighted_mean_is_refused_where_uploads_are_clipped(name: str, level: str) -> None:
    """A weight would scale a clip, and it is a number of rows."""
    with pytest.raises(ScenarioError, match=r"a client's number of rows is not covered.*weights = \"uniform\""):
        _checked(name, copy.deepcopy(LEVELS[level]))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED["example"]])
def test_a_private_form_at_example_level_trains(name: str) -> None:
    on = private(name, "example")
    assert on.train(trainer(on), 1, received(on), None).steps


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED["client"]])
def test_all_that_leaves_is_clipped_as_one_vector_at_client_level(name: str) -> None:
    """Update, buffers and extras together, in the direction they had; the state is the same; one bit where asked."""
    on, free, bits = private(name, "client"), private(name, "client", clip=1e9), private(name, "client", adaptive={})
    plain, whole, counted = (each.train(trainer(each), 1, received(each), None) for each in (on, free, bits))
    norm = float(whole.vector.double().norm())
    assert plain.norm == whole.norm == pytest.approx(norm, rel=1e-5) and norm > 0.05
    assert float(plain.vector.double().norm()) <= 0.05 * (1 + 2**-23)
    assert torch.allclose(plain.vector, whole.vector * (0.05 / norm), rtol=1e-5, atol=0)
    assert plain.state.keys() == whole.state.keys()
    assert all(torch.equal(plain.state[key], whole.state[key]) for key in plain.state)
    assert torch.equal(counted.vector, torch.cat([plain.vector, torch.tensor([-0.5])]))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED["client"]])
def test_a_neighbour_moves_what_the_server_gets_by_a_clip_at_most(name: str) -> None:
    """Data sets with and without one client: the noise is the same, whatever it sent is C / (q K) of the rest."""
    on = private(name, "client")
    seen: list[Tensor] = []

    def recording(server: Any, combined: Combined) -> Any:
        seen.append(torch.cat([combined.update, *combined.extra.values()]))
        return half(server, combined)

    half = on.algorithm.server
    on.algorithm = replace(on.algorithm, server=recording)
    with_it, without = Server(on), Server(on)
    loud = {number: upload * 1e3 for number, upload in uploads(on).items()}
    with_it.round(loud)
    without.round({**loud, 3: "error"})
    moved = torch.cat([seen[0] - seen[1], with_it.strategy.buffers - without.strategy.buffers])
    assert float(moved.double().norm()) * CLIENTS == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED["local"]])
def test_all_that_leaves_is_clipped_and_noised_at_local_level(name: str) -> None:
    """Noise of z C on all that is sent, none on what stays; it is not in the client's own state."""
    on, silent = private(name, "local"), private(name, "local", noise_multiplier=1e-50)
    sent, bare = (each.train(trainer(each), 1, received(each), None) for each in (on, silent))
    assert float(bare.vector.double().norm()) == pytest.approx(0.05, rel=1e-6)
    leaving = on.leaving if on.leaving is not None else torch.ones(len(sent.vector), dtype=torch.bool)
    assert not sent.vector[~leaving].any()
    check_normal((sent.vector.double() - bare.vector.double())[leaving].numpy(), 2.0 * 0.05)
    assert all(torch.equal(sent.state[key], bare.state[key]) for key in bare.state)
    again = on.train(trainer(on), 2, received(on), None)
    assert not torch.equal(again.vector, sent.vector)


@pytest.mark.parametrize("level", ["client", "local"])
@pytest.mark.parametrize("combine", [None, "median"])
def test_a_robust_combiner_needs_noise_on_every_upload(level: str, combine: str | None) -> None:
    """What several clients' noised uploads become is their business; one noise on a median would hide nobody."""
    table = {"name": "scaffold", **({"combine": {"name": combine}} if combine else {})}
    changes = {**copy.deepcopy(LEVELS[level]), "strategy": table}
    if level == "client" and combine:
        with pytest.raises(ScenarioError, match=r"'scaffold\+median' has no private form for privacy.client"):
            _checked("scaffold", changes)
    else:
        assert _checked("scaffold", changes).privacy.level == level


def test_a_pass_that_is_not_charged_is_a_failure_not_a_leak() -> None:
    """Should an algorithm argue wrongly, the platform still stops it."""
    on = private("fedavg", "example")
    on.algorithm = ditto()
    with pytest.raises(ClientError, match=r"private step \d+ of a round that is charged for"):
        on.train(0, 1, received(on), {"model": on.initial.vector.clone()})


@pytest.mark.parametrize("name", [name for name in NAMES if of(name).linear and name not in ("central", "local")])
def test_a_linear_algorithm_needs_only_the_weighted_sum(name: str) -> None:
    """So its declared combiner is the mean: sum of weight times vector over sum of weights."""
    on = work(name)
    vectors = [on.train(number, 1, received(on), None).vector for number in range(3)]
    weights = torch.tensor([1.0, 2.0, 3.0])
    running = Fold()
    for vector, weight in zip(vectors, weights.tolist(), strict=True):
        running.add(vector, weight)
    assert running.total is not None
    whole = on.algorithm.combine(torch.stack(vectors), weights)
    assert (whole - running.total / 6).norm() <= 1e-6 * whole.norm()


# --- each combination, its server alone


PAIRS: list[tuple[str | None, str | None]] = [
    (None, None),
    *((combine, None) for combine in COMBINERS),
    *((None, server) for server in SERVERS),
]
TRIPLES: list[tuple[str | None, str | None]] = list(product(COMBINERS, SERVERS))


def combinations(name: str, others: Sequence[tuple[str | None, str | None]]) -> Iterator[Work]:
    """Work on a strategy in every combination that is allowed."""
    for combine, server in others:
        parts: Parts = (name, combine, server)
        if (prepared := parted(parts)) is not None:
            yield Work(prepared)


Law = Callable[[Work], None]


def _rounds(on: Work, count: int = 2, changed: Mapping[int, Tensor | str] | None = None) -> Tensor:
    """The model after some rounds of made-up uploads, of which some clients' are others."""
    server = Server(on)
    for number in range(count):
        params = server.round({**uploads(on, number), **(changed or {})})
    return params


def messages_have_the_right_records(on: Work) -> None:
    server = Server(on)
    messages = server.messages()
    assert len(messages) == (1 if on.job.apart is not None else CLIENTS)
    for message in messages:
        assert set(message.content) == {"arrays", "shared", "config"}
        shared, config = message.content.array_records["shared"], message.content.config_records["config"]
        assert torch.equal(from_record(on.layout, message.content.array_records["arrays"]).vector, on.initial.vector)
        assert set(shared) == set(on.algorithm.shared)
        assert set(config) == {"server-round", "reply", "chunk", "weight", "accepted-round"}
        assert config["reply"] == ("sum" if on.algorithm.linear else "update")
        assert float(config["weight"]) > 0  # type: ignore[arg-type]


def nothing_sent_changes_nothing(on: Work) -> None:
    """A zero update is a fixed point of every server step."""
    if on.algorithm.model:  # counts, which are no update
        return
    nothing = dict.fromkeys(range(on.federation.clients), torch.zeros(on.contribution_size))
    server = Server(on)
    assert all(torch.equal(server.round(nothing), on.initial.vector) for _ in range(3))


def the_order_of_replies_does_not_matter(on: Work) -> None:
    straight, reversed_ = Server(on), Server(on)
    for number in range(3):
        sent = uploads(on, number)
        assert torch.equal(straight.round(sent), reversed_.round(sent, order=-1))


def who_sent_what_does_not_matter_to_a_robust_combiner(on: Work) -> None:
    """To the bit, where all clients count the same."""
    if on.algorithm.combine is mean or on.algorithm.weights != "uniform":
        return
    sent = uploads(on)
    turned = {number: sent[(number + 3) % len(sent)] for number in sent}
    assert torch.equal(Server(on).round(sent), Server(on).round(turned))


def a_faulty_client_does_not_poison(on: Work) -> None:
    """One that fails, or whose reply is not finite, has another size or nothing in it, is as if it had not been."""
    if on.job.apart is not None:  # one client has all rows
        return
    size, expected = on.contribution_size, _rounds(on, changed={2: "error"})
    assert torch.isfinite(expected).all()
    spoilt = torch.zeros(size)
    spoilt[-1] = torch.nan
    for fault in (spoilt, torch.full((size,), torch.inf), torch.zeros(size + 1), "nothing"):
        assert torch.equal(_rounds(on, changed={2: fault}), expected)


def too_few_leave_the_model_as_it_was(on: Work) -> None:
    """Nobody, or fewer than the combiner's promise holds for: the round is unused and says why."""
    least = on.algorithm.combine.least
    server = Server(on)
    gone: dict[int, Tensor | str] = dict.fromkeys(range(least - 1, on.federation.clients), "error")
    assert torch.equal(server.round({**uploads(on), **gone}), on.initial.vector)
    assert (server.strategy.unused is not None) is (least > 1)
    assert not server.strategy.accepted.any()


def one_client_is_enough(on: Work) -> None:
    """Alone in a cohort, where the combiner can do with one."""
    if on.algorithm.combine.least > 1 or on.job.apart is not None:
        return
    alone = on.job.scenario.model_copy(update={"cohort": Cohort(size=1)})
    small = Work(replace(on.job, scenario=alone))
    assert small.job.rule == CohortRule(size=1)
    after = _rounds(small, 2)
    assert torch.isfinite(after).all()
    everything_personal = on.personal is not None and bool(on.personal.parameters.all())
    assert torch.equal(after, on.initial.vector) is everything_personal


def state_survives_save_and_load(on: Work) -> None:
    """A checkpoint's file holds all that the next round depends on."""
    server, other = Server(on), Server(on)
    for number in range(2):
        server.round(uploads(on, number))
    snapshot = server.strategy.snapshot()
    path = FOLDER / "state.safetensors"
    digest = checkpoints.save(path, snapshot.tensors(on.layout), {})
    read = snapshot_of(checkpoints.load(path, digest), on.layout, on.federation.clients, path)
    other.strategy.restore(2, read)
    other._round = 2
    assert torch.equal(server.round(uploads(on, 2)), other.round(uploads(on, 2)))
    assert server.strategy.vectors.keys() == other.strategy.vectors.keys()
    for key, vector in server.strategy.vectors.items():
        assert torch.equal(vector, other.strategy.vectors[key])


LAWS: list[Law] = [
    messages_have_the_right_records,
    nothing_sent_changes_nothing,
    the_order_of_replies_does_not_matter,
    who_sent_what_does_not_matter_to_a_robust_combiner,
    a_faulty_client_does_not_poison,
    too_few_leave_the_model_as_it_was,
    one_client_is_enough,
    state_survives_save_and_load,
]
FOLDER = Path()
COUNTED = {"combinations": 0, "checks": 0}
"""What has been tried so far; `conftest.py` prints it."""


@pytest.mark.parametrize("name", NAMES)
def test_the_laws_hold_in_every_pair(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any client half with any combiner or server half, or a refusal before anything trains."""
    _try_all(name, PAIRS, tmp_path, monkeypatch)


@pytest.mark.proof
@pytest.mark.parametrize("name", NAMES)
def test_the_laws_hold_in_every_triple(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another combiner and another server half at once."""
    _try_all(name, TRIPLES, tmp_path, monkeypatch)


def _try_all(
    name: str,
    others: Sequence[tuple[str | None, str | None]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "FOLDER", folder)
    for on in combinations(name, others):
        COUNTED["combinations"] += 1
        for law in LAWS:
            COUNTED["checks"] += 1
            try:
                law(on)
            except Exception as error:
                raise AssertionError(f"{on.algorithm.name}: {law.__name__}") from error


def test_the_combinations_are_many_and_some_are_refused() -> None:
    """Refused: what reads clients' own scalars under a robust combiner, and references under anything else."""
    assert {"median", "krum", "bulyan"} <= set(COMBINERS)
    assert {"fedadam", "fedavgm"} <= set(SERVERS)
    assert parted(("scaffold", "krum", "fedadam")) is not None
    for name, combine, server in (
        ("fednova", "median", None),
        ("central", None, "fedadam"),
        ("fedavg", "fedprox", None),
    ):
        assert parted((name, combine, server)) is None


def _checked(name: str, changes: Mapping[str, Any]) -> Any:
    from fedsim.data.corpus import Folders
    from fedsim.job import prepare

    return prepare(job(name).scenario.changed(changes), Folders.of(None, Path()))
