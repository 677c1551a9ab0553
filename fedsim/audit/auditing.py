"""The audit that fits what is given: of a scenario's promise, or of a finished run's model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.audit.clients import audit_clients
from fedsim.audit.membership import Membership, infer_members, membership_data, membership_lines
from fedsim.audit.one_run import OneRun, one_run_data, one_run_lines
from fedsim.audit.rows import audit_rows
from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.progress import Progress, Silent
from fedsim.scenario import load

CANARIES, DELTA = 100, 1e-5


def audit(
    target: str,
    settings: Sequence[str] = (),
    *,
    canaries: int | None = None,
    noise_off: bool = False,
    delta: float | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> OneRun | Membership:
    """Audit a scenario's promise by canaries, or attack a run's model by membership inference.

    Args:
        target: a scenario, or a run's folder.
        settings: "key=value" as for `run` or `resume`.
        canaries: of a scenario; 100 by default.
        noise_off: run a scenario's mechanism without its noise, to see whether the audit sees that.
        delta: of claim and bound; 1e-5 by default, and at most.
        data_dir: where data sets are looked for first.
        progress: is told what takes a while.

    Raises:
        FedsimError: there is nothing to audit, or it cannot be.
    """
    progress = progress or Silent()
    if Path(target).is_dir():
        if noise_off or canaries is not None or delta is not None:
            raise ScenarioError(
                f"{target} is a run: --canaries, --noise-off and --delta are for scenarios, whose mechanism is run anew"
            )
        return infer_members(Path(target), settings, data_dir, progress)
    scenario = load(target, settings)
    level = scenario.privacy.level
    if level is None:
        raise ScenarioError(
            f"{target} promises no privacy, so there is no claim to audit; membership inference attacks a finished "
            "run: fedsim audit RUN"
        )
    if level == "local":
        raise ScenarioError(
            f"{target}: privacy.local cannot be audited by canaries, which are rows or clients that are there or not; "
            "it promises that any two data sets of a client look alike, by one Gaussian whose epsilon is exact"
        )
    if not 0 < (delta := DELTA if delta is None else delta) <= DELTA:
        raise ScenarioError(
            f"--delta {delta:g}: give one above 0 and at most {DELTA:g}; a larger one would excuse what canaries show"
        )
    count = CANARIES if canaries is None else canaries
    if count < 1:
        raise ScenarioError(f"--canaries {count}: give at least 1")
    folders = Folders.of(data_dir, scenario.folder)
    run = audit_rows if level == "example" else audit_clients
    alone = scenario.changed({"engine.stack": 1, "engine.devices": ["cpu"]})  # canaries' client half is no stack's
    return run(alone, folders, count, delta, progress, noise_off=noise_off)


def lines(found: OneRun | Membership) -> list[str]:
    """For people, at most 80 columns."""
    return one_run_lines(found) if isinstance(found, OneRun) else membership_lines(found)


def as_data(found: OneRun | Membership) -> dict[str, Any]:
    """For programs."""
    return one_run_data(found) if isinstance(found, OneRun) else membership_data(found)


def passed(found: OneRun | Membership) -> bool:
    """Whether nothing was refuted: an attack on a model refutes nothing."""
    return found.ok if isinstance(found, OneRun) else True
