"""What a run would cost, before it is run: sizes, bytes, epsilon, and a measured estimate of the time."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedsim import sketches
from fedsim.algorithm import initial
from fedsim.cohorts import expected_size
from fedsim.evaluation import asked
from fedsim.flower import central_block
from fedsim.local import Received, Work, one_thread
from fedsim.privacy.accountant import rounded_up
from fedsim.stock import cohort_size

_MEASURED_STEPS = 20
CLIENT_ROW_BYTES, METRIC_ROW_BYTES, PRIVACY_ROW_BYTES, ROUND_ROW_BYTES, STATE_ROW_BYTES = 90, 58, 28, 280, 30
SKETCH_ROW_BYTES = 390
"""Of rows of `run.db`, a metric's besides its short name: pages by table (SQLite's `dbstat`) over rows.

From quickstart (60 rounds, with and without privacy) and mnist-2nn (20 rounds); states' by their columns.
`benchmarks/commits.py` measures clients' rows by the million.
"""
EMPTY_BYTES = 66_000
"""Of a run without rows: tables' first pages, folders, scenario, environment and model card; measured likewise."""
SUMMARY_BYTES = 250
"""Of one metric in the summary and the model card."""
TENSOR_BYTES = 120
"""Of one tensor's entry in the head of a safetensors file, with its share of the rest of the head."""
MESSAGE_SECONDS = 0.0008
"""Of the server for one message: a round's seconds less those in clients and evaluation, same runs, inline."""


class Line(NamedTuple):
    """One figure: what it is, its value for programs, its text for people."""

    name: str
    value: Any
    text: str


class Cost(NamedTuple):
    """What a whole run takes: seconds, bytes of checkpoints, states and models, and bytes of everything else."""

    seconds: float
    models: int
    records: int


def forecast(work: Work, workers: int, beside: Mapping[str, Work] = MappingProxyType({})) -> list[Line]:
    """Measure one client's training and evaluation in this process and scale them up.

    Args:
        work: of the job.
        workers: that would share the clients.
        beside: of the jobs that are run after it, by what people call them.
    """
    federation, rounds = work.federation, work.job.scenario.rounds
    cohort = _cohort(work)
    costs = [_cost(each, workers) for each in (work, *beside.values())]
    seconds, models, records = (sum(parts) for parts in zip(*costs, strict=True))
    down, up = round(cohort * work.bytes_down(True)), round(cohort * work.bytes_up)
    central = [part for rows in federation.central.values() for part in rows]
    data = sum(array.nbytes for array in (federation.x, federation.y, *central))
    memory = data + round(cohort * _state_bytes(work))
    disk = f"{size(models)} of checkpoints and models at most, {size(records)} of records"
    time_text = f"{costs[0].seconds / rounds:.2f} s/round measured, {seconds:.0f} s in all"
    if beside:
        disk += ", runs beside it included"
        time_text += f", {seconds - costs[0].seconds:.0f} of them for runs beside it"
    rows = federation.train_rows
    lines = [
        Line("clients", federation.clients, f"{federation.clients:,}"),
        Line("cohort", cohort, f"{cohort:g} clients a round"),
        Line("train_rows", int(rows.sum()), f"{rows.min():,} to {rows.max():,} a client, median {np.median(rows):g}"),
        Line("parameters", work.layout.size, f"{work.layout.size:,}"),
        Line("bytes_down", down, f"{size(down)} a round, in all"),
        Line("bytes_up", up, f"{size(up)} a round, in all"),
        Line("memory", memory, f"{size(data)} of rows, {size(memory - data)} of a cohort's states"),
        Line("disk", models + records, disk),
        Line("seconds", seconds, time_text),
        *([Line("beside", list(beside), ", ".join(beside))] if beside else []),
    ]
    return lines if work.job.privacy is None else [*lines, _epsilon(work)]


def disk_bytes(work: Work) -> int:
    """Most bytes of a whole run's folder."""
    cohort = _cohort(work)
    return _model_bytes(work, cohort) + _record_bytes(work, cohort)


def _cohort(work: Work) -> float:
    """Clients a round, of those that have train rows."""
    able = int((work.federation.train_rows > 0).sum())
    if work.algorithm.flower is not None:
        return cohort_size(work.algorithm.flower(), able)
    return min(expected_size(work.job.rule, work.federation.clients), able)


def _cost(work: Work, workers: int) -> Cost:
    cohort = _cohort(work)
    return Cost(_seconds(work, cohort, workers), _model_bytes(work, cohort), _record_bytes(work, cohort))


def _seconds(work: Work, cohort: float, workers: int) -> float:
    """Of all rounds."""
    scenario, own = work.job.scenario, _held_out(work)
    client_seconds, row_seconds = _measure(work)
    held_out = len(work.federation.central["validation"].x)
    every, clients_every = scenario.evaluate.every, scenario.evaluate.clients_every
    evaluation = row_seconds * (held_out / every + (int(own.sum()) / clients_every if clients_every else 0))
    blocks = math.ceil(held_out / central_block(held_out, scenario.evaluate.batch_size))
    messages = cohort + blocks / every + _evaluated(work)
    return scenario.rounds * ((cohort * client_seconds + evaluation) / workers + messages * MESSAGE_SECONDS)


def _evaluated(work: Work) -> float:
    """Clients that evaluate in a round, on average."""
    every = work.job.scenario.evaluate.clients_every
    return len(_held_out(work)) / every if every else 0.0


def _held_out(work: Work) -> np.ndarray:
    """[n] validation rows of the clients that are asked for them."""
    clients = asked(work.job.scenario, work.federation, "validation", work.job.attackers)
    rows: np.ndarray = work.federation.sizes("validation")[clients]
    return rows


def _state_bytes(work: Work) -> int:
    """Bytes that one client keeps between rounds."""
    return sum(vector.numel() * vector.element_size() for vector in work.first_state().values())


def _states(work: Work, cohort: float) -> float:
    """Most clients' states on the disk; of those in use at least half live in every file."""
    clients, kept = work.federation.clients, work.job.scenario.checkpoint
    living = min(clients, cohort * work.job.scenario.rounds)
    return 2 * living + (kept.keep + 1) * min(clients, cohort * kept.every)


def _model_bytes(work: Work, cohort: float) -> int:
    """Most bytes of models, checkpoints and clients' states.

    Every kept checkpoint keeps the best model up to it too, and one more is being written.
    """
    scenario, layout = work.job.scenario, work.layout
    values, tensors = layout.size + layout.buffer_size, len(layout.parameters) + len(layout.buffers) + 2
    vectors = len(work.algorithm.shared) + len(work.algorithm.server_state)
    size = work.initial.vector.element_size()
    checkpoint = (values + vectors * layout.size) * size + 8 * work.federation.clients
    constants = sum(tensor.nbytes + TENSOR_BYTES for tensor in work.plain.constants.values())
    files = min(2 * scenario.checkpoint.keep + 1, scenario.rounds)
    whole = files * (checkpoint + (tensors + vectors) * TENSOR_BYTES) + 2 * (
        values * size + tensors * TENSOR_BYTES + constants
    )
    state = _state_bytes(work)
    return whole + (round(_states(work, cohort) * (state + 2 * TENSOR_BYTES)) if state else 0)


def _record_bytes(work: Work, cohort: float) -> int:
    """Of `run.db` at the end, the small files and the user's own; clients' error texts apart.

    While the run goes on SQLite keeps a log of some 4 MB beside it.
    """
    scenario, clients = work.job.scenario, work.federation.clients
    rows = scenario.rounds * ROUND_ROW_BYTES + _client_rows(work, cohort) * CLIENT_ROW_BYTES
    rows += sketches.count(scenario.rounds) * cohort * _recorded(work) * SKETCH_ROW_BYTES
    accounts = scenario.rounds * cohort + clients if work.job.privacy is not None else 0
    states = _states(work, cohort) if _state_bytes(work) else 0
    own = sum(path.stat().st_size for path in scenario.own_files())
    fixed = EMPTY_BYTES + own + _metric_bytes(work)
    return round(fixed + rows + accounts * PRIVACY_ROW_BYTES + states * STATE_ROW_BYTES)


def _client_rows(work: Work, cohort: float) -> float:
    """Rows of clients in `run.db` at the end, failures apart."""
    return work.job.scenario.rounds * (cohort + _evaluated(work)) * _recorded(work)


def _recorded(work: Work) -> float:
    """The share of clients of whom more than failures is recorded."""
    choice = work.job.scenario.records.clients
    return float({"all": 1.0, "failed": 0.0}.get(choice, choice) if isinstance(choice, str) else choice)


def _metric_bytes(work: Work) -> int:
    """Of metrics, in their table and in the summary: central, and models' on clients' rows, four ways to weight."""
    scenario, names = work.job.scenario, work.problem.metric_names()
    central = -(-scenario.rounds // scenario.evaluate.every) if len(work.federation.central["validation"].x) else 0
    every = scenario.evaluate.clients_every
    models = 2 if work.algorithm.personalised else 1
    clients = 4 * models * -(-scenario.rounds // every) if every and work.federation.sizes("validation").any() else 0
    one = sum(METRIC_ROW_BYTES + len(name.encode()) for name in names)
    return (central + clients) * one + (1 + 4 * models) * len(names) * SUMMARY_BYTES


def _epsilon(work: Work) -> Line:
    plan = work.job.privacy
    assert plan is not None
    epsilon = plan.epsilon
    times = f"{plan.rounds} rounds" if plan.by_round else f"{plan.most} participations"
    text = (
        f"{rounded_up(epsilon, 3)} at delta {plan.delta:g} after {times} "
        f"(noise multiplier {plan.noise_multiplier:.3f}, {plan.relation})"
    )
    return Line("epsilon", epsilon, text)


@one_thread()
def _measure(work: Work) -> tuple[float, float]:
    """Seconds for a client with the median number of rows, and for evaluating a row."""
    rows = work.federation.train_rows
    able = np.flatnonzero(rows)
    client = int(able[np.argsort(rows[able], kind="stable")[len(able) // 2]])
    work, times = _shortened(work, client)
    received = Received(work.initial, initial(work.algorithm.shared, work.initial.vector, work.federation.clients))
    work.train(client, 1, received, None)  # the first pass also pays for allocations
    started = time.perf_counter()
    work.train(client, 1, received, None)
    trained = times * (time.perf_counter() - started)
    started = time.perf_counter()
    work.evaluate(work.initial, work.federation.rows(client, "train"), f"client {client}")
    return trained * float(rows[able].mean() / rows[client]), (time.perf_counter() - started) / int(rows[client])


def _shortened(work: Work, client: int) -> tuple[Work, float]:
    """The same work with few enough steps to be measured, and how many times as many the client takes."""
    job, steps = work.job, work.job.local_steps(client)
    if steps <= _MEASURED_STEPS:
        return work, 1.0
    each = _MEASURED_STEPS if job.apart is None else 1  # of pooled rows that is a cohort's together
    few = replace(job, scenario=job.scenario.changed({"train.steps": each}))
    return Work(few), steps / few.local_steps(client)


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError("unreachable")
