"""What a run keeps of its partition, against rows counted one by one; it holds for every federation."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation
from fedsim.data.holdings import MOST_CLIENTS, PARTS, record
from fedsim.federating import federate
from fedsim.report.chronicle import chronicle
from fedsim.report.run import run_page
from tests import small


def points(y: np.ndarray, owners: np.ndarray, classes: tuple[str, ...] = ()) -> Federation:
    """A federation of rows that have a number each, spread by their owners."""
    corpus = Corpus(
        name="drawn",
        task="classification" if classes else "regression",
        x=np.arange(len(y), dtype=np.float32)[:, None],
        y=y,
        classes=classes,
        clients=owners,
        client_names=tuple(map(str, range(int(owners.max()) + 1))),
    )
    changes = {"data.partition": {"kind": "natural"}, "data.split.central": 0.0, "data.min_rows": 1}
    return federate(small.scenario(changes), Folders.of(None, Path()), lambda folders: corpus)


@settings(max_examples=15, deadline=None)
@given(clients=st.integers(2, 6), seed=st.integers(0, 100))
def test_counts_are_those_of_the_rows(clients: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    owners = np.sort(np.concatenate([np.arange(clients).repeat(4), rng.integers(0, clients, 20)]))
    federation = points(rng.integers(0, 3, len(owners)), owners, ("a", "b", "c"))
    kept = record(federation)
    assert (kept["clients"], kept["rows"], kept["shown"]) == (clients, len(owners), list(range(clients)))
    for client in range(clients):
        counts: Counter[int] = Counter()
        for part in PARTS:
            rows = federation.rows(client, part)
            assert kept["parts"][part][client] == len(rows.y)
            counts.update(rows.y.tolist())
        assert kept["labels"][client] == [counts[label] for label in range(3)]


def test_a_run_keeps_it_and_the_report_draws_it(tmp_path: Path) -> None:
    """As it was made, in the folder; whoever has no data can still see who held what."""
    prepared = small.job({"rounds": 1})
    folder = small.run(prepared, tmp_path / "run").folder
    kept = json.loads((folder / "partition.json").read_text())
    assert kept == record(prepared.federation)
    told = chronicle(folder)
    assert told.partition == kept and "Rows of every client and class" in run_page(told)


def test_targets_are_told_by_quantiles() -> None:
    owners = np.repeat([0, 1], 50)
    y = np.concatenate([np.arange(50), 100 + np.arange(50)]).astype(np.float32)
    kept = record(points(y, owners))
    assert "labels" not in kept
    assert [own[2] for own in kept["targets"]] == [24.5, 124.5]
    assert kept["targets"][0] == np.quantile(y[:50], (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()


def test_of_very_many_clients_some_are_named() -> None:
    """Evenly spread ones, and no more than a reader or a disk can bear."""
    clients = 3 * MOST_CLIENTS
    owners = np.repeat(np.arange(clients), 3)
    kept = record(points(np.zeros(len(owners), dtype=np.int64), owners, ("a", "b")))
    assert (kept["clients"], kept["rows"]) == (clients, 3 * clients)
    assert len(kept["shown"]) == len(kept["names"]) == len(kept["labels"]) == MOST_CLIENTS
    assert (kept["shown"][0], kept["shown"][-1]) == (0, clients - 1)
    assert set(np.diff(kept["shown"]).tolist()) <= {2, 3, 4}
