"""Contrast between models: features are drawn to the global model's, away from the client's last ones (MOON).

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, equations 3 and 4: with z, z_glob and z_prev a
row's features under the model in training, the global model and the client's model of its last round, each
example's loss gains mu times -log(e^{sim(z, z_glob)/T} / (e^{sim(z, z_glob)/T} + e^{sim(z, z_prev)/T})).
Here z is what the model's last layer sees; the paper's projection head is part of the model if it is wanted.
Communicates: the model down, one update up; z_prev's model stays with the client. Any local optimiser. No private
form is declared: the term sends a row through the body twice, and no per-example gradient of that is tested.
"""

import math
from collections.abc import Callable
from typing import Annotated, cast

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from fedsim.algorithm import Algorithm, Batch, Local, Upload, Weighting, add_update, copy_of_model
from fedsim.ranges import Range


def moon(
    mu: Annotated[float, Range(0.1, 10.0, log=True)] = 1.0,
    temperature: Annotated[float, Range(0.1, 1.0, log=True)] = 0.5,
    weights: Weighting = "examples",
) -> Algorithm:
    """MOON.

    Args:
        mu: the weight of the contrast, >= 0; the paper chooses among 0.1, 1, 5 and 10 for each data set.
        temperature: T, > 0.
        weights: "examples" (the paper) or "uniform".
    """
    if not (0 <= mu < math.inf and 0 < temperature < math.inf):
        raise ValueError(f"mu = {mu} should be at least 0, temperature = {temperature} above 0, and both finite")

    def client(local: Local) -> Upload:
        received, previous = local.frozen(local.received), local.frozen(local.state["previous"])

        def contrast(model: nn.Module, batch: Batch) -> Tensor:
            z, z_glob, z_prev = (_features(each, batch.inputs) for each in (model, received, previous))
            further = cosine_similarity(z, z_prev) - cosine_similarity(z, z_glob)
            return mu * softplus(further / temperature)  # -log(e^a / (e^a + e^b)) = log(1 + e^{b - a})

        trained = local.train(local.received, loss_term=contrast)
        return Upload(trained.params - local.received, state={"previous": trained.params})

    return Algorithm("moon", client, add_update, weights, client_state={"previous": copy_of_model}, features=True)


def _features(model: nn.Module, inputs: Tensor) -> Tensor:
    """[B, F] what the model's last layer sees of each row, of all its places together."""
    return cast(Callable[[Tensor], Tensor], model.features)(inputs).flatten(1)
