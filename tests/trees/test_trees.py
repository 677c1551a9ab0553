"""Federated trees, against XGBoost itself on the same rows."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from fedsim import rounds
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation, Rows
from fedsim.errors import FedsimError, Interrupted, ScenarioError, StoppedByPolicy
from fedsim.federating import federate
from fedsim.job import prepare
from fedsim.observers import Observer
from fedsim.records import ClientRow, RoundRecord
from fedsim.resuming import resume
from fedsim.scenario import Scenario
from fedsim.stored import open_run
from fedsim.summary import Result
from fedsim.trees.growing import Forest, Grown
from tests import small

ETA, ROUNDS, CLIENTS = 0.4, 6, 4
TREES: small.Changes = {
    "rounds": ROUNDS,
    "data": {"name": "clouds", "partition": {"kind": "natural"}},
    "model": {"name": "xgboost", "max_depth": 3},
    "train": {"learning_rate": ETA, "batch_size": 10_000},
    "strategy": {"name": "flower:FedXgbBagging"},
}
CYCLIC: small.Changes = {"strategy": {"name": "flower:FedXgbCyclic"}}


def clouds(classes: int = 2, rows: int = 60) -> Callable[[Folders], Corpus]:
    """Noisy clouds; clients have different shares of the classes, the first hardly anything but class 0."""

    def corpus(folders: Folders) -> Corpus:
        rng = np.random.default_rng(0)
        owners = np.repeat(np.arange(CLIENTS), rows)
        y = rng.integers(0, classes, len(owners)) * (rng.random(len(owners)) < (owners + 0.5) / CLIENTS)
        x = rng.normal(0, 1, (len(owners), 3)) + y[:, None] * np.array([2.0, -1.0, 0.0]) + owners[:, None] * 0.3
        return Corpus(
            name="clouds",
            task="classification",
            x=x.astype(np.float32),
            y=y.astype(np.int64),
            classes=tuple("abc"[:classes]),
            clients=owners,
            client_names=tuple(map(str, range(CLIENTS))),
        )

    return corpus


def scenario(changes: small.Changes = small.NOTHING) -> Scenario:
    return small.scenario({**TREES, **changes})


def ran(
    out: Path, changes: small.Changes = small.NOTHING, *, classes: int = 2, observers: tuple[Observer, ...] = ()
) -> Result:
    return rounds.run(scenario(changes), data=clouds(classes), out=out / "run", observers=observers)


def federation(classes: int = 2) -> Federation:
    return federate(scenario(), Folders.of(None, Path()), clouds(classes))


def train_rows(classes: int = 2) -> list[Rows]:
    """Every client's."""
    return [federation(classes).rows(client, "train") for client in range(CLIENTS)]


def boosted(rows: Rows, count: int, eta: float, before: Any = None, margin: Any = None, **more: Any) -> Any:
    """XGBoost's own loop."""
    settings = {"objective": "binary:logistic", "max_depth": 3, "eta": eta, "base_score": 0.5, "nthread": 1, **more}
    matrix = xgboost.DMatrix(rows.x, rows.y, base_margin=margin)
    return xgboost.train(settings, matrix, num_boost_round=count, xgb_model=before)


def margins(booster: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(booster.predict(xgboost.DMatrix(x), output_margin=True))


def kept(file: Path) -> Any:
    """A model of a run folder, as XGBoost reads it."""
    return xgboost.Booster(model_file=file)


def train_records(folder: Path) -> list[ClientRow]:
    with closing(open_run(folder)) as records:
        return [row for row in records.clients() if row.phase == "train"]


# Where trees come from


def test_under_bagging_a_round_adds_every_clients_tree(tmp_path: Path) -> None:
    """The oracle adds margins, and knows nothing of how Flower puts files of trees together."""
    each = train_rows()
    totals = [np.zeros(len(rows.x), dtype=np.float32) for rows in each]
    for _ in range(ROUNDS):
        trees = [boosted(rows, 1, ETA / CLIENTS, margin=total) for rows, total in zip(each, totals, strict=True)]
        totals = [
            total + sum(margins(tree, rows.x) for tree in trees) for rows, total in zip(each, totals, strict=True)
        ]
    last = kept(ran(tmp_path).folder / "model/last.json")
    assert last.num_boosted_rounds() == ROUNDS * CLIENTS
    for rows, total in zip(each, totals, strict=True):
        assert np.abs(total).max() > 0.5
        np.testing.assert_allclose(margins(last, rows.x), total, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_under_cyclic_clients_take_turns(tmp_path: Path, classes: int) -> None:
    """In an order that is drawn once; each goes on from what came before it."""
    folder = ran(tmp_path, CYCLIC, classes=classes).folder
    turns = [row.client for row in train_records(folder)]
    assert sorted(turns[:CLIENTS]) == list(range(CLIENTS))
    assert turns[CLIENTS:] == turns[: ROUNDS - CLIENTS]
    more = {"objective": "multi:softprob", "num_class": 3} if classes == 3 else {}
    each, forest = train_rows(classes), None
    for client in turns:
        forest = boosted(each[client], 1, ETA, before=forest, **more)
    for rows in each:
        np.testing.assert_allclose(margins(kept(folder / "model/last.json"), rows.x), margins(forest, rows.x))


def test_central_and_local_are_xgboost_on_pooled_and_own_rows(tmp_path: Path) -> None:
    folder = ran(tmp_path, {"references": ["central", "local", "constant"]}).folder / "references"
    each = train_rows()
    pooled = Rows(*(np.concatenate(parts) for parts in zip(*each, strict=True)))
    central = boosted(pooled, ROUNDS, ETA)
    np.testing.assert_allclose(
        margins(kept(folder / "central/model/last.json"), pooled.x), margins(central, pooled.x), atol=1e-5
    )
    for client, rows in enumerate(each):
        own = kept(folder / f"local/model/clients/{client}.json")
        np.testing.assert_allclose(margins(own, rows.x), margins(boosted(rows, ROUNDS, ETA), rows.x), atol=1e-5)


# What a run says of them


def test_figures_are_those_of_the_kept_models(tmp_path: Path) -> None:
    """The best model is the forest as it was after the best round."""
    result = ran(tmp_path, {"references": ["local", "constant"]})
    test, name = federation().central["test"], "global/central-test/rows/accuracy"
    for file, figures in (("best", "metrics"), ("last", "metrics_last_round")):
        booster = kept(result.folder / f"model/{file}.json")
        right = (margins(booster, test.x) > 0) == test.y
        assert result.values[figures][name] == pytest.approx(right.mean())
    assert kept(result.folder / "model/best.json").num_boosted_rounds() == result.values["best_round"] * CLIENTS
    own, references = federation(), result.values["references"]
    accuracies = []
    for client in range(CLIENTS):
        rows = own.rows(client, "test")
        booster = kept(result.folder / f"references/local/model/clients/{client}.json")
        accuracies.append(((margins(booster, rows.x) > 0) == rows.y).mean())
    assert references["local"]["headline"]["value"] == pytest.approx(np.mean(accuracies))
    frequent = np.bincount(np.concatenate([rows.y for rows in train_rows()])).argmax()
    assert references["constant"]["headline"]["value"] == pytest.approx((test.y == frequent).mean())
    assert result.values["metrics"][name] > references["constant"]["headline"]["value"]


def test_every_round_is_recorded(tmp_path: Path) -> None:
    result = ran(tmp_path)
    with closing(open_run(result.folder)) as records:
        numbers = [row.number for row in records.rounds()]
        validation = records.metrics()["global/central-validation/rows/loss"]
        assert records.rounds()[-1].fingerprint == result.fingerprint
        assert records.summary()["status"] == "done"
    assert numbers == list(validation) == list(range(1, ROUNDS + 1))
    rows = train_records(result.folder)
    assert [(row.round, row.client) for row in rows] == [(n, k) for n in numbers for k in range(CLIENTS)]
    assert rows[0].loss == pytest.approx(np.log(2))  # of the model that it received, which knew nothing
    assert all(row.bytes_up > 0 and (row.bytes_down > 0) == (row.round > 1) for row in rows)


@pytest.mark.parametrize("changes", [{}, CYCLIC, {"train.batch_size": 20, "model.colsample_bytree": 0.5}], ids=str)
def test_bits_do_not_depend_on_threads(tmp_path: Path, changes: small.Changes) -> None:
    """Draws are named by round and client, and each tree is grown by one thread."""
    prints = [ran(tmp_path / str(workers), {**changes, "engine.workers": workers}).fingerprint for workers in (1, 3)]
    assert prints[0] == prints[1]
    assert ran(tmp_path / "other", {**changes, "seed": 2}).fingerprint != prints[0]


def test_a_batch_is_what_a_tree_sees(tmp_path: Path) -> None:
    ran(tmp_path, {"train.batch_size": 20})
    assert {row.rows for row in train_records(tmp_path / "run")} == {20}


# What goes wrong


def test_a_client_that_fails_is_left_out_of_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, fewest = Forest.tree, min(len(rows.x) for rows in train_rows())

    def failing(self: Forest, rows: Rows, *rest: Any) -> Grown:
        if len(rows.x) == fewest:
            raise MemoryError("no room")
        return tree(self, rows, *rest)

    monkeypatch.setattr(Forest, "tree", failing)
    failed = sum(len(rows.x) == fewest for rows in train_rows())
    result = ran(tmp_path)
    assert kept(result.folder / "model/last.json").num_boosted_rounds() == ROUNDS * (CLIENTS - failed)
    errors = [row.error for row in train_records(result.folder) if row.status == "failed"]
    assert len(errors) == ROUNDS * failed
    assert "no room" in str(errors[0])
    with pytest.raises(StoppedByPolicy, match="keeps 0 committed rounds"):
        ran(tmp_path / "strict", {"cohort.on_client_error": "fail"})


class _Interrupting:
    def round_finished(self, record: RoundRecord) -> None:
        if record.number == 2:
            raise KeyboardInterrupt

    def run_finished(self, result: Result) -> None:
        raise AssertionError


def test_an_interrupt_leaves_the_rounds_that_were_done(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="keeps 2 committed rounds"):
        ran(tmp_path, observers=(_Interrupting(),))
    with pytest.raises(ScenarioError, match="trees"):
        resume(tmp_path / "run", data=clouds())
    ran(tmp_path / "whole")
    with pytest.raises(ScenarioError, match="has finished; trees are grown in one go: for more rounds begin a new run"):
        resume(tmp_path / "whole/run", data=clouds())


REFUSED: dict[str, tuple[small.Changes, str]] = {
    "a net's strategy": ({"strategy": {"name": "fedavg"}}, "collects no trees"),
    "a strategy of nets": ({"strategy": {"name": "flower:FedXgbNnAvg"}}, "Did you mean flower:FedXgb"),
    "a key of the strategy": ({"strategy": {"name": "flower:FedXgbBagging", "fraction_trian": 1.0}}, "fraction_train"),
    "a share that cannot be": ({"strategy": {"name": "flower:FedXgbBagging", "fraction_train": 2.0}}, "at most 1"),
    "waiting for ever": ({"strategy": {"name": "flower:FedXgbBagging", "min_train_nodes": 9}}, "wait for ever"),
    "a key of local": ({"strategy": {"name": "local", "mu": 1.0}}, "strategy.mu is not known"),
    "a key of the model": ({"model": {"name": "xgboost", "max_dept": 3}}, "Did you mean max_depth"),
    "a tree without depth": ({"model": {"name": "xgboost", "max_depth": 0}}, "at least 1"),
    "no columns": ({"model": {"name": "xgboost", "colsample_bytree": 0.0}}, "share above 0"),
    "epochs": ({"train.epochs": 2}, "train.epochs has no effect on trees"),
    "momentum": ({"train.momentum": 0.9}, "train.momentum has no effect"),
    "a cohort": ({"cohort.size": 2}, "cohort.size has no effect"),
    "a cluster": ({"engine": {"kind": "ray", "address": "auto"}}, "engine.address has no effect"),
    "privacy": ({"privacy.client": {"noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-3}}, "no private form"),
    "attackers": ({"adversary": {"name": "sign-flip", "fraction": 0.3}}, "adversary"),
    "a reference of nets": ({"references": ["fedprox"]}, "collects no trees"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(FedsimError, match=reason):
        ran(tmp_path, changes)
    assert not list(tmp_path.iterdir())


def test_bagging_takes_two_classes(tmp_path: Path) -> None:
    """Flower's aggregation says of every tree that it is one of the first class."""
    with pytest.raises(ScenarioError, match="take flower:FedXgbCyclic"):
        ran(tmp_path, classes=3)


def test_trees_classify(tmp_path: Path) -> None:
    def numbers(folders: Folders) -> Corpus:
        corpus = clouds()(folders)
        return replace(corpus, task="regression", y=corpus.x[:, 0], classes=())

    with pytest.raises(ScenarioError, match="are for regression"):
        rounds.run(scenario(), data=numbers, out=tmp_path / "run")


def test_who_works_on_nets_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="trees"):
        prepare(scenario(), Folders.of(None, Path()), data=clouds())
