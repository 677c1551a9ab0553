"""Reference: no learning, the same answer for every row; the frequencies of classes, or of bytes after a byte.

Laplace, "Essai philosophique sur les probabilites", 1814, the rule of succession: p_c is proportional to
n_c + smoothing, with n_c how often class c occurs in the rows of all clients seen so far. For the next byte, n_c is
counted for every byte before (bigrams). What any model must beat.
Communicates: the model down, counts up, once for each client. The local optimiser is not used, and counts are summed,
not weighted; a total below 0, which only an attack makes, counts as 0. No private form is declared: counts are sent as
they are.
"""

import math

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Batch, Combined, Local, Server, Upload, zeros


def constant(smoothing: float = 0.1) -> Algorithm:
    """Class frequencies, or bigrams.

    Args:
        smoothing: what every count starts from, > 0.
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing = {smoothing} should be above 0 and finite")

    def client(local: Local) -> Upload:
        counts = torch.zeros_like(local.received)
        if not local.state["counted"].any():
            counts += _counts(local.data(), len(counts))
        return Upload(counts, state={"counted": torch.ones_like(local.state["counted"])})

    def server(server: Server, combined: Combined) -> Server:
        counts = server.state["counts"] + (combined.update * len(combined.numbers)).round()
        return server._replace(params=torch.log(counts.clamp(min=0) + smoothing), state={"counts": counts})

    return Algorithm(
        "constant",
        client,
        server,
        "uniform",
        client_state={"counted": lambda params, population: params.new_zeros(1)},
        server_state={"counts": zeros},
        model="constant",
    )


def _counts(rows: Batch, size: int) -> Tensor:
    """[size] how often each class occurs, or each byte (of 256) after each byte."""
    bigrams = rows.targets.ndim == 2
    cells = rows.inputs * 256 + rows.targets if bigrams else rows.targets
    return torch.bincount(cells.flatten(), minlength=size)
