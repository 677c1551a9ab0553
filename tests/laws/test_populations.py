"""Where rows come from changes no bit, and what nobody asks for costs nothing."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.population import Population
from fedsim.data.sources.synthetic import synthetic
from fedsim.engine import Engine
from fedsim.engine.inline import InlineEngine
from fedsim.federating import CorpusSource
from fedsim.flower import AlgorithmStrategy
from fedsim.job import Job, prepare_on
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.records import ClientRow
from fedsim.stored import open_run
from tests import small

if TYPE_CHECKING:
    pass

SETTINGS: dict[str, Any] = {"clients": 12, "rows": 20}
CHANGES: small.Changes = {
    "data": {"name": "synthetic", **SETTINGS, "partition": {"kind": "natural"}},
    "cohort.size": 5,
    "strategy.name": "scaffold",
    "train.learning_rate": 0.05,
    "train.batch_size": 8,
}
TRAIN_ONLY: small.Changes = {"data.split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0}}
OWN = """
import numpy as np
from fedsim.data.federation import Rows
from fedsim.data.population import Population
from fedsim.data.sources.synthetic import synthetic

def scaled(rows, by):
    return Rows(rows.x * np.float32(by), rows.y)

def mine(folders, *, by: float = 1.0) -> Population:
    plain = synthetic(folders, clients=12, rows=20)
    return Population(plain.name, plain.task, plain.sizes, lambda client: scaled(plain.rows(client), by),
                      plain.classes, plain.preprocessing, plain.test)
"""


def found(changes: small.Changes = small.NOTHING, folder: Path = Path(), data: CorpusSource | None = None) -> Job:
    """A job whose rows are found on demand."""
    return small.job({**CHANGES, **changes}, folder, data=data)


def held(job: Job) -> Job:
    """The same job with all rows in arrays."""
    federation, parts = job.federation, ("train", "validation", "test")
    each = [federation.rows(client, part) for client in range(federation.clients) for part in parts]  # type: ignore[arg-type]
    x, y = (np.concatenate(arrays) for arrays in zip(*each, strict=True))
    return prepare_on(replace(federation, x=x, y=y, source=None), job.scenario)


def outcome(
    job: Job, out: Path, engine: Engine | None = None
) -> tuple[str, dict[str, dict[int, float]], list[ClientRow]]:
    """Fingerprint, metrics of every round, and clients' rows without their times."""
    fingerprint = small.run(job, out, engine).fingerprint
    with closing(open_run(out)) as records:
        metrics = {name: dict(values) for name, values in records.metrics().items()}
        return fingerprint, metrics, [replace(row, seconds=0.0) for row in records.clients()]


def test_rows_found_on_demand_give_the_bits_of_rows_in_arrays(engine: Engine, tmp_path: Path) -> None:
    """Training, evaluation on clients' own rows and on the central sets, states: on any engine."""
    job = found()
    assert not len(job.federation.x)
    assert outcome(job, tmp_path / "found", engine) == outcome(held(job), tmp_path / "held")


def test_a_population_gives_the_bits_of_a_corpus_of_its_rows(tmp_path: Path) -> None:
    """Where nothing is split off; a corpus deals each row by itself, a population a number of rows to each part."""
    population = synthetic(Folders((), Path()), **SETTINGS, central_clients=0)

    def corpus(folders: Folders) -> Corpus:
        each = [population.rows(client) for client in range(12)]
        x, y = (np.concatenate(arrays) for arrays in zip(*each, strict=True))
        owners, names = np.repeat(np.arange(12), 20), tuple(map(str, range(12)))
        return Corpus(population.name, "classification", x, y, population.classes, {}, owners, names)

    changes = {"data.central_clients": 0, "evaluate.clients_every": 0, **TRAIN_ONLY}
    ours, theirs = (
        outcome(found(changes, data=data), tmp_path / name) for name, data in (("found", None), ("corpus", corpus))
    )
    assert ours == theirs


def test_mapped_arrays_give_the_bits_of_the_function_that_wrote_them(engine: Engine, tmp_path: Path) -> None:
    population = synthetic(Folders((), Path()), **SETTINGS)
    arrays = [np.concatenate(part) for part in zip(*map(population.rows, range(12)), strict=True)]
    test = population.test
    assert test is not None
    files = {"x": arrays[0], "y": arrays[1], "offsets": np.arange(13) * 20, "test_x": test.x, "test_y": test.y}
    (tmp_path / population.name).mkdir()
    for name, array in files.items():
        np.save(tmp_path / population.name / f"{name}.npy", array)
    data = {"name": "arrays", "path": population.name, "classes": 10, "partition": {"kind": "natural"}}
    mapped = small.job({**CHANGES, "data": data}, tmp_path)
    assert outcome(mapped, tmp_path / "mapped", engine) == outcome(found(), tmp_path / "found")


def test_a_users_population_reaches_the_workers(engine: Engine, tmp_path: Path) -> None:
    """Its file is in nobody's path, and its rows are a closure over it."""
    (tmp_path / "mine.py").write_text(OWN)
    own = {"name": "mine.py:mine", "partition": {"kind": "natural"}}
    plain = outcome(found(), tmp_path / "plain")
    assert outcome(found({"data": own}, tmp_path), tmp_path / "own", engine) == plain
    scaled = outcome(found({"data": {**own, "by": 2.0}}, tmp_path), tmp_path / "scaled", engine)
    assert scaled[0] != plain[0]


def test_a_client_whose_rows_are_not_sound_fails_alone(engine: Engine, tmp_path: Path) -> None:
    """A bad row of a million is found when it is read, and is that client's failure."""

    def bad(folders: Folders) -> Population:
        sound = synthetic(folders, clients=200, rows=20)
        return replace(
            sound,
            rows=lambda client: sound.rows(client if client != 100 else 10**9)._replace(
                **({"y": np.full(20, 99)} if client == 100 else {})
            ),
        )

    job = found({"cohort": {}, "rounds": 1, "evaluate.clients_every": 0}, data=bad)
    _, _, rows = outcome(job, tmp_path / "run", engine)
    (failed,) = [row for row in rows if row.status == "failed"]
    assert failed.client == 100 and "has classes 99 to 99 in y but names 10" in str(failed.error)


def test_a_million_clients_cost_a_few_numbers_each() -> None:
    """Preparing a run and addressing a cohort: 8-byte numbers per client, no object and no row of those not asked."""
    changes: small.Changes = {**TRAIN_ONLY, "data.central_clients": 0, "cohort.size": 200, "evaluate.clients_every": 0}
    thousand, million = (spent({**changes, "data.clients": clients}) for clients in (1_000, 1_000_000))
    assert million - thousand < 150e6


def spent(changes: small.Changes) -> int:
    """Peak bytes of preparing a job and asking a cohort."""
    tracemalloc.start()
    try:
        job = found({**changes, "strategy.name": "fedavg"})
        work, grid = Work(job), InlineEngine().grid(job)
        strategy = AlgorithmStrategy(work)
        messages = strategy.configure_train(1, to_record(work.layout, work.initial), ConfigRecord(), grid)
        assert len(messages) == 200
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_clients_that_measure_are_drawn_once_and_measure_what_all_would(engine: Engine, tmp_path: Path) -> None:
    """The same in every round, on any engine; each finds what it finds when everybody is asked."""
    everybody = outcome(found(), tmp_path / "all")
    some = outcome(found({"evaluate.clients": 4}), tmp_path / "some", engine)
    assert some[0] == everybody[0]
    asked = [[row.client for row in some[2] if row.phase == "evaluate" and row.round == number] for number in (1, 2)]
    assert asked[0] == asked[1] == sorted(set(asked[0])) and len(asked[0]) == 4
    assert {(row.round, row.client, row.loss) for row in some[2] if row.phase == "evaluate"} <= {
        (row.round, row.client, row.loss) for row in everybody[2] if row.phase == "evaluate"
    }
    with closing(open_run(tmp_path / "some")) as records:
        summary = records.summary()
    assert (summary["clients_asked"], summary["clients_counted"] <= 4) == (4, True)
