"""Ray workers at work: who has which chunks, and what happens when one dies."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import ray

from fedsim.engine.schedule import ATTEMPTS, Queue, next_worker
from fedsim.errors import FedsimError
from fedsim.grid import Begun, ChunkResult
from fedsim.tables import Engine as Settings

GRACE_SECONDS = 60.0
"""Beyond its clients' time limits, after which a worker counts as stuck in native code."""
NOTICE_SECONDS = 5.0
"""After which it is said what a run waits for."""
BRIEF_SECONDS = 0.1
"""Of work; who has more would gain little by holding a call that nobody else could then do."""
STARTING_SECONDS = 30.0
"""That a worker may take to start on a busy machine."""

FULL = "Ray's object store is full; raise engine.object_store_memory, or make room in /dev/shm and in Ray's folder"

Ref = Any
"""What Ray gives for a value that is not there yet."""


class Workers(Protocol):
    """What a crew needs of an engine.

    Attributes:
        settings: what workers may use.
        tell: is told what is waited for.
        actors: the workers.
    """

    settings: Settings
    tell: Callable[[str], None]
    actors: list[Any]

    def start_worker(self, number: int) -> Any:
        """A new worker at a place, from 0; it may have to wait for a CPU."""


@dataclass(eq=False)
class Batch:
    """Chunks that were begun together.

    Attributes:
        queue: the chunks, and what came back of them.
        records: the arrays that they need, in the object store by name.
        kind: of work; what costs as much takes as long.
        error: why they cannot be done.
    """

    queue: Queue
    records: Mapping[str, Ref]
    kind: str
    error: FedsimError | None = None


class Call(NamedTuple):
    """Some chunks of a batch, by number, given to a worker at once; and what they cost together."""

    batch: Batch
    numbers: Sequence[int]
    cost: float


@dataclass
class Place:
    """A worker's place.

    Attributes:
        number: among the engine's actors.
        installing: the call that makes a new worker ready; None when it is.
        held: the calls that it was given, in order.
        knows: names of the arrays that it got last.
        since: when it began its call.
        deaths: workers that died here before they were ready, one after another.
    """

    number: int
    installing: Ref | None
    held: dict[Ref, Call] = field(default_factory=dict)
    knows: tuple[str, ...] = ()
    since: float = 0.0
    deaths: int = 0

    def ended(self, ref: Ref) -> Call:
        """Take a call away that has come to its end; if another is held, the worker has begun it."""
        self.since = time.monotonic()
        return self.held.pop(ref)


class Crew:
    """The workers, and the batches that they work on, one after another.

    A worker holds the call that it works on and, if it should be done before the others, the next one too, so that it
    need not wait for the driver in between. One that died is replaced while the others go on.

    Attributes:
        places: of the workers.
    """

    def __init__(self, engine: Workers, install: Callable[[Any], Ref], client_timeout: float | None) -> None:
        self._engine, self._install, self._client_timeout = engine, install, client_timeout
        self.places = [Place(number, install(actor)) for number, actor in enumerate(engine.actors)]
        self._batches: list[Batch] = []
        self._pace: dict[str, float] = {}  # seconds that a unit of cost took of late, by kind of work
        self._idle_since = time.monotonic()

    def wait_until_ready(self) -> None:
        """Wait until every worker is."""
        while any(place.installing is not None for place in self.places):
            self._wait()

    def begin(self, batch: Batch) -> Begun:
        """Have a batch done after those that were begun before."""
        self._batches.append(batch)
        self._idle_since = time.monotonic()
        self._hand_out()
        return Begun(lambda: self._results(batch), lambda: self._drop(batch))

    def _results(self, batch: Batch) -> list[ChunkResult]:
        """Keep every worker busy until a batch is done; results in the order of its chunks."""
        try:
            while batch.queue.unfinished and batch.error is None:
                self._wait()
                self._end_stuck()
                self._hand_out()
        finally:
            self._drop(batch)
        if batch.error is not None:
            raise batch.error
        return batch.queue.results()

    def _drop(self, batch: Batch) -> None:
        """Hand out no more of a batch."""
        self._batches = [each for each in self._batches if each is not batch]

    @property
    def _waiting(self) -> int:
        """How many chunks wait for a worker."""
        return sum(len(batch.queue) for batch in self._batches)

    def _wait(self) -> None:
        calls = [ref for place in self.places for ref in place.held]
        starting = [place.installing for place in self.places if place.installing is not None]
        done, _ = ray.wait(calls + starting, num_returns=1, timeout=self._patience(bool(calls)))
        for ref in done:
            self._take_back(ref)
        if calls:
            self._idle_since = time.monotonic()
        elif self._waiting and time.monotonic() - self._idle_since > NOTICE_SECONDS + STARTING_SECONDS:
            self._idle_since = float("inf")
            self._engine.tell("waiting for a CPU: no worker is left, and none could be started in its place")

    def _take_back(self, ref: Ref) -> None:
        place = next(place for place in self.places if ref == place.installing or ref in place.held)
        try:
            came = ray.get(ref)
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
            self._fail(place, ref, FedsimError(FULL))
            return
        except ray.exceptions.RayTaskError as error:
            if ref == place.installing:
                text = f"a worker cannot be made ready{self._within_memory()}: {cause(error.cause)}"
                raise FedsimError(text) from error
            if not isinstance(error.cause, FedsimError):
                raise
            self._fail(place, ref, error.cause)  # as one line; Ray's own error holds a traceback
            return
        except ray.exceptions.RayError as error:  # its process, its machine or its memory was lost
            self._replace(place, cause(error))
            return
        if ref == place.installing:
            place.installing, place.deaths = None, 0
            return
        call, (returned, seconds) = place.ended(ref), came
        if call.cost:
            self._pace[call.batch.kind] = seconds / call.cost
        for number, result in zip(call.numbers, returned, strict=True):
            call.batch.queue.finish(number, result.unpacked())

    def _fail(self, place: Place, ref: Ref, error: FedsimError) -> None:
        """End the batch of a call that cannot be done; whoever waits for it is told."""
        if ref == place.installing:
            raise error
        call = place.ended(ref)
        call.batch.error = error
        self._drop(call.batch)

    def _patience(self, working: bool) -> float | None:
        """Seconds after which some worker may have to be ended, or something said."""
        if not working:
            return NOTICE_SECONDS
        return None if self._client_timeout is None else max(1.0, min(self._client_timeout, GRACE_SECONDS))

    def _end_stuck(self) -> None:
        """End workers that do not even heed their clients' time limit; they are replaced as if they had died."""
        if self._client_timeout is None:
            return
        for place in self.places:
            call = next(iter(place.held.values()), None)
            clients = call.batch.queue.clients(call.numbers) if call is not None else 0
            late = call is not None and time.monotonic() - place.since > clients * self._client_timeout + GRACE_SECONDS
            if late and not _returned(next(iter(place.held))):
                self._replace(place, "it did not heed cohort.client_timeout")

    def _hand_out(self) -> None:
        """Give each next call to the worker that should be done first; of the last ones none to who works for long."""
        ready = [place for place in self.places if place.installing is None]
        while self._waiting and ready:
            held = [list(map(self._seconds, place.held.values())) for place in ready]
            chosen = next_worker(time.monotonic(), [place.since for place in ready], held)
            if chosen is None or (sum(held[chosen]) > BRIEF_SECONDS and self._waiting <= len(ready)):
                return
            place = ready[chosen]
            if not place.held:
                place.since = time.monotonic()
            batch = next(batch for batch in self._batches if len(batch.queue))
            numbers = batch.queue.take(len(ready))
            call = Call(batch, numbers, batch.queue.cost(numbers))
            place.held[self._given(place, call)] = call

    def _seconds(self, call: Call) -> float:
        """That a call should take, as the last of its kind did; of a first one only that larger ones take longer."""
        return self._pace.get(call.batch.kind, 1.0) * call.cost

    def _within_memory(self) -> str:
        """The limit that may be why a worker cannot work at all."""
        memory = self._engine.settings.memory
        return f" (engine.memory = {memory:g} GB may be too little)" if memory is not None else ""

    def _given(self, place: Place, call: Call) -> Ref:
        records, parcels = call.batch.records, call.batch.queue.parcels(call.numbers)
        names = tuple(records)
        new = names if names != place.knows else ()
        place.knows = names
        return self._engine.actors[place.number].run.remote(parcels, new, *(records[name] for name in new))

    def _replace(self, place: Place, reason: str) -> None:
        """Start a worker in the place of one that died, and have what it held done again."""
        calls = list(place.held.values())
        place.deaths += place.installing is not None
        if place.deaths >= ATTEMPTS:
            raise FedsimError(f"a worker died, and so did those in its place{self._within_memory()}: {reason}")
        with suppress(Exception):
            ray.kill(self._engine.actors[place.number])  # it may still live, out of reach
        self._engine.actors[place.number] = actor = self._engine.start_worker(place.number)
        place.held.clear()
        place.installing, place.knows = self._install(actor), ()
        for call in reversed(calls[1:]):
            call.batch.queue.again(call.numbers)
        for call in calls[:1]:
            call.batch.queue.lose(call.numbers, reason)


def _returned(ref: Ref) -> bool:
    """Whether a call has ended: its result may have waited while the driver was at other things."""
    done, _ = ray.wait([ref], timeout=0)
    return bool(done)


def cause(reason: object) -> str:
    """What Ray says of a failure, on one line."""
    return " ".join(str(reason).split())[:200]
