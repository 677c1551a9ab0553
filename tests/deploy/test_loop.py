"""The loop over nodes: the same bits as simulated, and rounds that go on whatever becomes of a node."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fedsim.deploy.described import Description, federation_of
from fedsim.deploy.remote import Post
from fedsim.errors import DeployError, ScenarioError, StoppedByPolicy
from fedsim.grid import setting
from fedsim.job import Job, prepare_on, with_secret_coins
from fedsim.progress import Silent
from fedsim.rounds import create_folder, execute
from fedsim.runs import RunFolder
from fedsim.stopping import Watch
from fedsim.stored import open_run
from fedsim.summary import succeeded
from tests import small
from tests.deploy.flower_grid import FlowerGrid, deployed, description, server_job, simulated, workforce

BY_CLIENT: small.Changes = {
    "strategy.weights": "uniform",
    "privacy.client": {"noise_multiplier": 1.0, "delta": 0.1, "clip": 1.0},
    "evaluate.clients_every": 0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": {"name": "scaffold"}, "cohort.fraction": 0.6, "rounds": 3},
        {"strategy": {"name": "fedbn"}, "model": {"name": "cnn", "preset": "small", "norm": "batch"}},
        {"strategy": {"name": "krum"}},
        BY_CLIENT,
        {"strategy": {"name": "flower:FedAdam"}},
    ],
    ids=["fedavg", "scaffold", "fedbn", "krum", "client-level", "flower"],
)
def test_deployed_is_simulated_to_the_bit(tmp_path: Path, changes: small.Changes) -> None:
    """A node does the work of `local.py` on its own rows, and sums are bracketed by the cohort alone."""
    job = small.job({"rounds": 2, **changes})
    over_nodes, here = deployed(job, tmp_path / "deployed"), simulated(job, tmp_path / "simulated")
    assert over_nodes.fingerprint == here.fingerprint
    assert over_nodes.values["metrics_last_round"] == here.values["metrics_last_round"]


def test_a_node_that_is_away_has_failed_and_takes_part_again(tmp_path: Path) -> None:
    """It is missed in its rounds alone; the bits are those of a simulation in which it dropped out of them."""
    job = small.job({"rounds": 3, "evaluate.clients_every": 0})
    grid = Fading(job, away={2: {1, 3}})
    deployed(job, tmp_path / "run", grid=grid)
    with closing(open_run(tmp_path / "run")) as records:
        rows = [(row.round, row.client) for row in records.clients() if row.status == "failed"]
        reasons = {str(row.error) for row in records.clients() if row.status == "failed"}
    assert rows == [(2, 1), (2, 3)]
    assert reasons == {"round 2, node-1: it is not connected", "round 2, node-3: it is not connected"}


def test_a_node_that_never_answers_is_late(tmp_path: Path) -> None:
    """What a message may take is bounded, by cohort.client_timeout and what the way takes; the others' round counts."""
    job = small.job({"rounds": 1, "evaluate.clients_every": 0})
    grid = FlowerGrid(job, odd={2: lambda message, reply: None})
    server, force = server_job(job), workforce(grid, limit=0.0)
    force.post.margin = 0.3
    with create_folder(server, tmp_path / "run") as folder:
        execute(server, force, folder, Silent())
    with closing(open_run(tmp_path / "run")) as records:
        assert [row.client for row in records.clients(round=1) if row.status == "failed"] == [2]


def test_a_reply_that_flower_cannot_open_spoils_no_other(tmp_path: Path) -> None:
    """Flower opens replies where it fetches them, so each is fetched alone; bytes that raise are their node's."""
    job = small.job({"rounds": 2, "evaluate.clients_every": 0})
    grid = FlowerGrid(job)
    usual = grid.pull_messages

    def pulled(message_ids: Iterable[str]) -> list[Message]:
        replies = usual(message_ids)
        if any(reply.metadata.src_node_id == grid.ids[2] for reply in replies):
            grid._replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
            raise ValueError("a tree of objects without a root")
        return replies

    grid.pull_messages = pulled  # type: ignore[method-assign]
    deployed(job, tmp_path / "run", grid=grid)
    with closing(open_run(tmp_path / "run")) as records:
        failed = [(row.round, row.client, row.error) for row in records.clients() if row.status == "failed"]
    assert failed == [(n, 2, f"round {n}, node-2: its reply cannot be opened (ValueError)") for n in (1, 2)]


def test_rules_of_a_cohort_hold_for_nodes(tmp_path: Path) -> None:
    """`on_client_error` and `min_replies` end a run over nodes as they end a simulation."""
    rules: list[small.Changes] = [{"cohort.on_client_error": "fail"}, {"cohort.min_replies": 5}]
    for number, changes in enumerate(rules):
        job = small.job({"rounds": 1, "evaluate.clients_every": 0, **changes})
        grid = FlowerGrid(job)
        grid.away = {4}
        with pytest.raises(StoppedByPolicy, match="node-4"):
            succeeded(deployed(job, tmp_path / f"run-{number}", grid=grid))


def test_nodes_whose_owners_keep_measures_are_not_asked_for_them(tmp_path: Path) -> None:
    """An evaluation goes to those alone who let it leave; that does not move the model."""
    job = small.job({"rounds": 1})
    kept, told = FlowerGrid(job), FlowerGrid(job)
    quiet = deployed(job, tmp_path / "quiet", grid=kept, metrics=False)
    assert quiet.fingerprint == deployed(job, tmp_path / "open", grid=told).fingerprint
    assert {message.metadata.message_type for message in kept.asked} == {"train"}
    assert {message.metadata.message_type for message in told.asked} == {"train", "evaluate"}


def test_a_noised_model_is_on_the_disk_before_any_node_has_it(tmp_path: Path) -> None:
    """Under secret coins a round that a kill undid would be noised anew: two models for one charge."""
    seen: list[tuple[int, int]] = []
    job = small.job({"rounds": 3, **BY_CLIENT})

    def note(message: Message) -> None:
        with closing(open_run(tmp_path / "run")) as records:
            seen.append((int(setting(message, "server-round", 0)), len(records.rounds())))

    grid = Watched(job, note)
    server = with_secret_coins(server_job(job))
    with create_folder(server, tmp_path / "run") as folder:
        result = execute(server, workforce(grid), folder, Silent())
    assert set(seen) == {(1, 0), (2, 1), (3, 2)}
    assert result.fingerprint != simulated(job, tmp_path / "here").fingerprint, "the noise is nobody's seed"
    assert "drawn in secret by the server" in " ".join(" ".join(result.lines).split())


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Nodes keep their states, the server its checkpoints; asked again, a round is the same."""
    changes = {"rounds": 4, "strategy": {"name": "scaffold"}, "cohort.fraction": 0.6, "evaluate.clients_every": 0}
    job = small.job(changes)
    grid, server = FlowerGrid(job), server_job(job)

    class Power:
        def round_finished(self, record: object) -> None:
            if len(grid.asked) > 6:
                raise KeyboardInterrupt

        def run_finished(self, result: object) -> None:
            pass

    with pytest.raises(BaseException, match="resume"), create_folder(server, tmp_path / "run") as folder:
        execute(server, workforce(grid), folder, Silent(), [Power()])
    with RunFolder(tmp_path / "run") as folder:
        result = execute(server_job(job), workforce(grid), folder, Silent(), resumed=True)
    assert result.fingerprint == simulated(job, tmp_path / "here").fingerprint


def test_a_described_federation_says_what_its_nodes_say() -> None:
    """Counts, shapes and names are declared; rows are zeros of the right kind, and never more than a few."""
    job = small.job({"data.partition.clients": 3})
    described = [Description.of(description(job, client)) for client in range(3)]
    made = federation_of(["a", "b", "c"], described, job.federation.central, corpus="digits", measured=True)
    for part in ("train", "validation", "test"):
        assert made.sizes(part).tolist() == job.federation.sizes(part).tolist()
    assert list(made.names) == ["a", "b", "c"] and made.digest != job.federation.digest
    rows = made.rows(0, "train")
    assert not rows.x.any() and rows.x.shape[1:] == job.federation.x.shape[1:] and len(rows.x) < 10
    again = [Description.again(json.loads(json.dumps(each.__dict__))) for each in described]
    assert again == described
    prepare_on(made, job.scenario)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("classes", ["0", "1"], "nodes disagree on classes: a has"),
        ("x-shape", [1, 9, 9], r"nodes disagree on shape of rows: a has \[1, 8, 8\], b has \[1, 9, 9\]"),
        ("task", "regression", "nodes disagree on task: a has classification, b has regression"),
        ("fedsim", "9.9.0", "nodes disagree on fedsim's version: a has 0.1, b has 9.9"),
        ("x-type", "object", "its rows are of type object"),
        ("x-shape", [10**9, 10**9], "a shape that no model takes"),
        ("classes", "abc", "classes in another form"),
        ("preprocessing", "[1]", "preprocessing in another form"),
        ("vocabulary", 2.5, "vocabulary in another form"),
        ("counter", -1, "counter in another form"),
    ],
)
def test_nodes_that_disagree_or_say_odd_things_are_named(key: str, value: object, told: str) -> None:
    """One line with both values: the coordinator sees whose data are of another kind."""
    job = small.job({"data.partition.clients": 2})
    contents = [description(job, client) for client in range(2)]
    contents[1]["description"][key] = value  # type: ignore[assignment]
    with pytest.raises(DeployError, match=told):
        described = [Description.of(content) for content in contents]
        federation_of(["a", "b"], described, corpus="digits", measured=True)


def test_central_rows_of_another_kind_are_refused() -> None:
    job = small.job({"data.partition.clients": 2})
    described = [Description.of(description(job, client)) for client in range(2)]
    rows = {part: type(held)(held.x.astype(np.float64), held.y) for part, held in job.federation.central.items()}
    with pytest.raises(DeployError, match="--central: its validation rows are float64"):
        federation_of(["a", "b"], described, rows, corpus="digits", measured=True)


def test_metrics_that_lack_data_are_refused_before_round_1() -> None:
    """Without central rows and without measures of nodes a stop rule would never fire."""
    job = small.job({"stop": {"metric": "global/central-validation/rows/accuracy", "at_least": 0.5}})
    server = server_job(job, central=False)
    with pytest.raises(ScenarioError, match="is never measured"):
        Watch.of(server.scenario, server.build_problem(), server.federation)


def test_a_post_that_the_superlink_refuses_says_so() -> None:
    job = small.job({"data.partition.clients": 2})
    grid = FlowerGrid(job)

    def refused(messages: object) -> list[str]:
        raise ConnectionError("gone")

    grid.push_messages = refused  # type: ignore[method-assign]
    message = Message(description(job, 0), grid.ids[0], "query.describe")
    with pytest.raises(DeployError, match="the SuperLink takes no messages: ConnectionError: gone"):
        Post(grid).send([message])


class Fading(FlowerGrid):
    """Nodes of which some are away in some rounds, told by how many messages the others have had."""

    def __init__(self, job: Job, away: dict[int, set[int]]) -> None:
        super().__init__(job)
        self._away = away

    def get_node_ids(self) -> list[int]:
        last = max((int(setting(message, "server-round", 0)) for message in self.asked), default=0)
        self.away = self._away.get(last + 1, set())
        return super().get_node_ids()


class Watched(FlowerGrid):
    """Nodes that note every message before they answer it."""

    def __init__(self, job: Job, note: Callable[[Message], None]) -> None:
        super().__init__(job)
        self._note = note

    def _answered(self, number: int, message: Message) -> Message:
        self._note(message)
        return super()._answered(number, message)
