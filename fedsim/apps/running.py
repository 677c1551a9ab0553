"""A Flower app's run: its ServerApp here, its clients on an engine, and a folder of what the grid saw.

The model of a run is the arrays that `Strategy.start` returned; of a ServerApp that does not call it, the arrays that
it sent last.
"""

import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Result as Returned
from torch import Tensor

from fedsim import checkpoints, records, seeds
from fedsim.apps.grid import AppGrid, Batch
from fedsim.apps.history import CENTRAL, History, scalars, values_of
from fedsim.apps.lines import Lines
from fedsim.apps.loading import at_hand, load, own_errors
from fedsim.apps.project import FILE, Project, read, sources
from fedsim.apps.results import listening
from fedsim.apps.worker import CLIENT_MODULES, RUN_ID, App, program
from fedsim.background import InOrder
from fedsim.engine import Engine, starting
from fedsim.environment import numerics
from fedsim.errors import FedsimError, Interrupted, StoppedByPolicy
from fedsim.grid import has_main
from fedsim.progress import clock, short_path
from fedsim.records import Event, RoundRecord, Writer
from fedsim.runs import check_out, new_folder, writing
from fedsim.tables import Engine as Settings

NODES = 2
"""Clients where nobody says how many, as in Flower's own simulation."""
SERVER = 1
"""Flower's id of the ServerApp's node."""
TRACEBACK = "traceback.txt"


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        folder: of the run.
        values: its summary, as run.db has it.
    """

    folder: Path
    values: dict[str, Any]


def run(
    folder: Path,
    *,
    nodes: int = NODES,
    overrides: Sequence[str] = (),
    seed: int = 0,
    workers: int | None = None,
    out: Path | None = None,
    lines: Lines | None = None,
    engine: Engine | None = None,
) -> Outcome:
    """Run a Flower app.

    Args:
        folder: of the app, with its pyproject.toml.
        nodes: how many clients there are.
        overrides: settings for this run; see `project.read`.
        seed: of what ServerApp and ClientApp draw from the global generators of torch, NumPy and `random`.
        workers: of Ray; by default one for each core.
        out: the run folder, which must not exist.
        lines: prints what happens.
        engine: where clients run, instead of a Ray of its own.

    Raises:
        FedsimError: the app cannot be run; nothing has been written.
        StoppedByPolicy: the ServerApp raised; what had happened stays in the folder.
        Interrupted: by Ctrl-C; likewise.
    """
    begun, told = time.perf_counter(), lines or Lines()
    project = read(folder, overrides)
    check_out(out)
    with ExitStack() as stack:
        ready = stack.enter_context(_given(engine) if engine is not None else _starting(workers, told))
        _client(project, seed)
        _server(project, seed)
        app = App(project.folder, project.client, project.config, nodes, seed)
        working = ready()
        begin = working.program(partial(program, app), lambda message: 1.0)
        server = _server(project, seed)  # again: where clients are in this process, the modules are theirs by now
        path = new_folder(out, project.name, partial(_fill, project, nodes, seed))
        told.begin([project.name, f"{nodes} nodes", working.description, f"seed {seed}"])
        with writing(path), closing(Run(path, project, nodes, seed, told)) as going:
            going.serve(server, AppGrid(nodes, begin, going.history.sent))
            values = going.finished(time.perf_counter() - begun)
    told.end(_closing(path, values))
    return Outcome(path, values)


@contextmanager
def _starting(workers: int | None, lines: Lines) -> Iterator[Callable[[], Engine]]:
    with starting(Settings(workers=workers), lines.note) as coming:
        yield coming


@contextmanager
def _given(engine: Engine) -> Iterator[Callable[[], Engine]]:
    yield lambda: engine


def _client(project: Project, seed: int) -> None:
    """Import the ClientApp here before anything runs, so that a mistake in it is told at once."""
    at_hand(project.folder)
    with seeds.scope(seed, CLIENT_MODULES):
        load(project.client, project.folder, ClientApp, f"{project.file}: clientapp")


def _server(project: Project, seed: int) -> ServerApp:
    with seeds.scope(seed, "flower app: server's modules"):
        server = load(project.server, project.folder, ServerApp, f"{project.file}: serverapp")
    if not has_main(server):
        raise FedsimError(
            f"{project.file}: serverapp = {project.server!r} has no function under @app.main(): Flower's older form "
            "sends from many threads, in no order that could be repeated; give it a main function that starts a "
            "strategy of flwr.serverapp.strategy"
        )
    return server


class Run:
    """The run of an app that goes on, and the one writer of its folder.

    Attributes:
        history: batches and rounds.
    """

    def __init__(self, path: Path, project: Project, nodes: int, seed: int, lines: Lines) -> None:
        self._path, self._project, self._nodes, self._seed, self._lines = path, project, nodes, seed, lines
        self._database: Writer = records.connect(path / "run.db")
        self._commits = InOrder()
        self.history = History(self._commit)
        self._results: list[Returned] = []
        self._state = RecordDict()

    def _commit(self, record: RoundRecord) -> None:
        """Write a round while the next one goes on."""
        self._commits.start(
            partial(records.insert_round, self._database, record, None, best=False, ledger=()),
        )

    def serve(self, server: ServerApp, grid: AppGrid) -> None:
        """Have the ServerApp do what it does.

        Raises:
            StoppedByPolicy: it raised.
            Interrupted: by its user.
        """
        grid.received = self._received
        context = Context(RUN_ID, SERVER, {}, RecordDict(), dict(self._project.config))
        try:
            with (
                _quiet(),
                listening(self._measured) as self._results,
                closing(grid),
                seeds.scope(self._seed, "flower app: server"),
                own_errors(self._project.folder, "the ServerApp"),
            ):
                server(grid, context)
        except KeyboardInterrupt:
            self._over()
            raise Interrupted(f"interrupted; {self._path} keeps {self.history.rounds} rounds; run it again") from None
        except FedsimError as error:
            self._stopped(error)
            raise StoppedByPolicy(f"{error}; {self._path} keeps {self.history.rounds} rounds") from error
        self._state = context.state

    def _received(self, batch: Batch) -> None:
        self._lines.batch(batch, self.history.received(batch))

    def _measured(self, round: int, arrays: ArrayRecord, metrics: MetricRecord | None) -> None:
        found = scalars(metrics) if metrics is not None else {}
        self.history.measured(found, arrays)
        self._lines.measured(round, found)

    def _over(self) -> None:
        self.history.close()
        self._commits.wait()

    def _stopped(self, error: FedsimError) -> None:
        self._over()
        cause = error.__cause__ or error
        checkpoints.write(self._path / TRACEBACK, "".join(traceback.format_exception(cause)).encode())
        values = {**self._values("stopped", None), "stop": {"kind": "app", "reason": str(error)}}
        records.insert_summary(self._database, values, ledger=(), events=[Event("app", str(error))])

    def finished(self, seconds: float) -> dict[str, Any]:
        """Write what the run came to; the same values."""
        returned = [result.arrays for result in self._results if result.arrays]
        if returned:
            self.history.arrays = returned[-1]
        self._over()
        values = self._values("finished", seconds)
        values["model"] = "returned by Strategy.start" if returned else "the arrays that were sent last"
        for name, arrays in self._kept().items():
            left_out = _save(self._path / "model" / f"{name}.safetensors", arrays)
            for key in left_out:
                self._lines.note(f"model/{name}.safetensors lacks {key}, which is no array of numbers")
        records.insert_summary(self._database, values, ledger=(), events=())
        return values

    def _kept(self) -> dict[str, ArrayRecord]:
        """Arrays by the name of the file that holds them: the model, and what the ServerApp keeps in its context."""
        last = {} if self.history.arrays is None else {"last": self.history.arrays}
        state = {f"state-{name}": record for name, record in self._state.items() if isinstance(record, ArrayRecord)}
        return {**last, **{name.replace("/", "-"): record for name, record in state.items() if record}}

    def _values(self, status: str, seconds: float | None) -> dict[str, Any]:
        history = self.history
        name, value = _headline(history.metrics)
        told = {key: dict(record) for key, record in self._state.items() if not isinstance(record, ArrayRecord)}
        return {
            "title": self._project.name,
            "status": status,
            "folder": str(self._path),
            "app": str(self._project.folder),
            "nodes": self._nodes,
            "seed": self._seed,
            "run_config": self._project.config,
            "rounds": history.rounds,
            "messages": history.messages,
            "failures": history.failures,
            "seconds": seconds,
            "fingerprint": history.fingerprint,
            "headline": {"metric": name, "value": value} if name is not None else None,
            "metrics": history.metrics,
            "results": [_told(result) for result in self._results],
            "state": {key: _plain(values) for key, values in told.items()},
        }

    def close(self) -> None:
        """Let go of the folder."""
        self._commits.close()
        records.disconnect(self._database)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Flower tells of every round, which our lines tell too; `FLWR_LOG_LEVEL` has it back."""
    log = logging.getLogger("flwr")
    usual = log.level, log.propagate
    log.propagate = False  # Flower prints what it logs by itself
    if "FLWR_LOG_LEVEL" not in os.environ:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(usual[0])
        log.propagate = usual[1]


def _headline(metrics: Mapping[str, float]) -> tuple[str | None, float | None]:
    """The metric that a person wants to know first: of the global model, no loss, measured by the ServerApp."""

    def rank(name: str) -> tuple[bool, bool, bool]:
        return name.startswith("trained"), name.endswith("loss"), not name.startswith(CENTRAL)

    first = min(metrics, key=rank, default=None)
    return first, metrics[first] if first is not None else None


def _told(result: Returned) -> dict[str, Any]:
    """The metrics of a strategy's result by round, as JSON has them."""
    parts = {
        "train": result.train_metrics_clientapp,
        "evaluate": result.evaluate_metrics_clientapp,
        "serverapp": result.evaluate_metrics_serverapp,
    }
    return {name: {str(round): dict(record) for round, record in part.items()} for name, part in parts.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them; bytes by their number."""
    return {name: f"{len(value)} bytes" if isinstance(value, bytes) else value for name, value in values.items()}


def _save(file: Path, arrays: ArrayRecord) -> list[str]:
    """Write arrays under their names; those that hold no numbers are left out, and named."""
    found = {name: _tensor(array) for name, array in arrays.items()}
    checkpoints.save(file, {name: each for name, each in found.items() if each is not None}, {"framework": "flower"})
    return [name for name, each in found.items() if each is None]


def _tensor(array: Array) -> Tensor | None:
    values = values_of(array)
    try:
        return None if values is None else torch.from_numpy(values.copy())
    except (TypeError, ValueError):  # of a kind that torch does not know
        return None


def _fill(project: Project, nodes: int, seed: int, made: Path) -> None:
    (made / "model").mkdir()
    checkpoints.write(made / FILE, project.text.encode())
    about = {
        **numerics(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "app": str(project.folder),
        "nodes": nodes,
        "seed": seed,
        "run_config": project.config,
        "sources": sources(project.folder),
    }
    checkpoints.write(made / "environment.json", (records.to_json(about, indent=2) + "\n").encode())
    records.create_tables(made / "run.db")


def _closing(path: Path, values: Mapping[str, Any]) -> list[str]:
    """The block at the end."""
    counts = f"{values['rounds']} rounds · {values['messages']} messages, {values['failures']} failed"
    lines = [f"done in {clock(values['seconds'])} · {counts}"]
    if values["headline"] is not None:
        lines.append(f"{values['headline']['metric']} {values['headline']['value']:.4f}")
    lines.append(f"fingerprint {values['fingerprint']}")
    files = "   ".join(["run.db", *(f"model/{file.name}" for file in sorted((path / "model").iterdir()))])
    return [*lines, f"{short_path(path)}/   {files}"]
