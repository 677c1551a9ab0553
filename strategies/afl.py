"""The worst mixture of clients: weights rise where the loss is high (agnostic federated learning, AFL).

Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, algorithm Stochastic-AFL: the objective is
min_w max_lambda sum_k lambda_k F_k(w) with lambda on the simplex. The model descends on the mixture, here by the mean
of updates under lambda; then lambda_k rises by lambda_lr F_k(w_t), with F_k the loss at the received model, and is
projected onto the simplex. With a cohort smaller than the population lambda is normalised over the cohort, and
clients that did not answer keep theirs but for the projection.
Communicates: the model down, one update and one loss up. Any local optimiser. No private form is declared: it sends
its raw loss.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload
from fedsim.ranges import Range

_LEAST_WEIGHT = 1e-6  # of a client whose lambda is 0, so that the weights of a cohort have a sum to divide by


def afl(
    lambda_lr: Annotated[float, Range(1e-3, 1.0, log=True)] = 0.1, weights: Literal["learned"] = "learned"
) -> Algorithm:
    """AFL.

    Args:
        lambda_lr: the step of lambda, >= 0.
        weights: lambda is what the algorithm learns; there is no other.
    """
    if not 0 <= lambda_lr < math.inf:
        raise ValueError(f"lambda_lr = {lambda_lr} should be at least 0 and finite")

    def client(local: Local) -> Upload:
        loss = local.loss(local.received)
        return Upload(local.train(local.received).params - local.received, scalars={"loss": loss})

    def server(server: Server, combined: Combined) -> Server:
        risen = server.state["lambda"].clone()
        risen[combined.numbers] += lambda_lr * combined.scalars["loss"].to(risen.dtype)
        return server._replace(params=server.params + combined.update, state={"lambda": onto_simplex(risen)})

    return Algorithm(
        "afl",
        client,
        server,
        lambda server, numbers: server.state["lambda"][numbers].clamp(min=_LEAST_WEIGHT),
        server_state={"lambda": _uniform},
        scalars=("loss",),
    )


def onto_simplex(point: Tensor) -> Tensor:
    """The nearest vector [K] whose values are at least 0 and sum to 1.

    It is max(point - t, 0), with t such that the sum is 1 (Held, Wolfe, Crowder 1974): the j largest values
    give t = (their sum - 1) / j, for the most j that leaves all of these above t.
    """
    point = (point - point.max()).clamp(min=-1)  # as t >= max - 1; huge values would swallow the 1
    largest = point.sort(descending=True).values
    thresholds = (largest.cumsum(0) - 1) / torch.arange(1, len(point) + 1)
    kept = int((largest > thresholds).sum())
    return (point - thresholds[kept - 1]).clamp(min=0)


def _uniform(params: Tensor, population: int) -> Tensor:
    return torch.full((population,), 1 / population, dtype=torch.float64)
