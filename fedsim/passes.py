"""A model's passes over batches: forward to the mean loss, backward to its gradients; by tape where code is known."""

from collections.abc import Sequence

from torch import Tensor

from fedsim.algorithm import Batch, LossTerm
from fedsim.optimizers import precise
from fedsim.own import OwnProblem
from fedsim.parameters import FlatModule
from fedsim.problem import Problem
from fedsim.products import Gradient
from fedsim.tables import Train
from fedsim.tape import Repeated, stateless

Passed = tuple[Tensor, Sequence[Gradient]]
"""A batch's mean loss [] and each parameter's gradient of it."""


class Passes:
    """Passes of one model, at whatever vector it then lies on."""

    def __init__(self, flat: FlatModule, problem: Problem, settings: Train) -> None:
        self._flat, self._problem, self._settings = flat, problem, settings
        self._repeated = Repeated(self._passed, flat.read) if _known(flat, problem) else None

    @property
    def tapes(self) -> int:
        """For how many shapes of batches there is a tape."""
        return self._repeated.tapes if self._repeated is not None else 0

    def __call__(self, batch: Batch, loss_term: LossTerm | None = None) -> Passed:
        """One pass; `loss_term` adds its mean to the loss."""
        if loss_term is not None:
            self._repeated = None  # from now on the module has been in a strategy's hands, which may have changed it
        return self._passed(*batch, loss_term) if self._repeated is None else self._repeated(*batch)

    def _passed(self, inputs: Tensor, targets: Tensor, loss_term: LossTerm | None = None) -> Passed:
        with precise(self._settings):  # anew for each step: autocast keeps rounded weights as long as it lasts
            loss = self._problem.mean_loss(self._flat.module(inputs), targets)
            if loss_term is not None:
                loss = loss + loss_term(self._flat.module, Batch(inputs, targets)).mean()
        return loss.detach(), self._flat.gradients(loss)


def _known(flat: FlatModule, problem: Problem) -> bool:
    """Whether nothing of a model and its loss is a user's own code."""
    return stateless(flat.module) and _of_tasks(problem)


def _of_tasks(problem: Problem) -> bool:
    """Whether the loss is one of `fedsim.tasks`, and not a user's own."""
    if isinstance(problem, OwnProblem):
        return problem.loss is None and _of_tasks(problem.inner)
    return type(problem).__module__.startswith("fedsim.tasks.")
