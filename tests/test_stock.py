"""Flower's own strategies, and a user's, driven by our loop: repeatable, resumable, and not ended by one bad reply."""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits

from fedsim import attributes, planning, stock
from fedsim.client import look
from fedsim.driving import StockStrategy
from fedsim.engine.inline import InlineGrid
from fedsim.errors import RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.flower import failed
from fedsim.grid import with_content
from fedsim.local import Work
from fedsim.parameters import Weights, fingerprint, from_record, to_record
from fedsim.replay import replay
from fedsim.replies import arrays_of, metrics_of
from fedsim.resuming import resume
from fedsim.stored import open_run
from fedsim.summary import Result
from tests import small
from tests.laws.test_resumed import check_same, stopped, whole

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

ARGUMENTS: dict[str, dict[str, Any]] = {
    "flower:Bulyan": {},
    "flower:FedAdagrad": {},
    "flower:FedAdam": {},
    "flower:FedAvg": {},
    "flower:FedAvgM": {"server_momentum": 0.9},
    "flower:FedMedian": {},
    "flower:FedProx": {"proximal_mu": 0.1},
    "flower:FedTrimmedAvg": {"beta": 0.34},
    "flower:FedYogi": {},
    "flower:Krum": {},
    "flower:MultiKrum": {"num_nodes_to_select": 2},
    "flower:QFedAvg": {"client_learning_rate": 0.2, "q": 1.0},
}
"""Every strategy of Flower's that a scenario can name, with what it needs or what makes it differ from FedAvg."""

OURS: dict[str, dict[str, Any]] = {
    "flower:FedAvg": {"name": "fedavg"},
    "flower:FedAvgM": {"name": "fedavgm", "beta": 0.9},
    "flower:FedMedian": {"name": "median"},
    "flower:FedProx": {"name": "fedprox", "mu": 0.1},
    "flower:FedTrimmedAvg": {"name": "trimmed-mean", "beta": 0.34},
    "flower:Krum": {"name": "krum", "f": 0},
    "flower:MultiKrum": {"name": "multi-krum", "f": 0, "m": 2, "weights": "examples"},
    "flower:QFedAvg": {"name": "qfedavg", "q": 1.0},
}
"""Those that are defined as one of ours is, and which."""

OWN = '''
"""A user's own: whom it draws depends on what came back, and what it keeps has every type."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg, FedAvgM, Strategy


class Curious(FedAvg):
    def __init__(self, keep: float = 0.5, inner: Strategy | None = None) -> None:
        super().__init__()
        self.keep, self.losses, self.pair, self.inner = keep, {}, (1, None), inner or FedAvgM(server_momentum=0.5)
        self.slow = None

    def configure_train(self, server_round, arrays, config, grid):
        nodes = list(grid.get_node_ids())
        chosen = random.sample(nodes, 3)
        if self.losses:
            chosen[0] = max(nodes, key=lambda node: self.losses.get(node, 0.0))
        self.inner.configure_train(server_round, arrays, config, grid)
        config["wish"] = self.keep
        content = self._construct_messages
        from flwr.app import RecordDict
        return content(RecordDict({"arrays": arrays, "config": config}), sorted(set(chosen), reverse=True), "train")

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            if not reply.has_error():
                self.losses[reply.metadata.src_node_id] = float(reply.content["metrics"]["loss"])
        made, metrics = self.inner.aggregate_train(server_round, replies)
        if made is None:
            return None, None
        fresh = {name: array.numpy() for name, array in made.items()}
        self.slow = fresh if self.slow is None else {k: self.keep * v + (1 - self.keep) * fresh[k]
                                                     for k, v in self.slow.items()}
        noise = np.random.normal(0, 1e-3)
        return ArrayRecord({name: Array(values + noise) for name, values in self.slow.items()}), metrics


def curious(keep: float = 0.5) -> Strategy:
    return Curious(keep)


class Counting(FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.threads = []

    def aggregate_train(self, server_round, replies):
        from threadpoolctl import threadpool_info
        self.threads = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        return super().aggregate_train(server_round, replies)


ONE = FedAvg()


def same() -> Strategy:
    return ONE


def private() -> Strategy:
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3)


class Drawing(FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)


def drawing() -> Strategy:
    return Drawing()


class Bad(FedAvg):
    def __init__(self, sends: str = "", makes: str = "") -> None:
        super().__init__()
        self.sends, self.makes = sends, makes

    def configure_train(self, server_round, arrays, config, grid):
        sent = list(super().configure_train(server_round, arrays, config, grid))
        if self.sends == "twice":
            return [*sent, sent[0]]
        if self.sends == "by itself":
            return [message for message in sent if grid.send_and_receive([message])]
        if self.sends == "another model":
            zeros = ArrayRecord({name: Array(0 * array.numpy()) for name, array in arrays.items()})
            return super().configure_train(server_round, zeros, config, grid)
        if self.sends == "a question":
            return [Message(message.content, message.metadata.dst_node_id, "query") for message in sent]
        return sent

    def aggregate_train(self, server_round, replies):
        made, metrics = super().aggregate_train(server_round, replies)
        if self.makes == "an exception":
            raise ArithmeticError("one\\ntwo")
        if self.makes == "an array less":
            made.popitem()
        if self.makes == "infinity":
            made = ArrayRecord({name: Array(np.inf + array.numpy()) for name, array in made.items()})
        if self.makes == "a generator":
            self.generator = np.random.default_rng(0)
        return made, metrics


def bad(sends: str = "", makes: str = "") -> Strategy:
    return Bad(sends, makes)
'''


def changes(name: str, **arguments: Any) -> dict[str, Any]:
    """Three of the five clients take part in each round."""
    return {"strategy": {"name": name, "fraction_train": 0.6, **ARGUMENTS.get(name, {}), **arguments}}


def everyone(name: str, **arguments: Any) -> dict[str, Any]:
    return changes(name, fraction_train=1.0, **arguments)


def ran(changed: small.Changes, out: Path, **options: Any) -> Result:
    return small.run(small.job(changed, out.parent), out, **options)


def own(folder: Path) -> Path:
    (folder / "own.py").write_text(OWN)
    return folder


@cache
def work(name: str) -> Work:
    return Work(small.job(everyone(name)))


def close(found: Weights, expected: Weights, start: Weights) -> bool:
    moved = float((expected.vector - start.vector).norm())
    return all(float((mine - theirs).norm()) <= 1e-5 * moved for mine, theirs in zip(found, expected, strict=True))


# The same bits


def test_every_strategy_of_flowers_is_tested() -> None:
    """But those that cannot be driven; a new one in Flower shows here."""
    assert stock.names() == sorted(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_second_run_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """Flower draws its cohorts from a global generator, which is seeded for each round."""
    first, second = (ran(changes(name), tmp_path / place) for place in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != fingerprint(work(name).initial)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["flower:FedAdam", "flower:Bulyan"])
def test_ray_gives_the_bits_of_one_process(name: str, workers: int, tmp_path: Path, ray_engine: "RayEngine") -> None:
    engine = small.with_workers(ray_engine, workers)
    assert ran(changes(name), tmp_path / "ray", engine=engine).fingerprint == (
        ran(changes(name), tmp_path / "inline").fingerprint
    )


def test_products_of_matrices_are_done_by_one_thread(tmp_path: Path) -> None:
    """With two, Krum's distances between a hundred models have other last bits."""
    own(tmp_path)
    job = small.job({"strategy": {"name": "own.py:Counting"}, "rounds": 1}, tmp_path)
    with threadpool_limits(2):
        result = small.run(job, tmp_path / "run")
    (checkpoint,) = (result.folder / "checkpoints").glob("round-*1.safetensors")
    kept = dict(json.loads(load_file(checkpoint)[f"server/stock/{attributes.TREE}"].numpy().tobytes()))
    assert set(kept["threads"]["list"]) == {1}


def test_cohorts_are_drawn_anew_each_round_and_seed(tmp_path: Path) -> None:
    """They are Flower's draws, in a fixed order of clients, and only of clients that have rows."""
    seen = []
    for seed in (1, 2):
        result = ran({**changes("flower:FedAvg"), "seed": seed, "rounds": 6}, tmp_path / f"{seed}")
        with closing(open_run(result.folder)) as records:
            rows = [row for row in records.clients() if row.phase == "train"]
        cohorts = [tuple(row.client for row in rows if row.round == number) for number in range(1, 7)]
        assert all(len(cohort) == 3 and list(cohort) == sorted(cohort) for cohort in cohorts)
        seen.append(cohorts)
    assert len({*seen[0]}) > 1 and seen[0] != seen[1]


@pytest.mark.parametrize("name", ["flower:FedAdam", "flower:FedAvgM", "own.py:curious"])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(name: str, tmp_path: Path) -> None:
    """What the strategy keeps (moments, momentum, a user's own) comes back to the bit, in its own type."""
    for folder in ("whole", "part"):
        (tmp_path / folder).mkdir()
        own(tmp_path / folder)
    changed = {**changes(name), "rounds": 6}
    if name.startswith("own"):
        changed["strategy"] = {"name": name, "keep": 0.25}
    out = stopped(changed, 3, tmp_path)
    resume(out)
    check_same(out, whole(changed, tmp_path).folder)


def test_a_checkpoint_of_another_strategy_is_refused() -> None:
    """Not taken for one of its own."""
    strategy = StockStrategy(work("flower:FedAvg"))
    snapshot = strategy.snapshot()
    assert set(snapshot.vectors) == {"stock/tree.json"}
    spoiled = SimpleNamespace(**{**vars(snapshot), "vectors": {}})
    with pytest.raises(RunFolderError, match="round 2 does not fit flower:FedAvg"):
        strategy.restore(2, type(snapshot)(**vars(spoiled)))


# What they compute


@pytest.mark.parametrize("name", OURS)
def test_those_that_are_defined_as_ours_agree_with_ours(name: str, tmp_path: Path) -> None:
    """To 1e-5 of the way that the model went; sums have other brackets."""
    theirs = ran(everyone(name), tmp_path / "theirs").weights
    mine = ran({"strategy": OURS[name]}, tmp_path / "mine").weights
    assert close(theirs, mine, work(name).initial)


def test_buffers_are_averaged_too(tmp_path: Path) -> None:
    """Batch norm's means travel with the parameters, as under our FedAvg."""
    model = {"model": {"name": "cnn", "preset": "small", "norm": "batch"}, "rounds": 1}
    theirs = ran({**everyone("flower:FedAvg"), **model}, tmp_path / "theirs").weights
    mine = ran(model, tmp_path / "mine").weights
    assert len(mine.buffers)
    assert close(theirs, mine, Work(small.job(model)).initial)


def test_without_a_proximal_term_fedprox_is_fedavg(tmp_path: Path) -> None:
    """To the bit."""
    plain = ran(changes("flower:FedAvg"), tmp_path / "a")
    assert ran(changes("flower:FedProx", proximal_mu=0.0), tmp_path / "b").fingerprint == plain.fingerprint
    assert ran(changes("flower:FedProx", proximal_mu=0.1), tmp_path / "c").fingerprint != plain.fingerprint


@pytest.mark.parametrize("name", ["flower:FedAdam", "flower:QFedAvg"])
def test_the_model_keeps_its_type(name: str, tmp_path: Path) -> None:
    """These make float64 of float32; what is sent would double."""
    assert ran({**changes(name), "rounds": 1}, tmp_path / "run").weights.vector.dtype == torch.float32


@pytest.mark.parametrize("attack", ["alie", "inner-product", "sign-flip"])
def test_attackers_do_under_them_what_they_do_under_ours(attack: str, tmp_path: Path) -> None:
    """Also those that agree on what they send."""
    attacked = {"adversary": {"name": attack, "clients": [1, 3]}}
    theirs = ran({**everyone("flower:FedAvg"), **attacked}, tmp_path / "theirs").weights
    mine = ran(attacked, tmp_path / "mine").weights
    assert close(theirs, mine, work("flower:FedAvg").initial)
    assert not close(theirs, ran({}, tmp_path / "honest").weights, work("flower:FedAvg").initial)


def test_a_users_own_strategy_runs(tmp_path: Path) -> None:
    """By file and function, with its keys; global draws of its own repeat."""
    own(tmp_path)
    results = [
        ran({"strategy": {"name": "own.py:curious", "keep": keep}}, tmp_path / f"{place}")
        for place, keep in enumerate((0.25, 0.25, 0.75))
    ]
    assert results[0].fingerprint == results[1].fingerprint != results[2].fingerprint


def test_flower_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its notes of every round would stand between ours."""
    ran({**changes("flower:FedProx", proximal_mu=0.0), "rounds": 1}, tmp_path / "run")
    assert capfd.readouterr() == ("", "")


# Bad replies

Spoil = Callable[[Message], Message]


def with_metrics(**metrics: Any) -> Spoil:
    return lambda reply: with_content(
        reply, RecordDict({**reply.content, "metrics": MetricRecord({**metrics_of(reply), **metrics})})
    )


def with_arrays(change: Callable[[str, np.ndarray], np.ndarray]) -> Spoil:
    def spoil(reply: Message) -> Message:
        changed = {name: Array(change(name, array.numpy())) for name, array in arrays_of(reply, "arrays").items()}
        return with_content(reply, RecordDict({**reply.content, "arrays": ArrayRecord(changed)}))

    return spoil


def without(record: str) -> Spoil:
    return lambda reply: with_content(reply, RecordDict({k: v for k, v in reply.content.items() if k != record}))


def renamed(reply: Message) -> Message:
    changed = {f"x.{name}": array for name, array in arrays_of(reply, "arrays").items()}
    return with_content(reply, RecordDict({**reply.content, "arrays": ArrayRecord(changed)}))


def garbled(reply: Message) -> Message:
    changed = {name: Array(a.dtype, a.shape, a.stype, a.data[:50]) for name, a in arrays_of(reply, "arrays").items()}
    return with_content(reply, RecordDict({**reply.content, "arrays": ArrayRecord(changed)}))


def without_a_metric(reply: Message) -> Message:
    metrics = {key: value for key, value in metrics_of(reply).items() if key != "loss"}
    return with_content(reply, RecordDict({**reply.content, "metrics": MetricRecord(metrics)}))


SPOILED: dict[str, tuple[Spoil, str]] = {
    "an extra metric": (with_metrics(extra=1.0), "metrics have an unknown extra"),
    "a metric less": (without_a_metric, "metrics have no loss"),
    "a list for a number": (with_metrics(**{"num-examples": [1, 2]}), "num-examples is not a finite number"),
    "a loss that is no number": (with_metrics(loss=float("nan")), "loss is not a finite number"),
    "no metrics": (without("metrics"), "no metrics"),
    "no arrays": (without("arrays"), "no model"),
    "other names": (renamed, "no model"),
    "other shapes": (with_arrays(lambda name, values: values[..., :1]), "no model: array .* has shape"),
    "broken bytes": (garbled, "cannot be read"),
    "NaN": (with_arrays(lambda name, values: values * np.nan), "the model is not finite"),
    "too large": (with_arrays(lambda name, values: values.astype(np.float64) * 1e300), "the model is not finite"),
    "an error": (lambda reply: failed(reply, "it broke"), "it broke"),
}


def answered(name: str) -> tuple[StockStrategy, list[Message]]:
    """A strategy and what its first cohort, everybody, replied."""
    of = work(name)
    strategy, grid = StockStrategy(of), InlineGrid(of.job)
    messages = strategy.configure_train(1, to_record(of.layout, of.initial), ConfigRecord(), grid)
    return strategy, grid.send_and_receive(messages)


def made(name: str, spoil: Callable[[list[Message]], Iterable[Message]]) -> tuple[StockStrategy, list[Message]]:
    """A strategy after a round of which some replies were spoiled, and the replies as they were judged."""
    strategy, replies = answered(name)
    judged = strategy.received(1, spoil(replies))
    strategy.aggregate_train(1, judged)
    return strategy, judged


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("name", ["flower:FedAvg", "flower:FedMedian", "flower:QFedAvg"])
def test_a_bad_reply_is_its_clients_failure(name: str, spoiled: str) -> None:
    """The model is the one that the others make, and the run goes on; by itself Flower would end it, or send NaN."""
    spoil, reason = SPOILED[spoiled]
    strategy, judged = made(name, lambda replies: [*replies[:1], spoil(replies[1]), *replies[2:]])
    other, _ = made(name, lambda replies: [*replies[:1], *replies[2:]])
    assert [reply.has_error() for reply in judged] == [False, True, False, False, False]
    text = str(judged[1].error.reason)
    assert re.search(reason, text), text
    assert spoiled == "an error" or text.startswith("round 1, client 1: ")
    assert fingerprint(strategy.weights) == fingerprint(other.weights)
    assert strategy.accepted.tolist() == [1, 0, 1, 1, 1]


def test_the_order_of_replies_and_of_their_arrays_does_not_matter() -> None:
    """Some strategies pair arrays by place, so a client that turns them round would swap layers of one shape."""

    def turned(reply: Message) -> Message:
        changed = dict(reversed([*arrays_of(reply, "arrays").items()]))
        return with_content(reply, RecordDict({**reply.content, "arrays": ArrayRecord(changed)}))

    for name in ("flower:QFedAvg", "flower:FedAvgM"):
        expected, _ = made(name, lambda replies: replies)
        found, _ = made(name, lambda replies: [turned(reply) for reply in reversed(replies)])
        assert fingerprint(found.weights) == fingerprint(expected.weights)


def test_clients_cannot_choose_their_own_weight() -> None:
    """The server knows how many rows everybody has."""
    expected, _ = made("flower:FedAvg", lambda replies: replies)
    boast = with_metrics(**{"num-examples": 10**9})
    found, _ = made("flower:FedAvg", lambda replies: [boast(replies[0]), *replies[1:]])
    assert fingerprint(found.weights) == fingerprint(expected.weights)


def test_replies_are_left_whole() -> None:
    """FedMedian takes apart what it sees; the run still reads its rows from the replies."""
    strategy, replies = answered("flower:FedMedian")
    judged = strategy.received(1, replies)
    strategy.aggregate_train(1, judged)
    of = work("flower:FedMedian")
    assert all(len(from_record(of.layout, arrays_of(reply, "arrays")).vector) == of.layout.size for reply in judged)


def test_a_round_whose_replies_are_too_few_changes_nothing() -> None:
    """Bulyan then makes no model, and the run says so."""

    def lost(replies: list[Message]) -> list[Message]:
        return [*(failed(reply, "no") for reply in replies[:3]), *replies[3:]]

    strategy, judged = made("flower:Bulyan", lost)
    assert fingerprint(strategy.weights) == fingerprint(work("flower:Bulyan").initial)
    assert strategy.unused == (
        "round 1: flower:Bulyan made no model of the 2 replies that came; the model stays as it was"
    )
    assert sum(reply.has_error() for reply in judged) == 3


# Going back


def test_a_past_round_is_done_again(tmp_path: Path) -> None:
    """From a checkpoint, and from the initial model with the strategy's own steps in between."""
    result = ran({**changes("flower:FedAdam"), "rounds": 5, "checkpoint.keep": 1}, tmp_path / "run")
    with closing(open_run(result.folder)) as records:
        rows = [row for row in records.clients() if row.phase == "train"]
    for number in (1, 4):
        drawn = [row.client for row in rows if row.round == number]
        assert replay(result.folder, number, drawn[0]).verdict.same
        (absent, *_) = sorted(set(range(5)) - set(drawn))
        with pytest.raises(ScenarioError, match=f"client {absent}: it was not in the cohort; it was in"):
            replay(result.folder, number, absent)
    for client in range(5):
        assert look(result.folder, client).rounds == [row.round for row in rows if row.client == client]


def test_a_past_round_of_a_users_own_is_done_again(tmp_path: Path) -> None:
    """Whom it drew depends on what came back."""
    result = ran({"strategy": {"name": "own.py:curious"}, "rounds": 4}, own(tmp_path) / "run")
    with closing(open_run(result.folder)) as records:
        drawn = [row.client for row in records.clients(round=4) if row.phase == "train"]
    assert all(replay(result.folder, 4, client).verdict.same for client in drawn)


# What is refused

REFUSED: dict[str, tuple[small.Changes, str]] = {
    "a typo": ({"strategy": {"name": "flower:Krumm"}}, r"there is no 'flower:Krumm'. Did you mean flower:Krum\?"),
    "another case": ({"strategy": {"name": "flower:fedadam"}}, r"Did you mean flower:FedAdam\?"),
    "nothing like it": ({"strategy": {"name": "flower:zzzz"}}, "Known: flower:Bulyan, flower:FedAdagrad"),
    "trees": ({"strategy": {"name": "flower:FedXgbBagging"}}, "collects trees"),
    "their privacy": (
        {"strategy": {"name": "flower:DifferentialPrivacyServerSideFixedClipping"}},
        r"set \[privacy.example\]",
    ),
    "an unknown key": (changes("flower:Krum", num_malicious_node=1), "Did you mean num_malicious_nodes"),
    "a wrong type": (changes("flower:Krum", num_malicious_nodes=0.5), "num_malicious_nodes = 0.5"),
    "a missing key": ({"strategy": {"name": "flower:QFedAvg"}}, "strategy.client_learning_rate is missing"),
    "their evaluation": (changes("flower:FedAvg", fraction_evaluate=0.5), r"set \[evaluate\]"),
    "names in messages": (changes("flower:QFedAvg", train_loss_key="loss"), "train_loss_key: fedsim names"),
    "a function": (changes("flower:Bulyan", selection_rule="krum"), "cannot write a function"),
    "a rate that nobody uses": (changes("flower:FedAdam", eta_l=0.1), "eta_l: Flower does not use it"),
    "nobody": (changes("flower:FedAvg", fraction_train=0.0), "fraction_train = 0: give a share above 0"),
    "more than everybody": (changes("flower:FedAvg", fraction_train=1.5), "fraction_train = 1.5"),
    "a negative count": (changes("flower:Krum", num_malicious_nodes=-1), "num_malicious_nodes = -1: give"),
    "a negative rate": (changes("flower:FedYogi", eta=-0.1), "eta = -0.1: give a number above 0"),
    "beta above 1": (changes("flower:FedAdam", beta_1=1.5), "beta_1 = 1.5: give a number of at least 0 and below 1"),
    "too much trimmed": (changes("flower:FedTrimmedAvg", beta=0.5), "beta = 0.5: give"),
    "a negative pull": (changes("flower:FedProx", proximal_mu=-1.0), "proximal_mu = -1: give"),
    "no number": (changes("flower:FedAdam", tau=float("nan")), "tau = nan: give"),
    "waiting for ever": (changes("flower:FedAvg", min_available_nodes=6), "with train rows is 5, so it would wait"),
    "a cohort of more": (changes("flower:FedAvg", min_train_nodes=6), "min_train_nodes = 6"),
    "krum": (everyone("flower:Krum", num_malicious_nodes=2), r"needs 2 num_malicious_nodes \+ 3: 7"),
    "multi-krum": (everyone("flower:MultiKrum", num_nodes_to_select=6), "num_nodes_to_select"),
    "bulyan": (everyone("flower:Bulyan", num_malicious_nodes=1), r"4 num_malicious_nodes \+ 3: 7"),
    "our cohorts": ({**changes("flower:FedAvg"), "cohort.size": 3}, "cohort.size: strategy 'flower:FedAvg' draws"),
    "poisson cohorts": ({**changes("flower:FedAvg"), "cohort.poisson": 0.5}, "leave cohort.poisson out"),
    "replies": ({**changes("flower:FedAvg"), "cohort.min_replies": 4}, "min_replies = 4: a cohort .* has 3 of 5"),
    "privacy": (
        {**changes("flower:FedAvg"), **small.PRIVATE},
        "has no private form for privacy.example: what a Flower",
    ),
    "momentum": ({**changes("flower:QFedAvg"), "train.momentum": 0.9}, "plain sgd"),
    "our combiner": (changes("flower:FedAvg", combine={"name": "median"}), "is taken as it is"),
    "as a combiner": ({"strategy": {"name": "fedavg", "combine": {"name": "flower:Krum"}}}, "no combiner that stands"),
    "as a server half": ({"strategy": {"name": "fedavg", "server": {"name": "flower:FedAdam"}}}, "no server half"),
    "one object": ({"strategy": {"name": "own.py:same"}}, "same strategy at every call; make a new one"),
    "their privacy in a file": ({"strategy": {"name": "own.py:private"}}, r"set \[privacy.example\]"),
    "a generator of its own": ({"strategy": {"name": "own.py:drawing"}}, "generator is of type Generator"),
    "an unknown key of a file": ({"strategy": {"name": "own.py:curious", "kep": 1}}, r"Did you mean keep\?"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(refused: str, tmp_path: Path) -> None:
    """Before any client is trained."""
    changed, reason = REFUSED[refused]
    with pytest.raises(ScenarioError, match=reason) as error:
        small.job(changed, own(tmp_path))
    assert "\n" not in str(error.value)


ENDED: dict[str, tuple[dict[str, str], str]] = {
    "an exception": ({"makes": "an exception"}, "round 1: own.py:bad failed: ArithmeticError: one two"),
    "no model": ({"makes": "an array less"}, "arrays do not match its layout"),
    "infinity": ({"makes": "infinity"}, "round 1: the model that own.py:bad made is not finite"),
    "what cannot be kept": ({"makes": "a generator"}, "generator is of type Generator"),
    "a client twice": ({"sends": "twice"}, "two messages"),
    "past the loop": ({"sends": "by itself"}, "return them from configure_train"),
    "another model": ({"sends": "another model"}, "other arrays than the run's model"),
    "another message": ({"sends": "a question"}, "a 'query' message"),
}


@pytest.mark.parametrize("ended", ENDED)
def test_what_a_strategy_cannot_do_ends_the_run_in_one_line(ended: str, tmp_path: Path) -> None:
    """It names the round and the strategy."""
    arguments, reason = ENDED[ended]
    with pytest.raises(StoppedByPolicy, match=reason) as error:
        ran({"strategy": {"name": "own.py:bad", **arguments}}, own(tmp_path) / "run")
    assert str(error.value).startswith("round 1: ") and "own.py:bad" in str(error.value)
    assert "keeps 0 committed rounds" in str(error.value)


def test_a_check_of_all_parts_leaves_cohorts_to_the_strategy() -> None:
    """Cohorts of ours are cut to two clients there."""
    cut = planning.fast(small.scenario(changes("flower:Krum")))
    assert cut.cohort.size is None
    assert planning.fast(small.scenario()).cohort.size == 2


def test_a_forecast_counts_the_clients_that_the_strategy_draws() -> None:
    lines = {line.name: line.value for line in planning.forecast(small.scenario(changes("flower:Krum")), None)}
    assert lines["cohort"] == 3


# What an object keeps

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
kept_arrays = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]), arrays.array_shapes(min_dims=0, min_side=0)
)
leaves = plain | kept_arrays | kept_arrays.map(lambda values: np.float32(values.size))
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=3)
        | st.dictionaries(st.text(), kept_arrays.map(Array), max_size=3).map(ArrayRecord)
    ),
    max_leaves=8,
)
names = st.text(st.characters(categories=["L"]), min_size=1)


def same(one: Any, other: Any) -> bool:
    """To the bit and in the same type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict | ArrayRecord):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Array):
        return same(one.numpy(), other.numpy())
    return repr(one) == repr(other)


@given(st.dictionaries(names, values, max_size=4))
def test_attributes_come_back_to_the_bit(attributes_of: dict[str, Any]) -> None:
    """Whatever they are called, as tensors that a checkpoint can hold."""
    owner, other = SimpleNamespace(**attributes_of), SimpleNamespace()
    tensors = attributes.tensors_of(owner)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    attributes.restore(other, tensors)
    assert same(vars(owner), vars(other))


def test_what_is_kept_shares_no_memory_with_its_owner() -> None:
    """It is written while the next round goes on."""
    owner = SimpleNamespace(total=np.zeros(3))
    tensors = attributes.tensors_of(owner)
    owner.total += 1
    assert tensors["total"].tolist() == [0, 0, 0]
    attributes.restore(owner, tensors)
    owner.total += 1
    assert tensors["total"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "tree",
    ["[[", "[1]", '[["a", {"ndarray": "no such"}]]', '[["a", {"Strategy": []}]]', '[["a", {}]]', '[["a", {"b": 1}]]'],
)
def test_what_was_never_kept_is_refused(tree: str) -> None:
    """A checkpoint may be of anything."""
    text = torch.frombuffer(bytearray(tree.encode()), dtype=torch.uint8)
    with pytest.raises(ValueError):
        attributes.restore(SimpleNamespace(), {attributes.TREE: text})


def test_strategies_inside_one_another_are_kept() -> None:
    """In place: functions that they were made with stay theirs."""
    inner = FedAvg()
    owner = SimpleNamespace(inner=inner)
    inner.min_train_nodes = 7
    tensors = attributes.tensors_of(owner)
    fresh = SimpleNamespace(inner=FedAvg())
    attributes.restore(fresh, tensors)
    assert fresh.inner.min_train_nodes == 7 and callable(fresh.inner.train_metrics_aggr_fn)
    assert json.loads(tensors[attributes.TREE].numpy().tobytes())[0][0] == "inner"
