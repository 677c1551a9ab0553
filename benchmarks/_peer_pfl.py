"""pfl-research's contender: its own simulation of federated averaging, as its benchmarks put it together.

Runs in an environment of its own. Under `torchrun` its processes share every round, as its documentation advises.
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from _rows import BATCH, CLIENTS, LEARNING_RATE, MEASURED, ROWS, arguments, measured_rows, report, train_rows
from _workload import NETS, distance
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Net(nn.Module):
    """A net with the two methods that `PyTorchModel` asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """What a step descends on."""
        return nn.functional.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Loss and accuracy."""
        output = self.net(x)
        loss = nn.functional.cross_entropy(output, y, reduction="sum")
        right = (output.argmax(1) == y).sum()
        return {"loss": Weighted(float(loss), len(y)), "accuracy": Weighted(int(right), len(y))}


class Clock(TrainingProcessCallback[Any]):  # type: ignore[misc]
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A round has ended, and its model has been measured."""
        self.ended.append(time.time())
        return False, Metrics()


def main() -> None:
    """Run the rounds and report when each ended; the last argument is the number of torch's threads."""
    name, cohort, rounds = arguments()
    torch.set_num_threads(int(sys.argv[4]))
    torch.manual_seed(1)
    np.random.seed(1)
    x, y = map(torch.from_numpy, train_rows(name))
    users = [Dataset([rows[start : start + ROWS] for rows in (x, y)]) for start in range(0, len(x), ROWS)]
    data = FederatedDataset(users.__getitem__, get_user_sampler("random", list(range(CLIENTS))))
    net, clock = Net(NETS[name]()), Clock()
    initial = [value.detach().clone() for value in net.parameters()]
    held = Dataset([torch.from_numpy(rows) for rows in measured_rows(name)])
    measuring = NNEvalHyperParams(local_batch_size=MEASURED)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,  # of clients, before and after they train: none after the first round
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH
        ),
        model_eval_params=measuring,
        callbacks=[CentralEvaluationCallback(held, measuring), clock],
    )
    if pytorch_ops.distributed.global_rank == 0:
        report(clock.ended, distance(list(net.parameters()), initial))


if __name__ == "__main__":
    main()
