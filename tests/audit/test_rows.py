"""The audit of rows on digits: the real mechanism, seen without noise, quiet with it, refuted where it lies."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.audit import rows
from fedsim.audit.canaries import audited_rows, canary_rows, coins
from fedsim.audit.loop import train
from fedsim.audit.one_run import POWER
from fedsim.audit.rows import audit_rows
from fedsim.data.corpus import Folders
from fedsim.errors import FedsimError, ScenarioError
from fedsim.flower import AlgorithmStrategy
from fedsim.job import prepare, prepare_on
from fedsim.local import Received, Work
from fedsim.privacy import example
from fedsim.privacy.accountant import Charge, epsilon
from fedsim.privacy.ledger import Ledger
from fedsim.progress import Progress, Silent
from fedsim.scenario import Scenario
from tests import small

HERE = Folders.of(None, Path())
DELTA = 1e-5
PRIVATE: small.Changes = {
    "rounds": 3,
    "train.batch_size": 128,
    "privacy.example.noise_multiplier": 2.0,
    "privacy.example.delta": DELTA,
    "privacy.example.max_grad_norm": 1.0,
}


def scenario(changes: small.Changes = small.NOTHING) -> Scenario:
    return small.scenario({**PRIVATE, **changes})


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 1),
        ({"privacy.example.clipping": "per-layer"}, 1),
        ({"strategy.name": "fedprox", "strategy.mu": 1.0}, 1),  # with a term of its own in the loss
        ({"strategy.name": "ditto"}, 2),  # of which the second trains a client's own model
    ],
)
def test_without_noise_nearly_every_canary_is_seen(changes: small.Changes, passes: int) -> None:
    found = audit_rows(scenario(changes), HERE, 100, DELTA, Silent(), noise_off=True)
    assert found.bound > POWER and found.ok and found.verdict == "SEEN"
    assert found.rounds == 3 and found.releases == passes * 3 * -(-(969 + 100) // 128)


def test_the_claim_is_of_the_declared_rows_and_stands() -> None:
    """Rate, steps and claim follow from the rows with all canaries, whatever the coins say."""
    found = audit_rows(scenario(), HERE, 100, DELTA, Silent())
    declared = 969 + 100
    charge = Charge(2.0, 128 / declared, 3 * -(-declared // 128))
    assert found.claim == epsilon(charge, DELTA, "rdp")
    assert found.ok and found.verdict == "consistent" and found.bound < found.claim
    assert np.array_equal(found.inside, coins(1, 100))


def test_a_mechanism_that_forgets_its_noise_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells the audit; the claim is what the ledger says."""
    noisy = example.noisy_gradient

    def silent(total: Tensor, noise: float, clip: float, divisor: float, generator: np.random.Generator) -> Tensor:
        return noisy(total, 0.0, clip, divisor, generator)

    monkeypatch.setattr(example, "noisy_gradient", silent)
    found = audit_rows(scenario({"privacy.example.noise_multiplier": 4.0}), HERE, 100, DELTA, Silent())
    assert found.claim < 1.5 < found.bound
    assert not found.ok and found.verdict == "VIOLATED"


def test_units_are_canaries_too(tmp_path: Path) -> None:
    """Rows are grouped by patient; a canary is a patient of one row, and the claim counts patients."""
    rng, patients = np.random.default_rng(2), np.arange(2400) // 3
    features = rng.normal(size=(2400, 12)) + (patients % 2)[:, None]
    columns = ["patient", "ill", *(f"x{number}" for number in range(12))]
    table = [",".join(map(str, [p, p % 2, *row])) for p, row in zip(patients, features.round(3), strict=True)]
    (tmp_path / "patients.csv").write_text("\n".join([",".join(columns), *table]))
    data = {"name": "csv", "path": "patients.csv", "label": "ill", "group": "patient"}
    changes = {
        **PRIVATE,
        "rounds": 10,
        "data": {**data, "preprocess": {"kind": "constants"}, "partition": {"kind": "iid", "clients": 1}},
        "model.hidden": [48],
        "privacy.example.unit": "patient",
    }
    loaded = small.scenario(changes, tmp_path)
    here = Folders.of(None, tmp_path)
    found = audit_rows(loaded, here, 100, DELTA, Silent(), noise_off=True)
    declared = int(prepare(loaded, here).federation.train_units()[0]) + 100
    charge = Charge(2.0, 128 / declared, 10 * -(-declared // 128))
    assert found.claim == pytest.approx(epsilon(charge, DELTA, "rdp"))
    assert "one patient" in found.audited and found.bound > POWER


def note(seen: list[Tensor], released: Tensor, at: Tensor, loss_term: object) -> None:
    seen.append(released.clone())


def test_watching_changes_no_bit() -> None:
    """The audited client sends what it would have sent unwatched."""
    job = prepare(scenario(), HERE)
    sent = []
    for watched in (False, True):
        work = Work(job)
        seen: list[Tensor] = []
        if watched:
            work.algorithm = rows._watched(work.algorithm, partial(note, seen))
        received = Received(work.initial, {})
        sent.append(work.train(0, 1, received, None).vector)
        assert len(seen) == (int(job.privacy.steps[0]) if watched and job.privacy is not None else 0)
        if watched:
            rate = job.scenario.train.learning_rate
            assert torch.allclose(-rate * torch.stack(seen).sum(0), sent[-1], atol=1e-6)
    assert torch.equal(*sent)


def test_the_audits_own_watcher_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works on a twin of its own, and draws under a name of its own."""
    models: list[Tensor] = []

    def remembered(work: Work, strategy: AlgorithmStrategy, ledger: Ledger, progress: Progress) -> int:
        rounds = train(work, strategy, ledger, progress)
        models.append(strategy.server.params)
        return rounds

    monkeypatch.setattr(rows, "train", remembered)
    audit_rows(scenario(), HERE, 100, 1e-5, Silent())
    monkeypatch.setattr(rows, "_watched", lambda algorithm, seen: algorithm)
    audit_rows(scenario(), HERE, 100, 1e-5, Silent())
    assert torch.equal(*models)


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_the_gradients_that_are_looked_for_are_those_of_single_rows(clipping: str) -> None:
    """The audit's own clipped gradients, one row at a time through the mechanism's function."""
    loaded = scenario({"privacy.example.clipping": clipping, "privacy.example.max_grad_norm": 0.1})
    federation = prepare(loaded, HERE).federation
    drawn = canary_rows(federation, 100, 1, lambda x: np.zeros((len(x), 10)))
    audited = audited_rows(federation, drawn)
    declared = prepare_on(audited.federation, loaded)
    assert declared.privacy is not None
    watch = rows._Watch(declared, declared.privacy, audited, drawn, seed=1)
    found = watch._gradients(watch._canaries, None, None)
    work = Work(declared)
    assert work.private is not None
    for number in (0, 57):
        batch = [part[number : number + 1] for part in watch._canaries]
        losses = work.problem.losses(work.private.module(batch[0]), batch[1])
        alone = example.clipped_gradient_sum(work.private, losses, 0.1, per_layer=clipping == "per-layer")
        assert torch.allclose(found[number], alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.split.central": 0.9}, "small: the audit needs 1,000 train rows"),
        ({"adversary": {"name": "sign-flip", "fraction": 0.4}}, "adversary: an audit attacks by itself"),
        ({"train.learning_rate": 1e300}, "round 1, client 0: "),
    ],
)
def test_what_cannot_be_audited_is_refused(changes: small.Changes, message: str) -> None:
    kind = FedsimError if "round" in message else ScenarioError
    with pytest.raises(kind, match=message):
        audit_rows(scenario(changes), HERE, 100, DELTA, Silent())
