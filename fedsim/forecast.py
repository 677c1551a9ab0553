"""What a run would cost, before it is run: sizes, bytes, epsilon, and a measured estimate of the time."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedsim.algorithm import initial
from fedsim.cohorts import expected_size
from fedsim.local import Received, Work, one_thread
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.batches import steps_of

_MEASURED_STEPS = 20
ROW_BYTES = 90
"""Of one client's row of `run.db`, as `benchmarks/records.py` measures it."""


class Line(NamedTuple):
    """One figure: what it is, its value for programs, its text for people."""

    name: str
    value: Any
    text: str


def forecast(work: Work, workers: int) -> list[Line]:
    """Measure one client's training and evaluation in this process and scale them up.

    Args:
        work: of the job.
        workers: that would share the clients.
    """
    job, scenario, layout = work.job, work.job.scenario, work.layout
    cohort = expected_size(scenario.cohort.rule, work.federation.clients)
    client_seconds, row_seconds = _measure(work)
    held_out = len(work.federation.central["validation"].x)
    own = int((work.federation.validation_ends - work.federation.train_ends).sum())
    every, clients_every = scenario.evaluate.every, scenario.evaluate.clients_every
    evaluation = row_seconds * (held_out / every + (own / clients_every if clients_every else 0))
    seconds = (cohort * client_seconds + evaluation) / workers
    down, up = round(cohort * work.bytes_down(True)), round(cohort * work.bytes_up)
    arrays = [
        work.federation.x,
        work.federation.y,
        *(part for rows in work.federation.central.values() for part in rows),
    ]
    data = sum(array.nbytes for array in arrays)
    memory = data + round(cohort * _state_bytes(work))
    disk = _disk(work, cohort)
    records = _record_rows(work, cohort) * ROW_BYTES
    rows = work.federation.train_rows
    lines = [
        Line("clients", work.federation.clients, f"{work.federation.clients:,}"),
        Line("cohort", cohort, f"{cohort:g} clients a round"),
        Line("train_rows", int(rows.sum()), f"{rows.min():,} to {rows.max():,} a client, median {np.median(rows):g}"),
        Line("parameters", layout.size, f"{layout.size:,}"),
        Line("bytes_down", down, f"{_size(down)} a round, in all"),
        Line("bytes_up", up, f"{_size(up)} a round, in all"),
        Line("memory", memory, f"{_size(data)} of rows, {_size(memory - data)} of a cohort's states"),
        Line("disk", disk + records, f"{_size(disk)} of checkpoints and models at most, {_size(records)} of records"),
        Line(
            "seconds",
            seconds * scenario.rounds,
            f"{seconds:.2f} s/round measured, {seconds * scenario.rounds:.0f} s in all",
        ),
    ]
    if job.privacy is not None:
        lines.append(_epsilon(work))
    return lines


def _state_bytes(work: Work) -> int:
    """Bytes that one client keeps between rounds."""
    personal = int(work.personal.sum()) if work.personal is not None else 0
    values = len(work.algorithm.client_state) * work.layout.size + personal
    return values * work.initial.vector.element_size()


def _disk(work: Work, cohort: float) -> int:
    """Most bytes of models, checkpoints and clients' states, of which at least half live in every file."""
    scenario, clients, kept = work.job.scenario, work.federation.clients, work.job.scenario.checkpoint
    model = work.layout.size * work.initial.vector.element_size()
    checkpoint = model * (1 + len(work.algorithm.shared) + len(work.algorithm.server_state)) + 8 * clients
    living = min(clients, cohort * scenario.rounds)
    changing = kept.keep * min(clients, cohort * kept.every)
    return checkpoint * (kept.keep + 1) + 2 * model + round((2 * living + changing) * _state_bytes(work))


def _record_rows(work: Work, cohort: float) -> int:
    """Rows of clients in `run.db` at the end, failures apart."""
    scenario, own = work.job.scenario, work.federation.validation_ends - work.federation.train_ends
    every, choice = scenario.evaluate.clients_every, scenario.records.clients
    share = {"all": 1.0, "failed": 0.0}.get(choice, choice) if isinstance(choice, str) else choice
    a_round = cohort + (int((own > 0).sum()) / every if every else 0)
    return round(scenario.rounds * a_round * float(share))


def _epsilon(work: Work) -> Line:
    plan = work.job.privacy
    assert plan is not None
    epsilon = plan.epsilon
    text = (
        f"{rounded_up(epsilon, 3)} at delta {plan.delta:g} after {plan.max_participations} participations "
        f"(noise multiplier {plan.noise_multiplier:.3f}, zero-out)"
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
    job, train, rows = work.job, work.job.scenario.train, int(work.federation.train_rows[client])
    steps = train.steps or steps_of(rows, train.batch_size, train.epochs or 1)
    if steps <= _MEASURED_STEPS:
        return work, 1.0
    few = job.scenario.changed({"train.steps": _MEASURED_STEPS})
    privacy = job.privacy and replace(job.privacy, steps=np.minimum(job.privacy.steps, _MEASURED_STEPS))
    return Work(replace(job, scenario=few, privacy=privacy)), steps / _MEASURED_STEPS


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError("unreachable")
