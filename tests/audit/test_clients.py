"""The audit of clients on digits: the real rounds, seen without noise, quiet with it, refuted where they lie."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.audit.canaries import coins
from fedsim.audit.clients import audit_clients
from fedsim.audit.one_run import POWER
from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.privacy import client
from fedsim.privacy.accountant import Charge, epsilon
from fedsim.progress import Silent
from fedsim.scenario import Scenario
from tests import small

HERE = Folders.of(None, Path())
DELTA, CANARIES = 1e-5, 60
PRIVATE: small.Changes = {
    "rounds": 16,
    "strategy.weights": "uniform",
    "cohort.poisson": 0.25,
    "train.steps": 1,
    "privacy.client.noise_multiplier": 1.0,
    "privacy.client.delta": DELTA,
    "privacy.client.clip": 0.5,
}
ADAPTIVE: small.Changes = {"privacy.client.adaptive.quantile": 0.5, "privacy.client.adaptive.rate": 0.2}
TREE: small.Changes = {
    "cohort": {"size": 1},
    "privacy.client.mechanism": "tree",
    "privacy.client.min_separation": 4,
}


def scenario(changes: small.Changes = small.NOTHING) -> Scenario:
    return small.scenario({**PRIVATE, **changes})


@pytest.mark.parametrize(
    "changes", [{}, ADAPTIVE, TREE, {"cohort": {}}, {"strategy.name": "fedadam"}, {"strategy.name": "fedper"}]
)
def test_without_noise_the_canaries_are_seen(changes: small.Changes) -> None:
    """Under every way to draw cohorts, clip and noise, and whatever the server makes of the estimate."""
    found = audit_clients(scenario(changes), HERE, CANARIES, DELTA, Silent(), noise_off=True)
    assert found.bound > POWER and found.ok and found.releases == found.rounds == 16


def test_the_claim_is_of_all_registered_clients_and_stands() -> None:
    found = audit_clients(scenario(), HERE, CANARIES, DELTA, Silent())
    assert found.claim == epsilon(Charge(1.0, 0.25, 16), DELTA, "rdp")
    assert found.ok and found.verdict == "consistent" and found.bound < found.claim
    assert np.array_equal(found.inside, coins(1, CANARIES))
    assert "5 clients and 60 canaries" in found.audited


def test_a_cohort_of_fixed_size_keeps_its_share() -> None:
    """A canary takes part as often as a client of the scenario would, and is charged as often at most."""
    loaded = scenario({"cohort": {"size": 2}, "privacy.client.max_participations": 5})
    found = audit_clients(loaded, HERE, CANARIES, DELTA, Silent())
    assert found.claim == pytest.approx(epsilon(Charge(1.0, 1.0, 5), DELTA, "exact"))


def test_a_mechanism_that_forgets_its_noise_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(size: int, deviation: float, shared: Tensor | None, generator: np.random.Generator) -> Tensor:
        return torch.zeros(size, dtype=torch.float64)

    monkeypatch.setattr(client, "gaussian", silent)
    found = audit_clients(scenario({"privacy.client.noise_multiplier": 4.0}), HERE, CANARIES, DELTA, Silent())
    assert found.claim < 2.0 < found.bound
    assert not found.ok and found.verdict == "VIOLATED"


@pytest.mark.parametrize(
    ("changes", "canaries", "message"),
    [
        ({}, 47, "--canaries 47: an audit of clients needs 48 or more"),
        ({}, 2000, "--canaries 2000: the model has 1,210 values"),
        ({"adversary": {"name": "sign-flip", "fraction": 0.4}}, 48, "adversary: an audit attacks by itself"),
    ],
)
def test_what_cannot_be_audited_is_refused(changes: small.Changes, canaries: int, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        audit_clients(scenario(changes), HERE, canaries, DELTA, Silent())
