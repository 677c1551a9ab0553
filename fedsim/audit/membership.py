"""Membership inference on a run's last model: are rows that were trained on told from others by their loss?

Yeom et al., "Privacy Risk in Machine Learning", CSF 2018: whoever has the model and a row calls it a member where its
loss is low. It is what one attack, a simple one, achieves: no bound on what others would, and no statement on epsilon.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.audit.bounds import CONFIDENCE, Interval
from fedsim.audit.scores import AtRate, area, at_rate, curve
from fedsim.data.federation import Federation, Part, Rows
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.local import Work, one_thread
from fedsim.parameters import Weights
from fedsim.past import Past, checkpoint_at, reopen
from fedsim.problem import evaluating
from fedsim.progress import Progress, wrapped
from fedsim.stored import kept_checkpoints, open_run

RATES = (0.01, 0.001)
"""False positive rates at which the attack is measured: an attacker that is sure of a few is worse than one that is
half sure of all (Carlini et al. 2022)."""
LEAST_OF_CLIENT = 10
"""Rows of either kind that a client needs to be looked at alone."""


class OfClient(NamedTuple):
    """The attack on one client's rows alone.

    Attributes:
        client, name: whose.
        auc: area under its curve.
        members, others: how many rows.
        chance: probability of such an area or a larger one if the loss told nothing, times the clients looked at.
    """

    client: int
    name: str
    auc: float
    members: int
    others: int
    chance: float


@dataclass(frozen=True, eq=False)
class Membership:
    """What the attack achieves.

    Attributes:
        folder: of the run.
        title: of its scenario.
        round: after which the model is.
        members: [n] losses of clients' train rows, not finite ones as infinite.
        others: [m] losses of clients' and central test rows.
        clients: those with enough rows of both kinds.
    """

    folder: Path
    title: str
    round: int
    members: np.ndarray
    others: np.ndarray
    clients: Sequence[OfClient]

    @property
    def auc(self) -> tuple[float, Interval]:
        """Area under the curve, the probability that a member's loss is below another's, and its limits."""
        return area(-self.members, -self.others)

    @property
    def at_rates(self) -> list[AtRate]:
        """True positives at each of `RATES`."""
        return [at_rate(-self.members, -self.others, rate) for rate in RATES]

    @property
    def advantage(self) -> float:
        """The largest true minus false positive rate over all thresholds."""
        false, true = curve(-self.members, -self.others)
        return float((true - false).max())

    @property
    def advantage_by_chance(self) -> float:
        """What the advantage would stay below, at the confidence, if the loss told nothing (Smirnov's limit)."""
        return float(np.sqrt(-np.log((1 - CONFIDENCE) / 2) / 2 * (1 / len(self.members) + 1 / len(self.others))))

    @property
    def worst(self) -> OfClient | None:
        """The client whose rows are told apart so well as is least likely by chance."""
        return min(self.clients, key=lambda each: (each.chance, -each.auc), default=None)


@one_thread()
def infer_members(path: Path, settings: Sequence[str], data_dir: Path | None, progress: Progress) -> Membership:
    """Attack a run's newest kept model, the last one where it has finished.

    Args:
        path: the run's folder.
        settings: as for `resume`.
        data_dir: where data sets are looked for first.
        progress: is told what takes a while.

    Raises:
        RunFolderError: no run folder, or one without a kept model.
        ScenarioError: what the run was made with is not what there is now, or there are no rows of one kind.
    """
    progress.phase("loading the data")
    past = reopen(path, settings=settings, data_dir=data_dir)
    with closing(open_run(path)) as records:
        kept = kept_checkpoints(path, records)
        if not kept:
            raise RunFolderError(f"{path} keeps no checkpoint yet, so there is no model to attack")
        weights = checkpoint_at(past, records, kept[0]).snapshot.weights
    honest = [number for number in range(past.job.federation.clients) if number not in past.job.attackers]
    progress.phase("measuring the loss of every row")
    train, test = ({number: _losses(past, weights, number, part) for number in honest} for part in _PARTS)
    central = losses(past.work, weights, past.job.federation.central["test"])
    members, others = np.concatenate(list(train.values())), np.concatenate([*test.values(), central])
    if not (len(members) and len(others)):
        raise ScenarioError(f"{path}: {len(members)} train and {len(others)} test rows; the attack compares the two")
    progress.phase("")
    return Membership(
        folder=path,
        title=past.job.scenario.title,
        round=kept[0].number,
        members=members,
        others=others,
        clients=_of_clients(past.job.federation, train, test),
    )


_PARTS: tuple[Part, Part] = ("train", "test")


def losses(work: Work, weights: Weights, rows: Rows) -> np.ndarray:
    """[n] every row's loss under a model, in evaluation mode; infinite where it is not finite."""
    work.plain.load(weights)
    module, problem, size = work.plain.module, work.problem, work.job.scenario.evaluate.batch_size
    found = [torch.zeros(0)]
    with torch.no_grad(), evaluating(module):
        for start in range(0, len(rows.x), size):
            output = module(problem.inputs(rows.x[start : start + size]).clone())  # a model may work in place
            found.append(problem.losses(output, problem.targets(rows.y[start : start + size])))
    return np.asarray(np.nan_to_num(torch.cat(found).double().numpy(), nan=np.inf, posinf=np.inf))


def _losses(past: Past, weights: Weights, client: int, part: Part) -> np.ndarray:
    return losses(past.work, weights, past.job.federation.rows(client, part))


def membership_lines(found: Membership) -> list[str]:
    """For people, at most 80 columns."""
    pairs = [(name, text) for name, text in membership_table(found) if name != "run"]
    return [
        *wrapped(f"{found.title} · membership inference on {found.folder}"),
        *(line for name, text in pairs for line in wrapped(f"{name:<12} {text}")),
        *wrapped(MEANING, 2),
    ]


MEANING = (
    "what an attack by loss alone achieves on this model: others may achieve more, so that it achieves little proves "
    "nothing"
)


def membership_table(found: Membership) -> list[tuple[str, str]]:
    """Names and figures."""
    value, (low, high) = found.auc
    rows = [
        ("run", f"{found.title}, {found.folder}"),
        ("model", f"the global one after round {found.round}"),
        ("members", f"{len(found.members):,} train rows of clients"),
        ("others", f"{len(found.others):,} test rows, clients' and central"),
        ("AUC", f"{value:.3f} ({low:.3f} to {high:.3f}); 0.5 is a coin"),
    ]
    for each in found.at_rates:
        text = f"{_percent(each.rate)} of others"
        if each.found is None:
            rows.append(("recognised", f"at {text}: not known, that takes {round(1 / each.rate):,} others"))
        else:
            low, high = each.limits
            shares = f"{_percent(each.found)} of members ({_percent(low)} to {_percent(high)})"
            rows.append(("recognised", f"{shares} at {text}"))
    rows.append(("advantage", f"{found.advantage:.3f}; up to {found.advantage_by_chance:.3f} by chance"))
    rows.append(("worst client", _worst_text(found)))
    return rows


def _worst_text(found: Membership) -> str:
    if (worst := found.worst) is None:
        return f"none has {LEAST_OF_CLIENT} train and {LEAST_OF_CLIENT} test rows"
    name = f" ({worst.name})" if worst.name != str(worst.client) else ""
    chance = f"such a worst of {len(found.clients)} clients has probability {worst.chance:.2g} by chance"
    return f"{worst.client}{name}: AUC {worst.auc:.3f} on {worst.members} train, {worst.others} test rows; {chance}"


def membership_data(found: Membership) -> dict[str, Any]:
    """For programs."""
    value, limits = found.auc
    return {
        "audit": "membership",
        "folder": str(found.folder),
        "round": found.round,
        "members": len(found.members),
        "others": len(found.others),
        "auc": {"value": value, **limits._asdict()},
        "true_positives": [
            {"rate": each.rate, "found": each.found, **each.limits._asdict()} for each in found.at_rates
        ],
        "advantage": {"value": found.advantage, "by_chance": found.advantage_by_chance},
        "confidence": CONFIDENCE,
        "clients": [each._asdict() for each in found.clients],
    }


def _of_clients(federation: Federation, train: dict[int, np.ndarray], test: dict[int, np.ndarray]) -> list[OfClient]:
    from scipy import stats

    numbers = [each for each in train if min(len(train[each]), len(test[each])) >= LEAST_OF_CLIENT]
    found = []
    for number in numbers:
        members, others = -train[number], -test[number]
        chance = float(stats.mannwhitneyu(members, others, alternative="greater").pvalue)
        found.append(
            OfClient(
                client=number,
                name=federation.names[number],
                auc=area(members, others)[0],
                members=len(members),
                others=len(others),
                chance=min(1.0, len(numbers) * chance),
            )
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
