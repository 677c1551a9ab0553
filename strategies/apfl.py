"""A mixture of a personal and the global model for each client (APFL).

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", arXiv 2003.13461, 2020, algorithm 1: beside
FedAvg's model w each client keeps v and uses vbar = alpha v + (1 - alpha) w. v descends on F_k(vbar), so by
alpha grad F_k(vbar), and alpha by its own gradient <v - w, grad F_k(vbar)>, kept within [0, 1].
The paper alternates single steps of w and v; here w is trained first and then held while v is trained. alpha moves
once a round by the mean of its gradients over v's steps.
Communicates: the model down, one update up; v and alpha stay with the client. Any local optimiser. Private at example
level, jointly: both passes clip, noise and are charged, alpha's gradients are made of v's noised ones, and neither
leaves its client.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Local, Upload, Weighting, add_update, copy_of_model
from fedsim.ranges import Range


def apfl(
    alpha: Annotated[float, Range(0.0, 1.0)] = 0.5, alpha_lr: float = 0.0, weights: Weighting = "examples"
) -> Algorithm:
    """APFL.

    Args:
        alpha: the personal model's first share of the mixture, from 0 (FedAvg) to 1 (each client alone).
        alpha_lr: the step of alpha, >= 0; 0 keeps alpha.
        weights: "examples" or "uniform" (the paper).
    """
    if not (0 <= alpha <= 1 and 0 <= alpha_lr < math.inf):
        raise ValueError(
            f"alpha = {alpha} should lie between 0 and 1, and alpha_lr = {alpha_lr} be at least 0 and finite"
        )

    def client(local: Local) -> Upload:
        share = local.state["alpha"]
        slopes: list[Tensor] = []
        trained = local.train(local.received)
        w = trained.params

        def mixed(gradient: Tensor, v: Tensor) -> Tensor:
            slopes.append(torch.linalg.vecdot(v - w, gradient)[..., None])
            return share * gradient

        own = local.train(local.state["model"], at=lambda v: share * v + (1 - share) * w, correct=mixed)
        moved = (share - alpha_lr * sum(slopes) / own.steps).clamp(0, 1)
        state = {"model": own.params, "alpha": moved}
        return Upload(w - local.received, state=state, buffers=trained.buffers)

    return Algorithm(
        "apfl",
        client,
        add_update,
        weights,
        client_state={"model": copy_of_model, "alpha": lambda params, population: params.new_full((1,), alpha)},
        own_model=_mixture,
        private="w, v and alpha are computed from clipped, noised gradients, and v and alpha never leave",
        private_passes=(None, None),
    )


def _mixture(local: Local) -> Tensor:
    """vbar [D], with the global model as the client last received it."""
    share = local.state["alpha"]
    return share * local.state["model"] + (1 - share) * local.received
