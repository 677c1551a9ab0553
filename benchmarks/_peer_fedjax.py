"""FedJAX's contender: its own `federated_averaging`, sampler and evaluation, as its documentation puts them together.

Runs in an environment of its own, without torch. Weights begin as torch's do, and images have channels last, which
XLA likes best.
"""

import sys
import time
from collections.abc import Mapping

import fedjax
import haiku as hk
import jax
import numpy as np
from _rows import BATCH, CLIENTS, LEARNING_RATE, MEASURED, ROWS, Rows, arguments, measured_rows, report, train_rows

Batch = Mapping[str, np.ndarray]


def mlp(batch: Batch) -> jax.Array:
    """784-200-200-10."""
    layers = [hk.Flatten(), dense(784, 200), jax.nn.relu, dense(200, 200), jax.nn.relu, dense(200, 10)]
    return hk.Sequential(layers)(batch["x"])


def cnn(batch: Batch) -> jax.Array:
    """McMahan et al. 2017's CNN."""
    layers = [
        *(convolution(1, 32), jax.nn.relu, hk.MaxPool(2, 2, "VALID")),
        *(convolution(32, 64), jax.nn.relu, hk.MaxPool(2, 2, "VALID")),
        *(hk.Flatten(), dense(64 * 7 * 7, 512), jax.nn.relu, dense(512, 10)),
    ]
    return hk.Sequential(layers)(batch["x"])


NETS = {"mlp": mlp, "cnn": cnn}


def dense(inputs: int, outputs: int) -> hk.Linear:
    """A dense layer that begins as torch's."""
    return hk.Linear(outputs, w_init=uniform(inputs), b_init=uniform(inputs))


def convolution(inputs: int, outputs: int) -> hk.Conv2D:
    """A 5x5 convolution that begins as torch's."""
    return hk.Conv2D(outputs, 5, w_init=uniform(25 * inputs), b_init=uniform(25 * inputs))


def uniform(fan_in: int) -> hk.initializers.Initializer:
    """torch's draw for weights and biases."""
    return hk.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def as_batch(rows: Rows) -> Batch:
    """Images with channels last, and classes."""
    return {"x": np.ascontiguousarray(rows[0].transpose(0, 2, 3, 1)), "y": rows[1].astype(np.int32)}


def main() -> None:
    """Run the rounds and report when each ended; the last argument is the backend, "jit" or "pmap"."""
    name, cohort, rounds = arguments()
    fedjax.set_for_each_client_backend(sys.argv[4])
    all_rows = as_batch(train_rows(name))
    owned = {
        f"{client:03}": {key: rows[client * ROWS : (client + 1) * ROWS] for key, rows in all_rows.items()}
        for client in range(CLIENTS)
    }
    sampler = fedjax.client_samplers.UniformGetClientSampler(fedjax.InMemoryFederatedData(owned), cohort, seed=1)
    held = fedjax.ClientDataset(as_batch(measured_rows(name)))
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(NETS[name]),
        sample_batch={key: rows[:1] for key, rows in all_rows.items()},
        train_loss=lambda batch, output: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], output),
        eval_metrics={"accuracy": fedjax.metrics.Accuracy(), "loss": fedjax.metrics.CrossEntropyLoss()},
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        grad_fn=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(LEARNING_RATE),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1),
    )
    initial = model.init(jax.random.PRNGKey(1))
    state, ended = algorithm.init(initial), []
    for number in range(rounds):
        sampler.set_round_num(number)
        state, _ = algorithm.apply(state, sampler.sample())
        measured = fedjax.evaluate_model(model, state.params, held.padded_batch(batch_size=MEASURED))
        jax.block_until_ready((state.params, measured))
        ended.append(time.time())
    change = jax.tree_util.tree_map(lambda value, before: value - before, state.params, initial)
    report(ended, float(fedjax.tree_util.tree_l2_norm(change)))


if __name__ == "__main__":
    main()
