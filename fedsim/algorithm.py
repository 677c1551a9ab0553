"""A federated algorithm as a frozen value: what a client does, what the server does, and what is sent.

The client half is one function that reads like the paper; the platform owns the loop inside `local.train`
(batches, optimiser, privacy). Vectors are flat, [D], so plain arithmetic says it all. See `strategies/`.

The same function serves a stack of C clients that are trained at once: vectors are then [C, D], a client's numbers
[C, 1]. So what sums over coordinates does it over the last dimension and keeps that: `.sum(-1, keepdim=True)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedsim.combiners import Combiner, mean

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

Vectors = Mapping[str, Tensor]
Scalar = float | Tensor
"""A number of one client, as a number or [] or [1]; of the clients of a stack, [C, 1]."""
Weighting = Literal["examples", "uniform"]
Correction = Callable[[Tensor, Tensor], Tensor]
Init = Callable[[Tensor, int], Tensor]
Coordinates = Literal["all", "shared", "personal"]


class Batch(NamedTuple):
    """Rows of one step: inputs [B, ...] as the model takes them, targets [B, ...]."""

    inputs: Tensor
    targets: Tensor


LossTerm = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> [B], added to each example's loss; its gradient flows through the model's parameters."""


class Trained(NamedTuple):
    """What `train` returns, in new memory: parameters [D], steps, the sum of effective step sizes, buffers [E].

    Of a stack: parameters [C, D], steps and step sizes [C, 1], buffers [C, E].
    """

    params: Tensor
    steps: Scalar
    step_size: Scalar
    buffers: Tensor


class Local(Protocol):
    """What a client half sees of its client, or of the clients of a stack."""

    received: Tensor
    """The global model [D] or [C, D], with each client's own values on personal coordinates."""
    shared: Vectors
    """Vectors the server sent along, by name."""
    state: Vectors
    """The client's own vectors, kept from the last round it took part in."""
    round: int

    @property
    def number(self) -> Scalar:
        """Who it is."""
        ...

    @property
    def rows(self) -> Scalar:
        """How many train rows it has."""
        ...

    def train(
        self,
        start: Tensor,
        *,
        correct: Correction | None = None,
        at: Callable[[Tensor], Tensor] | None = None,
        loss_term: LossTerm | None = None,
        trains: Coordinates = "all",
        epochs: int | None = None,
        whole: bool = False,
    ) -> Trained:
        """Train from `start` on the client's train rows with the scenario's local optimiser.

        Args:
            start: [D] or [C, D], unchanged by the call.
            correct: (gradient, params) -> gradient, applied to every step's (noised) gradient.
            at: params -> the point whose gradient is taken, when it is not `params`.
            loss_term: a term of its own for each example's loss.
            trains: which coordinates move; the others keep their value of `start` exactly.
            epochs: passes over the rows, instead of the scenario's; under example-level privacy what the algorithm's
                `private_passes` name.
            whole: one step on all rows at once, whatever the scenario says of batches, epochs and steps; refused under
                example-level privacy.
        """
        ...

    def loss(self, params: Tensor) -> Tensor:
        """Mean loss [] or [C, 1] on the train rows; refused under example-level privacy."""
        ...

    def data(self) -> Batch:
        """All train rows; refused under example-level privacy, and of a stack, which is then trained one by one."""
        ...

    def frozen(self, params: Tensor) -> nn.Module:
        """A model with these parameters, [D] or [C, D], in evaluation mode, that does not learn, for a loss term."""
        ...


class Upload(NamedTuple):
    """What a client half returns; `state` stays with the client. Of a stack everything has C rows.

    Attributes:
        update: [D].
        extra: the algorithm's extra vectors, [D] each.
        scalars: numbers, [] or [1] each.
        state: what the client keeps.
        buffers: [E] floating buffers to average; by default those of the last `train`.
    """

    update: Tensor
    extra: Vectors = {}
    scalars: Mapping[str, Scalar] = {}
    state: Vectors = {}
    buffers: Tensor | None = None


class Server(NamedTuple):
    """The server's side of a run between rounds."""

    params: Tensor
    shared: Vectors
    state: Vectors
    round: int


class Combined(NamedTuple):
    """A cohort's uploads after the combiner.

    Attributes:
        update: [D].
        extra: [D] each, combined with the same weights.
        scalars: [n] each, one value per client that answered.
        numbers: [n] the clients that answered.
        weights: [n] theirs, not normalised.
        share_of_population: n / K.
    """

    update: Tensor
    extra: Vectors
    scalars: Vectors
    numbers: Tensor
    weights: Tensor
    share_of_population: float

    def mean(self, scalar: str) -> Tensor:
        """The weighted mean [] of a scalar over clients."""
        return (self.weights * self.scalars[scalar]).sum() / self.weights.sum()


ClientHalf = Callable[[Local], Upload]
ServerHalf = Callable[[Server, Combined], Server]
Weigher = Callable[[Server, Tensor], Tensor]
"""(server, numbers [n]) -> [n], before the round, of the clients that are to take part."""


@dataclass(frozen=True)
class Algorithm:
    """One federated algorithm.

    Attributes:
        name: as in reports.
        client: the client half.
        server: the server half.
        weights: how a client's update counts: by its train rows, all the same, or as the server says each round.
        combine: how updates become one; `mean` is summed where the clients are trained.
        client_state: tensors every client keeps, by name, each with its first value.
        shared: vectors [D] sent along with the model, by name, each with its first value.
        server_state: tensors of the server, by name, each with its first value.
        extra: names of the vectors in `Upload.extra`, always sent.
        scalars: names in `Upload.scalars` that the server half reads; such an algorithm is combined by the mean alone,
            since no other combiner guards them.
        personal: pattern of parameter and buffer names whose values stay with each client.
        own_model: a client's own model [D], where it is not the global one with personal values in place.
        optimizers: local optimisers that the theory covers; "plain sgd" is sgd without momentum, decay or clip.
        private: why uploads stay private when gradients are clipped and noised; empty: no such argument
            is made and `[privacy.example]` is refused.
        private_passes: every call of `local.train` in a round, all of which are charged, by its `epochs`; None is one
            for which the scenario says how long it trains.
        features: whether the model must offer `features(x)`, what its last layer sees.
        model: the name of a model that takes the place of the scenario's.
        pooled: a reference that trains as if one client had everybody's train rows, with as many gradient steps.
        flower: makes the Flower Strategy that is the server half instead of `server`.
    """

    name: str
    client: ClientHalf
    server: ServerHalf
    weights: Weighting | Weigher = "examples"
    combine: Combiner = mean
    client_state: Mapping[str, Init] = field(default_factory=dict)
    shared: Mapping[str, Init] = field(default_factory=dict)
    server_state: Mapping[str, Init] = field(default_factory=dict)
    extra: Sequence[str] = ()
    scalars: Sequence[str] = ()
    personal: str | None = None
    own_model: Callable[[Local], Tensor] | None = None
    optimizers: Sequence[str] = ("sgd", "adam", "adamw")
    private: str = ""
    private_passes: Sequence[int | None] = (None,)
    features: bool = False
    model: str = ""
    pooled: bool = False
    flower: "Callable[[], Strategy] | None" = None

    @property
    def linear(self) -> bool:
        """Whether a weighted sum of updates is all the server needs of them."""
        return self.combine is mean and self.flower is None

    @property
    def personalised(self) -> bool:
        """Whether every client has a model of its own."""
        return self.personal is not None or self.own_model is not None

    @property
    def alone(self) -> bool:
        """Whether no value is shared: clients have models of their own, and the global one stays as it was."""
        return self.personal == "*"

    @property
    def weighting(self) -> str:
        """How updates are weighted, for people."""
        named = {"examples": "weights by examples", "uniform": "uniform weights"}
        return named[self.weights] if isinstance(self.weights, str) else "weights learned"

    def start(self, params: Tensor, population: int) -> Server:
        """The server before round 1."""
        return Server(
            params, initial(self.shared, params, population), initial(self.server_state, params, population), 0
        )


def initial(inits: Mapping[str, Init], params: Tensor, population: int) -> dict[str, Tensor]:
    """First values of named vectors."""
    return {name: init(params, population) for name, init in inits.items()}


def zeros(params: Tensor, population: int) -> Tensor:
    """A vector [D] of zeros."""
    return torch.zeros_like(params)


def copy_of_model(params: Tensor, population: int) -> Tensor:
    """The initial model [D]."""
    return params.clone()


def local_update(local: Local) -> Upload:
    """The plain client half: train from the received model and send the change."""
    return Upload(local.train(local.received).params.sub_(local.received))  # in memory that the cache holds


def add_update(server: Server, combined: Combined) -> Server:
    """The plain server half: the model plus the combined update."""
    return server._replace(params=server.params + combined.update)
