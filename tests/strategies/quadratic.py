"""Clients whose loss is a quadratic, with exact gradients in float64: what theory says of an algorithm shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedsim.algorithm import (
    Algorithm,
    Batch,
    Combined,
    Coordinates,
    Correction,
    LossTerm,
    Server,
    Trained,
    Upload,
    Vectors,
    initial,
)
from fedsim.combiners import Fold, mean
from fedsim.optimizers import effective_steps


class Point(nn.Module):
    """A model whose features are its parameters [D], whatever the row."""

    def __init__(self, params: Tensor, learns: bool) -> None:
        super().__init__()
        self.params = nn.Parameter(params.clone(), requires_grad=learns)

    def features(self, x: Tensor) -> Tensor:
        """The parameters for every row [B, D]."""
        return self.params.expand(len(x), -1)


@dataclass
class Quadratic:
    """A client (an `algorithm.Local`) with loss 1/2 sum_j a_j (w_j - b_j)^2, trained by full gradient steps.

    Its train rows, which only a loss term and `data` see, have targets that run through the coordinates.
    """

    number: int
    curvature: Tensor
    optimum: Tensor
    steps: int
    rate: float = 0.05
    momentum: float = 0.0
    rows: int = 10
    personal: Tensor | None = None
    received: Tensor = field(default_factory=lambda: torch.zeros(0))
    shared: Vectors = field(default_factory=dict)
    state: Vectors = field(default_factory=dict)
    round: int = 0

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
        """`steps` steps of gradient descent, or one; the first coordinate passes for a buffer too."""
        params, velocity = start.clone(), torch.zeros_like(start)
        moves = torch.ones_like(params, dtype=torch.bool)
        if trains != "all":
            assert self.personal is not None
            moves = self.personal if trains == "personal" else ~self.personal
        steps = 1 if whole else self.steps
        for _ in range(steps):
            gradient = self._gradient(params if at is None else at(params), loss_term)
            step = gradient if correct is None else correct(gradient, params)
            velocity = self.momentum * velocity + step
            params = torch.where(moves, params - self.rate * velocity, params)
        return Trained(params, steps, self.rate * effective_steps(steps, self.momentum), params[:1])

    def _gradient(self, params: Tensor, loss_term: LossTerm | None) -> Tensor:
        gradient = self.curvature * (params - self.optimum)
        if loss_term is None:
            return gradient
        model = Point(params, learns=True)
        return gradient + torch.autograd.grad(loss_term(model, self.data()).mean(), model.params)[0]

    def loss(self, params: Tensor) -> Tensor:
        """Half the weighted squared distance to the optimum."""
        return (self.curvature * (params - self.optimum) ** 2).sum() / 2

    def data(self) -> Batch:
        """Rows [rows, 1] of zeros with targets 0, 1, ..., D - 1, 0, ..."""
        return Batch(torch.zeros(self.rows, 1), torch.arange(self.rows) % len(self.optimum))

    def frozen(self, params: Tensor) -> nn.Module:
        """A point that stays where it is."""
        return Point(params, learns=False).eval()


def clients(count: int = 4, size: int = 3, seed: int = 0) -> list[Quadratic]:
    """Uneven clients: other curvatures, optima and numbers of steps."""
    draw = torch.Generator().manual_seed(seed)
    return [
        Quadratic(
            number,
            0.5 + 2 * torch.rand(size, generator=draw, dtype=torch.float64),
            torch.randn(size, generator=draw, dtype=torch.float64),
            steps=2 + 2 * number,
        )
        for number in range(count)
    ]


def optimum(all_clients: Sequence[Quadratic]) -> Tensor:
    """Where the mean of all losses is least."""
    pulls = torch.stack([client.curvature * client.optimum for client in all_clients]).sum(0)
    return pulls / torch.stack([client.curvature for client in all_clients]).sum(0)


def work(algorithm: Algorithm, client: Quadratic, server: Server) -> Upload:
    """A client's round, as the platform arranges it: its personal values are put in, cut out again and kept."""
    client.received, client.shared, client.round = server.params, server.shared, server.round
    if algorithm.personal is None:
        return algorithm.client(client)
    assert client.personal is not None
    own = client.state.get("personal", server.params[client.personal])
    client.received = server.params.masked_scatter(client.personal, own)
    upload = algorithm.client(client)
    kept = {**upload.state, "personal": (client.received + upload.update)[client.personal]}
    return upload._replace(update=upload.update.masked_fill(client.personal, 0.0), state=kept)


def own_model(algorithm: Algorithm, client: Quadratic, server: Server) -> Tensor:
    """What a client uses for itself after the last round."""
    client.received, client.shared = server.params, server.shared
    if algorithm.personal is not None:
        assert client.personal is not None
        return server.params.masked_scatter(client.personal, client.state["personal"])
    return server.params if algorithm.own_model is None else algorithm.own_model(client)


def simulate(
    algorithm: Algorithm, all_clients: Sequence[Quadratic], rounds: int, cohort: Callable[[int], Sequence[int]]
) -> Server:
    """Run an algorithm's two halves; uploads are weighted and combined as it declares."""
    server = algorithm.start(torch.zeros_like(all_clients[0].optimum), len(all_clients))
    for client in all_clients:
        client.state = initial(algorithm.client_state, server.params, len(all_clients))
    for number in range(1, rounds + 1):
        server = server._replace(round=number)
        chosen = [all_clients[client] for client in cohort(number)]
        uploads = [work(algorithm, client, server) for client in chosen]
        for client, upload in zip(chosen, uploads, strict=True):
            client.state = upload.state
        server = algorithm.server(server, combine(algorithm, chosen, uploads, len(all_clients), server))
    return server


def combine(
    algorithm: Algorithm,
    chosen: Sequence[Quadratic],
    uploads: Sequence[Upload],
    population: int,
    server: Server | None = None,
) -> Combined:
    """Updates and extras of a cohort made one; `server`, by default the one before round 1, says learned weights."""
    numbers = torch.tensor([client.number for client in chosen])
    server = server or algorithm.start(torch.zeros_like(chosen[0].optimum), population)
    if isinstance(algorithm.weights, str):
        rows = [client.rows if algorithm.weights == "examples" else 1 for client in chosen]
        weights = torch.tensor(rows, dtype=torch.float64)
    else:
        weights = algorithm.weights(server, numbers)
    names = ["update", *algorithm.extra]
    vectors = [torch.cat([upload.update, *(upload.extra[name] for name in algorithm.extra)]) for upload in uploads]
    combined = (
        _mean(vectors, weights) if algorithm.combine is mean else algorithm.combine(torch.stack(vectors), weights)
    )
    parts = dict(zip(names, combined.chunk(len(names)), strict=True))
    return Combined(
        update=parts.pop("update"),
        extra=parts,
        scalars={
            name: torch.tensor([float(upload.scalars[name]) for upload in uploads], dtype=torch.float64)
            for name in algorithm.scalars
        },
        numbers=numbers,
        weights=weights,
        share_of_population=len(chosen) / population,
    )


def _mean(vectors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """In the order of clients, as where they are trained; so extra vectors do not change the bits of an update."""
    fold = Fold()
    for vector, weight in zip(vectors, weights.tolist(), strict=True):
        fold.add(vector, weight)
    assert fold.total is not None
    return fold.total / weights.sum()
