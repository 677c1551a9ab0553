"""A federation of one client with all rows is ordinary training: the loop everybody would write gives the same.

The oracle shares two things with the platform, both on purpose: the initial model, and the generators that
name the draws (which rows, what noise). The rest is PyTorch as in a tutorial.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders
from fedsim.job import Job
from fedsim.models.transformer import transformer
from fedsim.privacy.batches import poisson_batch
from fedsim.privacy.normals import add_normal
from tests import small

ALONE: dict[str, Any] = {
    "rounds": 2,
    "data.partition": {"kind": "iid", "clients": 1},
    "data.split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [16]},
    "cnn": {"name": "cnn", "preset": "small"},
    "lstm": {"name": "lstm", "width": 16, "layers": 2},
    "transformer": {"name": "transformer"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.3},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.03, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "learning_rate": 0.003},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.1},
}


def this_text(folders: Folders) -> Corpus:
    """Windows of 20 bytes of this very file, each with its next bytes."""
    text = np.frombuffer(Path(__file__).read_bytes()[: 21 * 200], dtype=np.uint8).reshape(200, 21)
    names = tuple(str(value) for value in range(256))
    return Corpus("this file", "next-token", text[:, :-1].copy(), text[:, 1:].copy(), names)


def precise_transformer(shape: tuple[int, ...], classes: int, task: str) -> nn.Module:
    """In float64: Adam blows up the rounding of gradients that should be 0, such as that of attention's key bias."""
    return transformer(shape, classes, task, width=16, layers=2, heads=2).double()


def sources(model: str) -> dict[str, Any]:
    """What replaces the scenario's model and data, in arguments of `small.job`."""
    return {
        "model": precise_transformer if model == "transformer" else None,
        "data": this_text if model in ("lstm", "transformer") else None,
    }


def job_of(model: str, train: dict[str, Any], **more: Any) -> Job:
    changes = {f"train.{key}": value for key, value in train.items()} | {f"model.{k}": v for k, v in more.items()}
    return small.job({**ALONE, "model": MODELS[model], **changes}, **sources(model))


def rows_of(job: Job) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(np.array(values)) for values in job.federation.rows(0, "train"))
    return (x if x.is_floating_point() else x.long()), y.long()


def mean_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net(x).flatten(0, -2), y.flatten())


def bare_loop(job: Job, make_optimizer: Any) -> nn.Module:
    """Ordinary training: a fresh optimiser each round, as a client has."""
    net = job.build_model()
    x, y = rows_of(job)
    size = job.scenario.train.batch_size
    for number in range(1, job.scenario.rounds + 1):
        optimizer = make_optimizer(net.parameters())
        order = seeds.numpy_generator(job.scenario.seed, "batches", number, 0).permutation(len(x))
        for start in range(0, len(x), size):
            rows = torch.from_numpy(order[start : start + size])
            optimizer.zero_grad()
            mean_loss(net, x[rows], y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net


def torch_optimizer(name: str) -> Any:
    chosen = OPTIMIZERS[name]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[chosen["optimizer"]]
    keys = {"learning_rate": "lr", "momentum": "momentum", "weight_decay": "weight_decay"}
    settings = {keys[key]: value for key, value in chosen.items() if key in keys}
    return lambda parameters: kind(parameters, **settings)


def flat(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def assert_same_update(job: Job, out: Path, expected: Tensor) -> None:
    """The run's update differs from the expected one by at most 1e-5 of its norm."""
    initial = flat(job.build_model())
    found = small.run(job, out).weights.vector
    wanted = (expected - initial).norm()
    assert wanted > 0.01
    assert (found - expected).norm() <= 1e-5 * wanted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_client_is_the_bare_loop(model: str, optimizer: str, tmp_path: Path) -> None:
    job = job_of(model, OPTIMIZERS[optimizer])
    assert_same_update(job, tmp_path / "run", flat(bare_loop(job, torch_optimizer(optimizer))))


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "ditto"])
def test_with_one_client_strategies_differ_in_nothing(strategy: str, tmp_path: Path) -> None:
    """Alone, a client's control is the server's, and there is nobody to be personal against."""
    job = small.job({**ALONE, "strategy": {"name": strategy}})
    expected = flat(bare_loop(job, lambda parameters: torch.optim.SGD(parameters, lr=0.2)))
    found = small.run(job, tmp_path / "run").weights.vector
    assert (found - expected).norm() <= 1e-5 * (expected - flat(job.build_model())).norm()


@pytest.mark.parametrize("model", ["mlp", "cnn", "lstm", "transformer"])
def test_a_private_step_is_clipped_one_by_one_and_noised(model: str, tmp_path: Path) -> None:
    """Abadi et al. 2016, algorithm 1, one example at a time: (sum of g min(1, C / |g|) + z C noise) / q n."""
    clip, noise_multiplier, rate = 0.1, 0.8, 0.7
    privacy = {"noise_multiplier": noise_multiplier, "delta": 1e-5, "max_grad_norm": clip}
    changes = {**ALONE, "rounds": 1, "train.learning_rate": rate, "train.steps": 1, "data.split.central": 0.2}
    job = small.job({**changes, "model": MODELS[model], "privacy.example": privacy}, **sources(model))
    net = job.build_model()
    x, y = rows_of(job)
    share = job.scenario.train.batch_size / len(x)
    total = torch.zeros_like(flat(net))
    clipped = 0
    for row in poisson_batch(len(x), share, seeds.numpy_generator(1, "poisson batches", 1, 0)):
        gradients = torch.autograd.grad(mean_loss(net, x[row : row + 1], y[row : row + 1]), list(net.parameters()))
        gradient = torch.cat([part.flatten() for part in gradients])
        clipped += int(gradient.norm() > clip)
        total += gradient * min(1.0, clip / float(gradient.norm()))
    assert clipped > 5
    drawn = add_normal(torch.zeros_like(total), 1.0, seeds.numpy_generator(1, "gradient noise", 1, 0))
    expected = flat(net) - rate * (total + noise_multiplier * clip * drawn) / (share * len(x))
    assert_same_update(job, tmp_path / "run", expected)


def test_a_schedule_changes_the_rate_over_rounds(tmp_path: Path) -> None:
    """Two rounds with a factor of a half are one round at the rate, then one at half of it."""
    schedule = {"kind": "step", "every": 1, "factor": 0.5}
    job = small.job({**ALONE, "train.schedule": schedule})
    rates = iter([0.2, 0.1])
    expected = bare_loop(job, lambda parameters: torch.optim.SGD(parameters, lr=next(rates)))
    assert_same_update(job, tmp_path / "run", flat(expected))


def test_batch_norm_statistics_are_federated(tmp_path: Path) -> None:
    """Floating buffers of the one client become the server's; in large steps rounding would grow a thousandfold."""
    job = job_of("cnn", {**OPTIMIZERS["sgd"], "learning_rate": 0.02}, norm="batch")
    net = bare_loop(job, lambda parameters: torch.optim.SGD(parameters, lr=0.02))
    found = small.run(job, tmp_path / "run").weights.buffers
    means = torch.cat([buffer.flatten() for buffer in net.buffers() if buffer.is_floating_point()])
    assert torch.allclose(found, means, atol=1e-5)
    assert math.isfinite(float(found.sum()))
