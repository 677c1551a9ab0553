"""Whole private runs, at client and local level: the same bits wherever they run, and nothing decides that may not.

Interrupted and resumed, replayed, on Ray or in one process; whoever answers, a round is released; and what epsilon does
not cover is refused before anything trains.
"""

import copy
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid
from safetensors.torch import load_file

import fedsim
from fedsim.engine.inline import InlineGrid
from fedsim.errors import FedsimError, PrivacyError
from fedsim.flower import AlgorithmStrategy
from fedsim.job import Job
from fedsim.local import Work
from fedsim.parameters import fingerprint, to_record
from fedsim.past import cohorts
from fedsim.privacy.ledger import EVERYBODY
from fedsim.reading import RoundRow
from fedsim.replay import replay
from fedsim.resuming import resume
from fedsim.stored import open_run, read_checkpoint
from fedsim.summary import Result
from fedsim.worker import client_app
from tests import small
from tests.laws.test_resumed import check_same, stopped, whole
from tests.test_flower import Nodes

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

GAUSSIAN = {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 0.3}
COMMON: small.Changes = {
    "data.partition": {"kind": "iid", "clients": 40},
    "strategy": {"name": "fedavg", "weights": "uniform"},
    "rounds": 4,
    "train.learning_rate": 0.5,
    "evaluate.clients_every": 0,
    "checkpoint.keep": 10,
}
KINDS: Mapping[str, small.Changes] = {
    "fixed size": {"cohort.size": 20, "privacy.client": GAUSSIAN},
    "poisson": {"cohort.poisson": 0.5, "privacy.client": GAUSSIAN, "strategy": {"name": "scaffold"}},
    "adaptive": {"cohort.poisson": 0.5, "privacy.client": {**GAUSSIAN, "adaptive": {"quantile": 0.1, "rate": 0.7}}},
    "tree": {
        "cohort.size": 12,
        "privacy.client": {**GAUSSIAN, "noise_multiplier": 2.0, "mechanism": "tree", "min_separation": 3},
        "strategy": {"name": "fedavgm", "weights": "uniform"},
    },
    "local": {"cohort.size": 20, "privacy.local": GAUSSIAN, "strategy": {"name": "fedper", "weights": "uniform"}},
}


def changes(kind: str) -> dict[str, Any]:
    """A scenario's keys, which may be written into."""
    return copy.deepcopy({**COMMON, **KINDS[kind]})


@cache
def prepared(kind: str) -> Job:
    return small.job(changes(kind))


def rounds_of(folder: Path) -> list[RoundRow]:
    with closing(open_run(folder)) as read:
        return read.rounds()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Each kind's run in this process."""
    folder = tmp_path_factory.mktemp("inline")
    return {kind: fedsim.run(small.scenario(changes(kind)), out=folder / kind) for kind in KINDS}


# --- the same bits


@pytest.mark.parametrize("kind", KINDS)
def test_ray_gives_the_bits_of_one_process(
    kind: str, runs: dict[str, Result], ray_engine: "RayEngine", tmp_path: Path
) -> None:
    """Models, epsilons and accounts of every round; two workers, and chunks of several clients."""
    found = small.run(prepared(kind), tmp_path / "run", small.with_workers(ray_engine, 2))
    seen = [[(row.fingerprint, row.epsilon) for row in rounds_of(each.folder)] for each in (found, runs[kind])]
    assert seen[0] == seen[1]
    with closing(open_run(found.folder)) as read, closing(open_run(runs[kind].folder)) as other:
        assert read.privacy() == other.privacy()
    assert found.fingerprint == runs[kind].fingerprint


class Apart(Nodes):
    """Nodes of Flower that do a given work: single updates, in any order, no chunks."""

    def __init__(self, on: Work) -> None:
        self.app = client_app(lambda: on)
        self.contexts = {
            1000 + 7 * number: Context(1, 1000 + 7 * number, {"partition-id": number}, RecordDict(), {})
            for number in range(on.federation.clients)
        }
        self.ids = InlineGrid(on.job)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_workers_are_those_that_a_server_makes_of_single_replies(kind: str) -> None:
    """The server clips once more what clients have clipped, and takes the sign of a bit: the same bits."""
    on = Work(prepared(kind))
    grids: list[Grid] = [InlineGrid(on.job), Apart(on)]
    found = []
    for grid in grids:
        strategy = AlgorithmStrategy(on)
        strategy.start(grid, to_record(on.layout, on.initial), num_rounds=4)
        found.append((fingerprint(strategy.weights), strategy.clip))
    assert found[0] == found[1]


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_run_that_nothing_interrupted(
    kind: str, rounds: int, runs: dict[str, Result], tmp_path: Path
) -> None:
    """Every table and every checkpoint: epsilon to its last digit, the clip, the tree's place, who has rested."""
    out = stopped(changes(kind), rounds, tmp_path)
    resume(out)
    check_same(out, runs[kind].folder)


def test_a_longer_run_that_chance_hides_charges_its_rounds(tmp_path: Path) -> None:
    """Noise was given, so more rounds only cost more."""
    out = whole(changes("poisson"), tmp_path).folder
    longer = resume(out, rounds=6)
    (tmp_path / "fresh").mkdir()
    fresh = whole({**changes("poisson"), "rounds": 6}, tmp_path / "fresh")
    assert longer.fingerprint == fresh.fingerprint
    with closing(open_run(out)) as read, closing(open_run(fresh.folder)) as other:
        assert read.privacy() == other.privacy()
        assert [row.participations for row in read.privacy()] == [6]


@pytest.mark.parametrize("kind", ["adaptive", "tree", "local"])
def test_a_replay_gives_a_clients_norm_and_what_was_clipped_of_it(kind: str, runs: dict[str, Result]) -> None:
    """Under the clip of its round, which is in the checkpoint before."""
    folder, bound, shortened = runs[kind].folder, 0.3, 0
    with closing(open_run(folder)) as read:
        rows = [row for row in read.clients() if row.phase == "train" and row.round in (1, 3)]
    for row in rows[::7]:
        done = replay(folder, row.round, row.client)
        assert done.verdict.same and done.contribution is not None, done.verdict.text
        assert (done.contribution.norm, done.contribution.loss) == (row.norm, row.loss)
        if kind == "adaptive" and row.round > 1:
            before = load_file(folder / "checkpoints" / f"round-{row.round - 1:06d}.safetensors")
            bound = float(before["server/privacy/clip"])
            assert bound != 0.3
        sent = float(done.contribution.vector[: len(done.contribution.vector) - (kind == "adaptive")].double().norm())
        assert row.norm is not None
        shortened += row.norm > 1.1 * bound
        assert sent == pytest.approx(row.norm if kind == "local" else min(row.norm, bound), rel=1e-6)
    assert kind != "adaptive" or shortened, "the scenario is to clip"


@pytest.mark.parametrize("kind", KINDS)
def test_who_was_drawn_is_known_again_from_any_checkpoint(kind: str, runs: dict[str, Result]) -> None:
    """Who has rested, too."""
    folder, job = runs[kind].folder, prepared(kind)
    with closing(open_run(folder)) as read:
        rows, rounds = [row for row in read.clients() if row.phase == "train"], read.rounds()
        recorded = [[row.client for row in rows if row.round == round.number] for round in rounds]
        stateful, on = kind in ("poisson", "local"), Work(job)
        for row in rounds:
            kept = read_checkpoint(folder, read, row, on.layout, 40, stateful=stateful)
            assert list(cohorts(job, 4, kept)) == recorded[row.number :]
    assert list(cohorts(job, 4)) == recorded


# --- whoever answers


def test_a_round_is_released_though_all_clients_fail_or_nobody_is_drawn(tmp_path: Path) -> None:
    """The model moves, by noise alone, and everybody is charged for it."""
    (tmp_path / "picky.py").write_text(small.PICKY)
    common = {"model": {"name": "picky.py:Picky", "above": 0.0}, "cohort.poisson": 0.03, "rounds": 8}
    result = small.run(small.job({**changes("poisson"), **common}, tmp_path), tmp_path / "run")
    rounds = rounds_of(result.folder)
    assert [row.number for row in rounds] == list(range(1, 9))
    assert {row.cohort for row in rounds} >= {0, 1} and all(row.failed == row.cohort for row in rounds)
    assert len({row.fingerprint for row in rounds}) == 8
    assert [row.epsilon for row in rounds] == sorted({row.epsilon for row in rounds if row.epsilon is not None})
    with closing(open_run(result.folder)) as read:
        assert [(row.client, row.participations) for row in read.privacy()] == [(EVERYBODY, 8)]


def test_without_noise_and_bound_it_is_the_plain_mean() -> None:
    """All that client level adds to FedAvg over everybody: what it clips, and what it noises."""
    ends = []
    for private in ({"noise_multiplier": 1e-50, "delta": 1e-3, "clip": 1e6}, None):
        keys = {**copy.deepcopy(COMMON), "train.learning_rate": 0.2, "rounds": 3}
        on = Work(small.job({**keys, **({"privacy.client": private} if private else {})}))
        strategy = AlgorithmStrategy(on)
        strategy.start(InlineGrid(on.job), to_record(on.layout, on.initial), num_rounds=3)
        ends.append(strategy.weights.vector - on.initial.vector)
    assert float((ends[0] - ends[1]).norm()) <= 1e-5 * float(ends[1].norm())


@pytest.mark.parametrize("kind", ["fixed size", "tree", "local"])
def test_nobody_exceeds_its_participations_and_a_spent_budget_ends_the_run(kind: str, tmp_path: Path) -> None:
    level = "local" if kind == "local" else "client"
    keys = {**changes(kind), "rounds": 30, f"privacy.{level}.max_participations": 1}
    result = small.run(small.job(keys), tmp_path / "run")
    assert result.values["stop"]["reason"] == "every client has spent its privacy budget"
    with closing(open_run(result.folder)) as read:
        drawn = [row.client for row in read.clients() if row.phase == "train"]
        accounts = read.privacy()
    assert sorted(drawn) == list(range(40))
    assert {(row.participations, row.steps) for row in accounts} == {(1, 1)}
    assert max(row.epsilon or 0.0 for row in accounts) == result.values["privacy"]["largest"]


@pytest.mark.parametrize("kind", ["fixed size", "poisson"])
def test_no_round_is_run_that_would_exceed_the_epsilon_to_stop_at(kind: str, runs: dict[str, Result]) -> None:
    spent = [row.epsilon or 0.0 for row in rounds_of(runs[kind].folder)]
    limit = (spent[1] + spent[2]) / 2
    assert spent[1] < limit < spent[2]
    limited = small.run(small.job({**changes(kind), "stop": {"epsilon": limit}}), runs[kind].folder / "limited")
    assert [row.epsilon for row in rounds_of(limited.folder)] == spent[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_printed_is_what_was_spent(kind: str, runs: dict[str, Result]) -> None:
    result, plan = runs[kind], prepared(kind).privacy
    said = result.values["privacy"]
    assert plan is not None
    assert said["largest"] == rounds_of(result.folder)[-1].epsilon
    assert said["largest"] <= plan.epsilon == said["planned"]
    assert (said["level"], said["noise_multiplier"], said["clip"]) == (plan.level, plan.noise_multiplier, 0.3)
    assert any(line.startswith(f"epsilon {said['largest']:.1f}"[:-2]) for line in result.lines)


def test_whom_a_round_draws_tells_nothing_of_who_has_rows() -> None:
    """A client without rows is registered all the same: it takes its place in a cohort, and the divisor counts it."""
    full = prepared("fixed size")
    emptied = replace(full.federation, train_ends=full.federation.train_ends.copy())
    emptied.train_ends[[3, 5, 8, 13]] = emptied.offsets[[3, 5, 8, 13]]
    drawn, others = full.cohorts(), replace(full, federation=emptied).cohorts()
    for round in range(1, 5):
        assert others.draw(round) == [number for number in drawn.draw(round) if number not in (3, 5, 8, 13)]


# --- what is refused


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "fixed size",
        {"strategy.weights": "examples"},
        r'a weight would scale its clip; set strategy\.weights = "uniform"',
    ),
    ("fixed size", {"privacy.client.delta": 0.03}, r"delta = 0\.03 is not below 1/40"),
    ("fixed size", {"privacy.client.clip": 0.0}, r"privacy\.client\.clip = 0\.0"),
    ("local", {"privacy.local.clip": -1.0}, r"privacy\.local\.clip = -1\.0"),
    ("fixed size", {"cohort.min_replies": 3}, r"cohort\.min_replies .* does not cover.*Leave cohort\.min_replies out"),
    ("fixed size", {"cohort.on_client_error": "fail"}, r"Leave cohort\.on_client_error out"),
    ("fixed size", {"strategy": {"name": "median"}}, "it needs a sum"),
    ("fixed size", {"strategy": {"name": "fedavg", "weights": "uniform", "combine": {"name": "krum"}}}, "needs a sum"),
    ("fixed size", {"strategy": {"name": "fednova"}}, "step_size, which is neither clipped nor noised"),
    ("local", {"strategy": {"name": "qfedavg"}}, "own h, which is neither clipped nor noised"),
    ("local", {"strategy": {"name": "local"}}, "no value of a client ever leaves it"),
    ("poisson", {"strategy": {"name": "flower:FedAvg"}}, "what a Flower strategy does with updates is its own"),
    ("fixed size", {"privacy.client.amplified": True}, r"only under relation = 'replace'.*cohort\.poisson"),
    ("poisson", {"privacy.client.accountant": "exact"}, "holds only without sampling"),
    ("poisson", {"privacy.client.max_participations": 3}, "chance hides who takes part"),
    ("poisson", {"privacy.client": KINDS["tree"]["privacy.client"]}, "'tree' needs no chance"),
    ("adaptive", {"privacy.client.adaptive.bit_noise": 0.5}, "twice it must be above the noise multiplier"),
    ("fixed size", {"privacy.local": GAUSSIAN}, "give one of client and local"),
    (
        "local",
        {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}},
        "give one of example and local",
    ),
    ("fixed size", {"references": ["fedprox"]}, r"do not go with privacy\.client; privacy\.without"),
    ("local", {"references": ["local"]}, r"do not go with privacy\.local"),
    ("fixed size", {"privacy.client": {**GAUSSIAN, "epsilon": 3.0}}, "give epsilon or noise_multiplier"),
    ("fixed size", {"privacy.client.noise_multiplier": 0.0}, r"noise_multiplier = 0\.0"),
]


@pytest.mark.parametrize(("kind", "setting", "message"), REFUSED)
def test_what_no_proof_covers_is_refused_before_anything_trains(
    kind: str, setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """In one line; no folder is made."""
    with pytest.raises(FedsimError, match=message) as refused:
        fedsim.run(small.scenario({**changes(kind), **copy.deepcopy(setting)}), out=tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["fixed size", "local"])
@pytest.mark.parametrize("setting", [{"stop.at_least": 0.9}, {"stop.patience": 2}, {}])
def test_clients_own_rows_decide_nothing(kind: str, setting: dict[str, Any], tmp_path: Path) -> None:
    """Neither when a run stops nor which round is its best."""
    name = "global/client-validation/rows/accuracy"
    key = "stop.metric" if setting else "evaluate.metric"
    with pytest.raises(PrivacyError, match=r"reads clients' own rows.*choose by central-validation"):
        fedsim.run(small.scenario({**changes(kind), key: name, **setting}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["fixed size", "local"])
def test_a_variance_that_noise_would_make_negative_is_refused(kind: str) -> None:
    """Batch norm's running variance is part of what is noised; kept at home, as FedBN does, it is not."""
    keys = {**changes(kind), "model": {"name": "cnn", "preset": "small", "norm": "batch"}}
    with pytest.raises(FedsimError, match=r"norm"):
        small.job({**keys, "strategy": {"name": "fedavg", "weights": "uniform"}})
    kept = Work(small.job({**keys, "strategy": {"name": "fedbn", "weights": "uniform"}}))
    assert kept.leaving is not None
    shared = kept.leaving[kept.layout.size : kept.layout.size + kept.layout.buffer_size]
    assert not bool(torch.any(shared))
