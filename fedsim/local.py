"""One client's work in one round: train on its own rows, or measure a model on them.

`Work` lives in a worker and does the work of any client, one after another, on one model that lies on flat
vectors. The training itself is in `training.py`. Clients of a stack train together (`together.py`), and each comes to
`Work.contribution` as one that has trained alone.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedsim import seeds
from fedsim.algorithm import Upload, Vectors, initial
from fedsim.compiled import Program
from fedsim.composition import personal_masks
from fedsim.data.federation import Rows
from fedsim.devices import make_repeatable, of_worker
from fedsim.errors import ClientError, FedsimError, NotFiniteError, one_line
from fedsim.functional import StackedModel
from fedsim.images import prefer_channels_last
from fedsim.job import Job
from fedsim.metrics import Statistics
from fedsim.parameters import FlatModule, Weights, from_record, is_finite
from fedsim.passes import Passes
from fedsim.privacy.example import private_module
from fedsim.privacy.uploads import clipped, gaussian, noised, norm_of, with_bit
from fedsim.problem import evaluate
from fedsim.signals import time_limit
from fedsim.sketches import Sketcher
from fedsim.states import State
from fedsim.training import LocalClient, Step

_PERSONAL, _PERSONAL_BUFFERS = "personal", "personal-buffers"
"""Names of a client's own values in its state."""
_LARGEST = torch.finfo(torch.float32).max


class Received(NamedTuple):
    """What the server sent: the model, vectors of the algorithm by name, and the clip norm where it follows updates."""

    weights: Weights
    shared: Vectors
    clip: float | None = None


class Contribution(NamedTuple):
    """What a client sends back.

    Attributes:
        vector: [D + E + extras] update, change of floating buffers, extras in the algorithm's order; of clients under
            an adaptive clip one value more, their bit.
        scalars: the algorithm's scalars.
        state: the client's new state; it does not leave the client.
        norm: Euclidean norm of what the client would send without `privacy.client`, which clips it; infinite where its
            square is.
        loss: mean training loss over the steps.
        steps: optimiser steps taken.
    """

    vector: Tensor
    scalars: dict[str, float]
    state: State
    norm: float
    loss: float
    steps: int


class _Done(NamedTuple):
    """What a client half came to: vector, the client's new state, and scalars, as in `Contribution`."""

    vector: Tensor
    state: State
    scalars: dict[str, float]


class Work:
    """Does any client's work, in this process."""

    def __init__(self, job: Job, worker: int = 0) -> None:
        """Set up for a job's work.

        Args:
            job: to be done.
            worker: which of several this is, from 0; they share the devices.
        """
        self.job = job
        self.device = of_worker(job.scenario.engine.devices or ["cpu"], worker)
        self.federation = job.federation
        self.problem = job.build_problem()
        self.algorithm = job.build_algorithm()
        plain = job.build_model()
        self.private = private_module(plain, job.model_title) if job.scenario.privacy.example is not None else None
        self.plain = FlatModule(prefer_channels_last(plain))  # after its twin: gradients of rows need the usual way
        self.passes = Passes(self.plain, self.problem, job.scenario.train)
        self.layout = self.plain.layout
        self.initial = Weights(self.plain.vector, self.plain.buffers).clone()
        pattern = self.algorithm.personal
        self.personal = personal_masks(self.layout, pattern) if pattern is not None else None
        self.program = Program(job.compiled, self.plain) if job.compiled is not None else None
        self.leaving = self._leaving()
        self.adversary, self.attackers = job.build_adversary(), frozenset(job.attackers)
        self.frozen: list[FlatModule] = []
        self._latest: tuple[ArrayRecord, Weights] | None = None

    @property
    def width(self) -> int:
        """W, how many clients are trained at once."""
        return self.job.scenario.engine.stack or 1

    @cached_property
    def stacked(self) -> StackedModel:
        """The model as a function of the flat vectors of a stack."""
        make_repeatable(self.device, self.job.scenario.engine.gpu_memory)
        return StackedModel(self.job.build_model().to(self.device), self.problem)

    @cached_property
    def sketcher(self) -> Sketcher:
        """Makes sketches of updates, the same in every worker."""
        return Sketcher(self.job.scenario.seed, self.layout.size)

    def bytes_down(self, training: bool) -> int:
        """Bytes of the arrays that a real network would carry to a client."""
        shared = len(self.algorithm.shared) * self.layout.size if training else 0
        values = self.layout.size + self.layout.buffer_size + shared - self._kept_back
        return values * self.initial.vector.element_size()

    @property
    def bytes_up(self) -> int:
        """Bytes of the arrays in a client's contribution that a real network would carry."""
        return (self.contribution_size - self._kept_back) * self.initial.vector.element_size()

    @property
    def _kept_back(self) -> int:
        """Values of the model that never leave their client."""
        return sum(int(mask.sum()) for mask in self.personal) if self.personal is not None else 0

    @property
    def contribution_size(self) -> int:
        """D + E + extras, the length of a client's contribution; with the bit of an adaptive clip."""
        values = self.layout.size * (1 + len(self.algorithm.extra)) + self.layout.buffer_size
        return values + int(self.job.privacy is not None and self.job.privacy.adaptive is not None)

    def _leaving(self) -> Tensor | None:
        """[D + E + extras] bool, the coordinates that leave their clients; None for all."""
        if (masks := self.personal) is None:
            return None
        extras = torch.ones(self.layout.size * len(self.algorithm.extra), dtype=torch.bool)
        return torch.cat([~masks.parameters, ~masks.buffers, extras])

    @property
    def noises_itself(self) -> bool:
        """Whether each client noises what it sends, by `privacy.local`."""
        return self.job.privacy is not None and self.job.privacy.level == "local"

    def received(self, record: ArrayRecord) -> Weights:
        """The flat vectors of a model as it was sent; decoded once for all clients that got the same record."""
        if self._latest is None or self._latest[0] is not record:
            self._latest = record, from_record(self.layout, record)
        return self._latest[1]

    def train(
        self, number: int, round: int, received: Received, state: State | None, steps: list[Step] | None = None
    ) -> Contribution:
        """One client's round.

        Args:
            number: the client.
            round: from 1.
            received: model and shared vectors.
            state: the client's own vectors, None before its first accepted round.
            steps: gets every step that is taken, also up to a failure; the same bits, a little slower.

        Draws from the global generators (dropout) are seeded here; `seeds.preserved` keeps the caller's.

        Raises:
            ClientError: names round and client; whatever went wrong in the client's work.
        """
        with self.named(number, round), self.limited():
            client = self.client(number, round, received, state, steps)
            seeds.seed_globals(self.job.scenario.seed, "train", round, number)
            return self.contribution(client, lambda: self._worked(client), received.clip)

    @contextmanager
    def named(self, number: int, round: int) -> Iterator[None]:
        """Whatever goes wrong inside the block is that client's failure, and names it."""
        try:
            yield
        except FedsimError as error:
            raise ClientError(f"round {round}, client {number}: {error}") from error
        except Exception as error:
            raise ClientError(f"round {round}, client {number}: {one_line(error)}") from error

    @contextmanager
    def limited(self, clients: int = 1) -> Iterator[None]:
        """The work of one client, or of several at once: its time limit, and models that are in order afterwards."""
        limit, key = self.job.scenario.cohort.client_timeout, "cohort.client_timeout"
        what = key if clients == 1 else f"{key} times {clients} clients that are trained together"
        try:
            with time_limit(None if limit is None else limit * clients, what):
                yield
        except Exception:
            for flat in filter(None, (self.plain, self.private)):
                with suppress(RuntimeError):  # a model that has changed its parameters' type stays as it is
                    flat.reattach()
            raise

    def client(
        self, number: int, round: int, received: Received, state: State | None, steps: list[Step] | None = None
    ) -> LocalClient:
        """A client as it begins its round; arguments as of `train`."""
        own = self._own(state)
        weights = self._personalised(received.weights, own)
        return LocalClient(self, number, round, weights.vector, received.shared, own, weights.buffers, steps)

    def contribution(self, client: LocalClient, worked: Callable[[], Upload], clip: float | None) -> Contribution:
        """What leaves a client, alone or of a stack; to be called inside `named`.

        Args:
            client: as it is after its steps.
            worked: gives what its client half came to, or raises why it has failed.
            clip: see `Received`.
        """
        number, round = client.number, client.round
        try:
            done = self._done(client, worked())
        except NotFiniteError:
            if not self.noises_itself:
                raise
            nothing = torch.zeros(self.contribution_size, dtype=client.received.dtype)
            done = _Done(nothing, client.state, {})  # a failure would be seen
        vector = self._cut(self._sent(number, round, self._noised(number, round, done.vector)))
        norm = math.sqrt(float(vector @ vector))
        if not (math.isfinite(norm) or is_finite(vector)):
            raise ClientError(f"the update is not finite after {client.steps} steps. {client.advice}")
        vector = self._clipped(vector, clip)
        return Contribution(vector, done.scalars, done.state, norm, client.mean_loss, client.steps)

    def _worked(self, client: LocalClient) -> Upload:
        """What the client half makes of what it received."""
        untouched = client.received._version
        upload = self.algorithm.client(client)
        if client.received._version != untouched:  # the next client of the chunk reads the same memory
            raise ClientError("the strategy's client half changed local.received in place; compute a new vector")
        return upload

    def _done(self, client: LocalClient, upload: Upload) -> _Done:
        """An upload as one vector, and what stays with the client."""
        self._check_shapes(upload)
        kept, update = dict(upload.state), upload.update
        buffers = client.buffers if upload.buffers is None else upload.buffers
        change = self._change(client.first_buffers, buffers)
        if (masks := self.personal) is not None:
            own = (client.received + update)[masks.parameters]
            kept |= {_PERSONAL: own, _PERSONAL_BUFFERS: buffers[masks.buffers]}
        vector = self._packed(upload, change)
        if self.noises_itself and not is_finite(vector):
            raise NotFiniteError("the update is not finite")
        return _Done(vector, kept, self._scalars(upload))

    def own_model(self, number: int, round: int, received: Received, state: State | None) -> Weights:
        """A client's own model, of an algorithm that gives it one.

        Args:
            number: the client.
            round: after which it is asked.
            received: the global model and the shared vectors as they are then.
            state: the client's own vectors, None before its first accepted round.
        """
        client = self.client(number, round, received, state)
        weights = Weights(client.received, client.first_buffers)
        if self.algorithm.own_model is None:
            return weights
        seeds.seed_globals(self.job.scenario.seed, "own model", round, number)
        try:
            vector = self.algorithm.own_model(client)
        except Exception as error:
            what = f"round {round}, client {number}: the strategy's own_model failed"
            raise ClientError(f"{what}: {one_line(error)}") from error
        if not isinstance(vector, Tensor) or vector.shape != (self.layout.size,):
            text = f"the strategy's own_model should give a vector [{self.layout.size}]"
            raise ClientError(f"round {round}, client {number}: {text}")
        return weights._replace(vector=vector)

    def _own(self, state: State | None) -> State:
        """A copy of a client's state, or its first."""
        return {name: vector.clone() for name, vector in (state or self.first_state()).items()}

    def _personalised(self, weights: Weights, own: State) -> Weights:
        """A model with a client's own values in place."""
        if (masks := self.personal) is None:
            return weights
        weights = weights.clone()
        weights.vector[masks.parameters] = own[_PERSONAL]
        weights.buffers[masks.buffers] = own[_PERSONAL_BUFFERS]
        return weights

    def _sent(self, number: int, round: int, vector: Tensor) -> Tensor:
        """What leaves the client: its contribution, or what the adversary makes of it."""
        if self.adversary is None or self.adversary.upload is None or number not in self.attackers:
            return vector
        sent = self.adversary.upload(vector, seeds.numpy_generator(self.job.scenario.seed, "attack", round, number))
        if sent.shape != vector.shape:
            shape = f"{list(sent.shape)}, not {list(vector.shape)}"
            raise ClientError(f"adversary {self.adversary.name!r} sends a vector of shape {shape}")
        return sent

    def _noised(self, number: int, round: int, vector: Tensor) -> Tensor:
        """A contribution as its client lets go of it: under `privacy.local` clipped and noised by itself."""
        plan = self.job.privacy
        if plan is None or not self.noises_itself:
            return vector
        draw = self.job.coins(self.job.scenario.seed, "upload noise", round, number)
        noise = gaussian(len(vector), plan.noise_multiplier * plan.clip, self.leaving, draw)
        return noised(clipped(self._cut(vector), plan.clip), noise)

    def _clipped(self, vector: Tensor, clip: float | None) -> Tensor:
        """What a trusted worker lets into the cohort's sum under `privacy.client`, whatever a client sent."""
        plan = self.job.privacy
        if plan is None or plan.level != "client":
            return vector
        bound = plan.clip if clip is None else clip
        kept = clipped(vector, bound)
        return kept if plan.adaptive is None else with_bit(kept, norm_of(vector), bound)

    def _cut(self, vector: Tensor) -> Tensor:
        """A contribution without what stays with the client; an attack does not reach it either."""
        if (masks := self.personal) is None:
            return vector
        size, end = self.layout.size, self.layout.size + self.layout.buffer_size
        parts = vector[:size].masked_fill(masks.parameters, 0.0), vector[size:end].masked_fill(masks.buffers, 0.0)
        return torch.cat([*parts, vector[end:]])

    def _scalars(self, upload: Upload) -> dict[str, float]:
        """The declared scalars; one that is odd would be missed by nobody once its update is in a sum."""
        scalars = {name: float(value) for name, value in upload.scalars.items()}
        if scalars.keys() != set(self.algorithm.scalars):
            given, declared = (", ".join(sorted(names)) or "none" for names in (scalars, self.algorithm.scalars))
            raise ClientError(f"the strategy's scalars are {given}, declared are {declared}")
        if odd := sorted(name for name, value in scalars.items() if not abs(value) <= _LARGEST):
            raise ClientError(f"the strategy's scalar {odd[0]} is not finite")
        return scalars

    def _check_shapes(self, upload: Upload) -> None:
        """A vector of another shape would be broadcast into the cohort's sum."""
        self._check_shape("update", upload.update)
        for name in self.algorithm.extra:
            self._check_shape(f"extra {name!r}", upload.extra[name])

    def _check_shape(self, name: str, vector: Tensor) -> None:
        if vector.shape != (self.layout.size,):
            raise ClientError(f"the strategy's {name} has shape {list(vector.shape)}, not [{self.layout.size}]")

    def _change(self, before: Tensor, after: Tensor) -> Tensor:
        """[E] by which floating buffers changed; none under privacy, which covers clipped gradients alone.

        An unchanged value counts as 0 even where it is infinite (a mask).
        """
        if not len(before):
            return before
        if self.private is not None:
            return torch.zeros_like(before)
        return torch.where(after == before, torch.zeros_like(before), after - before)

    def first_state(self) -> State:
        """What a client that never took part has."""
        first = initial(self.algorithm.client_state, self.initial.vector, self.federation.clients)
        if self.personal is not None:
            first[_PERSONAL] = self.initial.vector[self.personal.parameters]
            first[_PERSONAL_BUFFERS] = self.initial.buffers[self.personal.buffers]
        return first

    def _packed(self, upload: Upload, buffers: Tensor) -> Tensor:
        """[D + E + extras] one vector of all that is summed."""
        extras = [upload.extra[name] for name in self.algorithm.extra]
        return torch.cat([upload.update, buffers, *extras]) if extras or len(buffers) else upload.update

    def evaluate(self, weights: Weights, rows: Rows, what: str) -> Statistics:
        """Additive statistics of a model on rows.

        Raises:
            ClientError: starts with `what`, the rows' name for people; the model fails on them.
        """
        self.plain.load(weights)
        try:
            return evaluate(self.plain.module, self.problem, rows.x, rows.y, self.job.scenario.evaluate.batch_size)
        except Exception as error:
            raise ClientError(f"{what}: evaluation failed: {one_line(error)}") from error

    def triggered(self, rows: Rows) -> Rows:
        """Rows with the backdoor's trigger in them, under their own labels."""
        assert self.adversary is not None and self.adversary.trigger is not None
        try:
            return Rows(self.adversary.trigger(self.problem.inputs(rows.x)).numpy(), rows.y)
        except Exception as error:
            raise ClientError(f"adversary {self.adversary.name!r}: its trigger failed: {one_line(error)}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block, wherever bits matter: more would bracket sums otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
