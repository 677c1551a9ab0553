"""Clients that drop out: who does follows from the seed, it costs no work, and no rule takes it for an error."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.cohorts import dropouts
from fedsim.engine import Engine
from fedsim.errors import ScenarioError, StoppedByPolicy
from fedsim.records import ClientRow
from fedsim.replay import replay
from fedsim.stored import open_run
from tests import small

CROWD: small.Changes = {
    "data.partition": {"kind": "iid", "clients": 40},
    "data.min_rows": 0,
    "evaluate.clients_every": 0,
    "cohort": {"size": 25, "dropout": 0.4, "on_client_error": "fail"},
}


def trained(out: Path) -> list[ClientRow]:
    with closing(open_run(out)) as records:
        return [row for row in records.clients() if row.phase == "train"]


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 99), st.integers(1, 99), st.sets(st.integers(0, 10**6)))
def test_whether_a_client_drops_out_depends_on_seed_round_and_client_alone(
    rate: float, seed: int, round: int, cohort: set[int]
) -> None:
    everybody = dropouts(rate, seed, round, sorted(cohort))
    assert everybody == {client for client in cohort if dropouts(rate, seed, round, [client])}
    assert everybody <= dropouts(rate + (1 - rate) / 2, seed, round, sorted(cohort))


def test_as_many_drop_out_as_were_asked_for() -> None:
    """Each in each round by itself."""
    counts = [len(dropouts(0.3, 1, round, range(1000))) for round in range(1, 51)]
    assert abs(sum(counts) / 50_000 - 0.3) < 0.01
    assert min(counts) < 290 and max(counts) > 310


@pytest.mark.parametrize(("name", "stack"), [("scaffold", 1), ("fedavg", 4), ("krum", 1), ("flower:FedAvg", 1)])
def test_bits_and_dropouts_are_the_same_on_every_engine(name: str, stack: int, engine: Engine, tmp_path: Path) -> None:
    """Sums, stacks, single updates and models; a client that drops out is recorded as failed, and took no step."""
    cohort = {"dropout": 0.4} if name.startswith("flower") else CROWD["cohort"]
    job = small.job({**CROWD, "strategy": {"name": name}, "cohort": cohort, "engine.stack": stack})
    plain = small.run(job, tmp_path / "inline")
    assert small.run(job, tmp_path / "engine", engine).fingerprint == plain.fingerprint
    rows = trained(tmp_path / "engine")
    for number in (1, 2, 3):
        asked = [row.client for row in rows if row.round == number]
        failed = {row.client: row for row in rows if row.round == number and row.status == "failed"}
        assert set(failed) == dropouts(0.4, 1, number, asked) and 0 < len(failed) < len(asked)
        for client, row in failed.items():
            assert row.error == f"round {number}, client {client}: dropped out (cohort.dropout)"
            assert (row.steps, row.bytes_up) == (0, 0)


def test_nothing_else_depends_on_who_drops_out_first(tmp_path: Path) -> None:
    """The cohort is drawn as ever, and a client that answers sends what it would have sent."""
    for name, changes in (("with", CROWD), ("without", {**CROWD, "cohort": {"size": 25}})):
        small.run(small.job({**changes, "rounds": 1}), tmp_path / name)
    sent, all_sent = ({row.client: row.norm for row in trained(tmp_path / name)} for name in ("with", "without"))
    assert sent.keys() == all_sent.keys()
    assert {client: norm for client, norm in all_sent.items() if sent[client] is not None}.items() <= sent.items()


def test_replies_are_still_counted(tmp_path: Path) -> None:
    job = small.job({**CROWD, "cohort": {**CROWD["cohort"], "min_replies": 24}})
    with pytest.raises(StoppedByPolicy, match=r"round 1: \d+ of 25 clients answered, cohort\.min_replies is 24"):
        small.run(job, tmp_path / "run")


def test_where_everybody_drops_out_the_model_stays(tmp_path: Path) -> None:
    job = small.job({**CROWD, "rounds": 2, "cohort": {"size": 3, "dropout": 1 - 1e-9}})
    small.run(job, tmp_path / "run")
    with closing(open_run(tmp_path / "run")) as records:
        first, second = records.rounds()
    assert (first.failed, second.failed) == (3, 3) and first.fingerprint == second.fingerprint


def test_who_drops_out_was_drawn_and_is_charged(tmp_path: Path) -> None:
    """The sampler has picked it; what becomes of it later is nobody's promise."""
    local = {"noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-3}
    changes: small.Changes = {**CROWD, "strategy": {"name": "fedavg", "weights": "uniform"}, "privacy.local": local}
    small.run(small.job(changes), tmp_path / "run")
    with closing(open_run(tmp_path / "run")) as records:
        charged = {row.client: row.participations for row in records.privacy()}
    rows = trained(tmp_path / "run")
    assert any(row.status == "failed" for row in rows)
    assert charged == Counter(row.client for row in rows)


def test_a_client_that_dropped_out_has_no_work_to_replay(tmp_path: Path) -> None:
    small.run(small.job(CROWD), tmp_path / "run")
    gone = next(row for row in trained(tmp_path / "run") if row.status == "failed")
    with pytest.raises(ScenarioError, match=f"round {gone.round}, client {gone.client}: it dropped out"):
        replay(tmp_path / "run", gone.round, gone.client)


def test_pooled_rows_never_drop_out(tmp_path: Path) -> None:
    """Its one client stands for everybody's rows."""
    small.run(small.job({**CROWD, "strategy.name": "central", "cohort.dropout": 0.99}), tmp_path / "run")
    assert all(row.status == "ok" for row in trained(tmp_path / "run"))
