"""Attacks: what a fraction of the clients does instead of honest work, whatever the defence is.

An attack is a function of the field's literature, named as in `adversary.name`; a user's own is `file.py:name`.
It gives an `Adversary`, a frozen value that says where in a round attackers deviate: in the rows they train on,
in what each sends, or in what they agree on. `attackers` says who they are. Defences are strategies that combine
robustly, and know nothing of this file.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim import registry, seeds
from fedsim.data.federation import Federation
from fedsim.errors import ScenarioError


@dataclass(frozen=True)
class Adversary:
    """What attackers do; each part that is None they do honestly. No part changes its arguments in place.

    Attributes:
        name: as in reports.
        rows: (inputs [n, ...], targets [n, ...] of an attacker's train rows, generator) -> what it trains on.
        upload: (its contribution [P], generator) -> [P] what it sends. P counts parameters, buffers and the
            algorithm's extra vectors.
        collude: (the attackers' own contributions [f, P], the honest ones [h, P]) of a cohort -> [P] what each
            attacker sends; f >= 1, h may be 0.
        trigger: inputs [n, ...] -> the same with the backdoor's trigger in them.
        target: the class that the trigger is to give.
    """

    name: str
    rows: Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]] | None = None
    upload: Callable[[Tensor, np.random.Generator], Tensor] | None = None
    collude: Callable[[Tensor, Tensor], Tensor] | None = None
    trigger: Callable[[Tensor], Tensor] | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if (self.trigger is None) != (self.target is None):
            raise ValueError("an adversary's trigger and target belong together; give both")


class Who(Protocol):
    """Which clients attack: a share of them, or these; exactly one is given."""

    @property
    def fraction(self) -> float | None:
        """Share of the clients that can take part."""
        ...

    @property
    def clients(self) -> Sequence[int] | None:
        """Client numbers."""
        ...


class Table(Who, Protocol):
    """A scenario's table `adversary`."""

    @property
    def name(self) -> str:
        """The attack."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The keys that belong to the attack."""
        ...


def make_adversary(table: Table, federation: Federation, folder: Path) -> Adversary:
    """The attack that a scenario names.

    Args:
        table: the scenario's.
        federation: the rows under attack.
        folder: where the user's file is looked for.

    Raises:
        ScenarioError: an unknown attack or key, an impossible value, or an attack that these rows do not admit.
    """
    factory = _factory(table.name, folder)
    own = ("name", "fraction", "clients")
    bound = registry.bind(factory, table.settings, "adversary", reserved=FILLED_IN, own=own)
    wanted = inspect.signature(factory).parameters
    known = {name: of(federation) for name, of in FILLED_IN.items() if name in wanted}
    made = registry.call(factory, f"adversary {table.name}", **known, **bound)
    if not isinstance(made, Adversary):
        raise ScenarioError(f"adversary.name: {table.name} returned {type(made).__name__}, not an Adversary")
    if made.trigger is not None and not federation.labelled:
        raise ScenarioError(
            f"adversary {table.name}: a trigger is to give a class, and rows of {federation.corpus!r} have none"
        )
    return made


def attackers(table: Who, seed: int, able: np.ndarray) -> list[int]:
    """The clients that attack, the same in every round.

    Args:
        table: the clients listed, or a fraction: max(1, round(fraction * n)) of the n able ones are drawn.
        seed: of the run.
        able: [K] bool, the clients that can take part at all, those with train rows.

    Returns:
        Sorted client numbers.

    Raises:
        ScenarioError: a listed client that there is not or that never takes part, or nobody left who is honest.
    """
    ready = np.flatnonzero(able)
    if table.clients is not None:
        key, chosen = "adversary.clients", sorted(set(table.clients))
        _check_listed(chosen, able)
    else:
        assert table.fraction is not None
        key, count = f"adversary.fraction = {table.fraction:g}", max(1, round(table.fraction * len(ready)))
        generator = seeds.numpy_generator(seed, "attackers")
        chosen = sorted(generator.choice(ready, min(count, len(ready)), replace=False).tolist())
    if len(chosen) >= len(ready):
        raise ScenarioError(f"{key}: all {len(ready)} clients that have train rows would attack; leave an honest one")
    return chosen


def label_flip(classes: int, task: str) -> Adversary:
    """Train on flipped labels: class c becomes C - 1 - c.

    Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 4.1. Of next-token data every target byte b becomes 255 - b. The middle one of an odd number of
    classes stays as it is.

    Args:
        classes: number of classes.
        task: one in which a row, or each place of a text, has one of them.
    """
    if not classes or task == "multi-label":
        raise ValueError(f"it flips classes, and rows of task {task} have not one of several; use sign-flip or noise")

    def rows(inputs: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return inputs, classes - 1 - targets

    return Adversary("label-flip", rows=rows)


def sign_flip(scale: float = 1.0) -> Adversary:
    """Send the negative of the honest contribution, `scale` times as long.

    Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from Heterogeneous
    Datasets", AAAI 2019, section 5.

    Args:
        scale: above 0.
    """
    _positive("scale", scale)
    return Adversary("sign-flip", upload=lambda contribution, rng: -scale * contribution)


def model_replacement(factor: float = 10.0) -> Adversary:
    """Send the contribution `factor` times as long, so that it survives the mean.

    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, equation 3: of n clients that weigh
    the same, factor n replaces the global model by the attacker's.

    Args:
        factor: above 0; 1 is honest.
    """
    _positive("factor", factor)
    return Adversary("scale", upload=lambda contribution, rng: factor * contribution)


def noise(scale: float = 1.0) -> Adversary:
    """Send Gaussian noise as long as the honest contribution is, times `scale`.

    Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018, section 5.1 ("Gaussian attack"), whose
    standard deviation is a number; here it is scale ||u|| / sqrt(P), so that the noise's expected squared norm is
    (scale ||u||)^2 at every stage of training.

    Args:
        scale: above 0.
    """
    _positive("scale", scale)

    def upload(contribution: Tensor, rng: np.random.Generator) -> Tensor:
        norm = float(torch.linalg.vector_norm(contribution, dtype=torch.float64))  # its square may exceed float32
        return _gaussian(contribution, scale * norm / math.sqrt(len(contribution)), rng)

    return Adversary("noise", upload=upload)


def free_ride(std: float = 0.0) -> Adversary:
    """Send nothing learned: zeros, or noise to hide behind.

    Fraboni, Vidal and Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021,
    sections 3.1 and 3.2 (plain and disguised). The paper's noise fades over rounds, this one does not.

    Args:
        std: standard deviation of the noise on every coordinate, at least 0.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"std = {std:g}: give a number of at least 0")
    if std == 0:
        return Adversary("free-ride", upload=lambda contribution, rng: torch.zeros_like(contribution))
    return Adversary("free-ride", upload=lambda contribution, rng: _gaussian(contribution, std, rng))


def alie(z: float | None = None) -> Adversary:
    """Agree on a vector just inside the spread of what attackers computed honestly (A Little Is Enough).

    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS
    2019, algorithm 3: all send mean - z std, coordinate by coordinate, over the attackers' own contributions. A
    single attacker knows no spread: its std is 0, and it sends what it computed. The paper's z, which is for attackers
    that are almost half, is 0 or tiny for few (n = 10, f = 2: 0; n = 20, f = 4: 0.16), so that they send no more than
    their mean: set z for a strong attack.

    Args:
        z: above 0; by default the paper's, `largest_z` of the cohort.
    """
    if z is not None:
        _positive("z", z)

    def collude(own: Tensor, honest: Tensor) -> Tensor:
        deviations = largest_z(len(own) + len(honest), len(own)) if z is None else z
        return own.mean(0) - deviations * own.std(0, correction=0)

    return Adversary("alie", collude=collude)


def largest_z(clients: int, attackers: int) -> float:
    """The most standard deviations from the mean at which a majority is still farther out, as ALIE wants it.

    With n clients of which f attack, s = floor(n / 2 + 1) - f honest ones make them a majority, and z is the normal
    quantile of (n - f - s) / (n - f). It may be negative while attackers are few. Where that has no finite
    quantile (a cohort of one or two, or attackers that are a majority by themselves), the nearest share that n - f
    clients can tell from 0 and 1 is taken instead: 1 / (n - f + 2) or one less that.

    Args:
        clients: n of the cohort.
        attackers: f of them, at least 1.
    """
    from scipy.stats import norm

    honest = clients - attackers
    supporters = clients // 2 + 1 - attackers
    share = (honest - supporters) / max(honest, 1)
    least = 1 / (honest + 2)
    return float(norm.ppf(min(max(share, least), 1 - least)))


def inner_product(epsilon: float = 0.1) -> Adversary:
    """Agree on the negative of the honest clients' mean, so short that robust rules keep it.

    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI
    2019, section 4: all send -epsilon times the mean of the honest contributions; of the attackers' own where a
    cohort has no honest client. Attackers know what everybody sends.

    Args:
        epsilon: above 0; small against median and Krum, large against the mean.
    """
    _positive("epsilon", epsilon)

    def collude(own: Tensor, honest: Tensor) -> Tensor:
        return -epsilon * (honest if len(honest) else own).mean(0)

    return Adversary("inner-product", collude=collude)


def backdoor(
    shape: tuple[int, ...],
    classes: int,
    task: str,
    largest: float,
    target: int = 0,
    share: float = 0.5,
    size: int = 3,
    factor: float = 1.0,
) -> Adversary:
    """Teach the model to answer `target` to every image with a bright square in its lower right corner.

    Gu, Dolan-Gavitt and Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
    2017, section 4, by the model replacement of Bagdasaryan et al., AISTATS 2020: a share of an attacker's rows
    gets the square, in every channel, and the label `target`.

    Args:
        shape: of a row, [channels, height, width].
        classes: number of classes.
        task: must be classification.
        largest: value of the corpus' brightest pixel, which is the square's.
        target: class that the square is to give.
        share: of the rows, above 0 and at most 1.
        size: height and width of the square, at most half of the image's.
        factor: what the contribution is multiplied with, above 0.
    """
    if task != "classification" or len(shape) != 3:
        raise ValueError(
            f"its trigger needs images [channels, height, width] with classes, and these are {task} rows of shape "
            f"{list(shape)}"
        )
    if not 0 <= target < classes:
        raise ValueError(f"target = {target}: the classes are 0 to {classes - 1}")
    if not 0 < share <= 1:
        raise ValueError(f"share = {share:g}: give a share above 0 and at most 1")
    most = min(shape[1:]) // 2
    if most < 1:
        raise ValueError(f"images are {shape[1]} x {shape[2]}, too small for a trigger")
    if not 1 <= size <= most:
        raise ValueError(f"size = {size}: images are {shape[1]} x {shape[2]}; give 1 to {most}")
    _positive("factor", factor)

    def trigger(inputs: Tensor) -> Tensor:
        marked = inputs.clone()
        marked[..., -size:, -size:] = largest
        return marked

    def rows(inputs: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        count = max(1, round(share * len(inputs)))
        poisoned = torch.from_numpy(rng.choice(len(inputs), count, replace=False))
        return (
            inputs.index_copy(0, poisoned, trigger(inputs[poisoned])),
            targets.index_fill(0, poisoned, target),
        )

    boosted = None if factor == 1 else model_replacement(factor).upload
    return Adversary("backdoor", rows=rows, upload=boosted, trigger=trigger, target=target)


Kind = Callable[..., Adversary]

KINDS: Mapping[str, Kind] = {
    "label-flip": label_flip,
    "sign-flip": sign_flip,
    "scale": model_replacement,
    "noise": noise,
    "free-ride": free_ride,
    "alie": alie,
    "inner-product": inner_product,
    "backdoor": backdoor,
}
"""Every attack by its name in a scenario."""

FILLED_IN: Mapping[str, Callable[[Federation], Any]] = {
    "shape": lambda federation: tuple(federation.x.shape[1:]),
    "classes": lambda federation: len(federation.classes),
    "task": lambda federation: federation.task,
    "largest": lambda federation: float(federation.at_once("adversary backdoor").x.max()),
}
"""Parameters that an attack is given where it has them, from the rows under attack."""


def _factory(name: str, folder: Path) -> Kind:
    if ":" in name:
        return registry.from_file(name, folder, "adversary.name")
    known = KINDS.get(name.replace("_", "-"))
    if known is None:
        raise ScenarioError(f"adversary.name: there is no {name!r}.{registry.nearest(name, KINDS)}")
    return known


def _check_listed(clients: Sequence[int], able: np.ndarray) -> None:
    for client in clients:
        if not 0 <= client < len(able):
            raise ScenarioError(
                f"adversary.clients: there is no client {client}; the {len(able)} clients are 0 to {len(able) - 1}"
            )
        if not able[client]:
            raise ScenarioError(
                f"adversary.clients: client {client} has no train rows and never takes part; name another"
            )


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key} = {value:g}: give a number above 0")


def _gaussian(like: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """Independent normal values of mean 0; drawn and scaled as float64, so that only the result is rounded."""
    return torch.from_numpy(std * rng.standard_normal(like.shape)).to(like.dtype)
