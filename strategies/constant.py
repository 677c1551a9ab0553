"""Reference: no learning, the same answer for every row: frequencies of classes, or the mean of what is asked for.

Laplace, "Essai philosophique sur les probabilites", 1814, the rule of succession: p_c is proportional to
n_c + smoothing, with n_c how often class c occurs in the rows of all clients seen so far. For the next byte, n_c is
counted for every byte before (bigrams), of several labels a row for each label by itself. Of numbers the answer is
their mean, which has the least squared error of all constants; where rows are to be reconstructed, that of normal rows.
What any model must beat.
Communicates: the model down, counts or sums up, once for each client. The local optimiser is not used, and what is sent
is summed, not weighted; a count below 0, which only an attack makes, counts as 0. No private form is declared: counts
are sent as they are.
"""

import math

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Batch, Combined, Local, Server, Upload, zeros


def constant(smoothing: float = 0.1) -> Algorithm:
    """Class frequencies, bigrams, odds of labels, or means.

    Args:
        smoothing: what every count starts from, > 0; means do without.
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing = {smoothing} should be above 0 and finite")

    def client(local: Local) -> Upload:
        sums, rows = torch.zeros_like(local.received), 0
        if not local.state["counted"].any():
            found, rows = _sums(local.data(), len(sums))
            sums += found
        state = {"counted": torch.ones_like(local.state["counted"])}
        return Upload(sums, scalars={"rows": float(rows)}, state=state)

    def server(server: Server, combined: Combined) -> Server:
        sums = combined.update * len(combined.numbers)
        rows = server.state["rows"] + combined.scalars["rows"].sum()
        sums = server.state["sums"] + (sums if rows.any() else sums.round())
        params = sums / rows if rows.any() else torch.log(sums.clamp(min=0) + smoothing)
        return server._replace(params=params.to(server.params.dtype), state={"sums": sums, "rows": rows})

    return Algorithm(
        "constant",
        client,
        server,
        "uniform",
        client_state={"counted": lambda params, population: params.new_zeros(1)},
        server_state={"sums": zeros, "rows": lambda params, population: params.new_zeros(1)},
        scalars=("rows",),
        model="constant",
    )


def _sums(rows: Batch, size: int) -> tuple[Tensor, int]:
    """What the model's numbers [size] are made of: counts and 0, or sums over rows and how many rows these are.

    By the targets: classes [n], bytes [n, L] after the inputs, labels [n, size / 2] that are there or not, numbers
    [n, size], or rows to be reconstructed, [n, size + 1].
    """
    targets = rows.targets
    if not targets.is_floating_point():
        cells = rows.inputs * 256 + targets if targets.ndim == 2 else targets
        return torch.bincount(cells.flatten(), minlength=size), 0
    values = targets.reshape(len(targets), -1).double()
    if values.shape[1] == size + 1:
        values = values[values[:, -1] == 0, :-1]
    if 2 * values.shape[1] == size:
        there = values.sum(0)
        return torch.stack([len(values) - there, there], dim=1).flatten(), 0
    return values.sum(0), len(values)
