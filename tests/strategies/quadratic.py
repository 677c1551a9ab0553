"""Clients whose loss is a quadratic, with exact gradients in float64: what theory says of an algorithm shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.algorithm import (
    Algorithm,
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


@dataclass
class Quadratic:
    """A client (an `algorithm.Local`) with loss 1/2 sum_j a_j (w_j - b_j)^2, trained by full gradient steps."""

    number: int
    curvature: Tensor
    optimum: Tensor
    steps: int
    rate: float = 0.05
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
    ) -> Trained:
        """`steps` steps of gradient descent."""
        assert loss_term is None, "a quadratic has no model to give to a loss term"
        params = start.clone()
        moves = torch.ones_like(params, dtype=torch.bool)
        if trains != "all":
            assert self.personal is not None
            moves = self.personal if trains == "personal" else ~self.personal
        for _ in range(self.steps):
            gradient = self.curvature * ((params if at is None else at(params)) - self.optimum)
            step = gradient if correct is None else correct(gradient, params)
            params = torch.where(moves, params - self.rate * step, params)
        return Trained(params, self.steps, self.steps * self.rate, params[:0])

    def loss(self, params: Tensor) -> Tensor:
        """Half the weighted squared distance to the optimum."""
        return (self.curvature * (params - self.optimum) ** 2).sum() / 2


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
    """A client's round, as the platform arranges it."""
    client.received, client.shared, client.round = server.params, server.shared, server.round
    return algorithm.client(client)


def simulate(
    algorithm: Algorithm, all_clients: Sequence[Quadratic], rounds: int, cohort: Callable[[int], Sequence[int]]
) -> Server:
    """Run an algorithm's two halves; uploads are averaged by rows or uniformly, as it declares."""
    server = algorithm.start(torch.zeros_like(all_clients[0].optimum), len(all_clients))
    for client in all_clients:
        client.state = initial(algorithm.client_state, server.params, len(all_clients))
    for number in range(1, rounds + 1):
        server = server._replace(round=number)
        chosen = [all_clients[client] for client in cohort(number)]
        uploads = [work(algorithm, client, server) for client in chosen]
        for client, upload in zip(chosen, uploads, strict=True):
            client.state = upload.state
        server = algorithm.server(server, combine(algorithm, chosen, uploads, len(all_clients)))
    return server


def combine(algorithm: Algorithm, chosen: Sequence[Quadratic], uploads: Sequence[Upload], population: int) -> Combined:
    """The weighted mean of updates and extras."""
    rows = [client.rows if algorithm.weights == "examples" else 1 for client in chosen]
    weights = torch.tensor(rows, dtype=torch.float64) / sum(rows)

    def mean(vectors: list[Tensor]) -> Tensor:
        return torch.einsum("n,nd->d", weights, torch.stack(vectors))

    return Combined(
        update=mean([upload.update for upload in uploads]),
        extra={name: mean([upload.extra[name] for upload in uploads]) for name in algorithm.extra},
        scalars={name: torch.stack([upload.scalars[name] for upload in uploads]) for name in uploads[0].scalars},
        numbers=torch.tensor([client.number for client in chosen]),
        share_of_population=len(chosen) / population,
    )
