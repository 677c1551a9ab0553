"""The coordinator's half of a deployed run: hands it to the SuperLink, and shows what goes on there.

First nodes are asked what they hold. With that everything is checked here that a simulation would check, and noise is
solved; only then the run itself begins, with the nodes that have answered.
"""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from fedsim.deploy.control import Control
from fedsim.deploy.described import Description, federation_of
from fedsim.deploy.following import Lines, Ticket, forget, shown
from fedsim.deploy.serving import central_rows, job_of
from fedsim.deploy.site import Site
from fedsim.deploy.submission import deployable, parsed, solved, write_sources
from fedsim.errors import DeployError, Interrupted, StoppedByPolicy
from fedsim.progress import Progress
from fedsim.records import being_written
from fedsim.resuming import check_unfinished, stored
from fedsim.runs import check_out, default_path
from fedsim.scenario import Scenario
from fedsim.signals import signals_to
from fedsim.stored import DEPLOYMENT, stored_environment

PAUSE = 0.1
_ASKING = 5.0  # seconds between two questions to the SuperLink whether the run goes on
_STARTING = 120.0  # seconds that a SuperLink may take to start the process


class Deployed(NamedTuple):
    """A deployed run that has ended by itself.

    Attributes:
        folder: of the run.
        values: its summary.
    """

    folder: Path
    values: dict[str, Any]

    @property
    def status(self) -> str:
        """How it ended."""
        return str(self.values["status"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the last model."""
        return str(self.values["fingerprint"])


def deploy(
    scenario: Scenario,
    site: Site,
    *,
    nodes: int | None = None,
    wait: float = 600.0,
    central: Path | None = None,
    out: Path | None = None,
    progress: Progress,
    seeded_coins: bool = False,
) -> Deployed:
    """Run a scenario on a site's nodes.

    Args:
        scenario: as it could be simulated.
        site: whose server is running.
        nodes: how many there must be; all that are admitted by default.
        wait: seconds for which they are waited for.
        central: the server's own held-out rows: a folder that a rehearsal wrote, or what the scenario's source reads.
        out: the run's folder, which must not exist.
        progress: is told what goes on.
        seeded_coins: noise comes from the scenario's seed and protects nobody: for a rehearsal.

    Raises:
        FedsimError: it cannot be deployed as it is, or it ended before its last round; the line says how to go on.
    """
    check_out(out)
    asked, notes = deployable(scenario)
    for note in notes:
        progress.note(note)
    first = Ticket.new(
        "describe",
        asked,
        origin=scenario.origin,
        nodes=nodes,
        wait=wait,
        central=central.absolute() if central is not None else None,
        seeded_coins=seeded_coins,
    )
    sources = site.runs / first.run
    write_sources(asked, sources)
    resolved = parsed(asked, sources, scenario.origin)
    central_rows(first.central, resolved)  # what is wrong with it is told before anybody is asked
    described = submit(site, first, progress)["described"]
    found = [Description.again(each) for each in described.values()]
    federation = federation_of(list(described), found, corpus=resolved.data.name, measured=False)
    final = solved(asked, federation, sources, scenario.origin)
    whole = first.model_copy(
        update={
            "purpose": "run",
            "scenario": final.scenario,
            "population": list(described),
            "more": {"described": described},
            "folder": out.absolute() if out is not None else default_path(Path(scenario.origin).stem),
        }
    )
    job_of(whole, parsed(final, sources, scenario.origin))
    assert whole.folder is not None
    return Deployed(whole.folder, submit(site, whole, progress))


def is_deployed(folder: Path) -> bool:
    """Whether a run's folder is that of a deployed run."""
    return (folder / "environment.json").is_file() and DEPLOYMENT in stored_environment(folder)


def resume(folder: Path, progress: Progress, rounds: int | None = None, settings: Sequence[str] = ()) -> Deployed:
    """Go on with a deployed run, with the nodes and under the id with which it began.

    Args:
        folder: of the run.
        progress: is told what goes on.
        rounds: of the whole run, instead of the scenario's.
        settings: "stop.patience=3" and the like, as of `fedsim.resume`.

    Raises:
        FedsimError: it cannot go on, or it ended before its last round.
    """
    folder = folder.absolute()
    kept = stored_environment(folder)[DEPLOYMENT]
    if being_written(folder):
        shown_by = f"fedsim deploy status {kept['site']}"
        raise DeployError(f"{folder} goes on, the server has not ended it; what it does is shown by {shown_by}")
    site = Site.open(Path(kept.pop("site")))
    scenario = stored(folder, rounds, settings)
    check_unfinished(folder, scenario)
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted((folder / "sources").iterdir())}
    text = scenario.to_toml()
    ticket = Ticket(**kept, purpose="run", scenario=text, sources=sources, folder=folder, resumed=True)
    return Deployed(folder, submit(site, ticket, progress))


def submit(site: Site, ticket: Ticket, progress: Progress) -> dict[str, Any]:
    """Hand a ticket to a site's SuperLink and wait until it is done; what came of it.

    Raises:
        StoppedByPolicy: the run ended by its own rules.
        Interrupted: by Ctrl-C.
        DeployError: it failed, or its process has ended without a word.
    """
    control = Control(site)
    with tempfile.TemporaryDirectory() as place:
        ticket.assignment.write_app(Path(place))
        name = ticket.write(site.runs)
        try:
            number = control.start(Path(place), {"ticket": name})
        except DeployError:
            forget(site.runs, name)
            raise
    last = _Follower(site, control, name, number, progress).follow()
    advice = f"; go on with: fedsim resume {ticket.folder}" if ticket.folder is not None and _begun(ticket) else ""
    reason = f"{last['reason']}{advice if 'fedsim resume' not in last['reason'] else ''}"
    if last["status"] == "stopped":
        raise StoppedByPolicy(last["reason"])
    if last["status"] == "interrupted":
        raise Interrupted(reason)
    if last["status"] == "failed":
        raise DeployError(reason)
    return dict(last["result"])


def _begun(ticket: Ticket) -> bool:
    return ticket.folder is not None and (ticket.folder / "run.db").is_file()


class _Follower:
    """Shows what a run's process tells, and notices when it is gone."""

    def __init__(self, site: Site, control: Control, name: str, number: int, progress: Progress) -> None:
        self._lines, self._progress, self._site = Lines(site.runs, name), progress, site
        self._control, self._number = control, number
        self._process: int | None = None
        self._interrupted = 0

    def follow(self) -> dict[str, Any]:
        """Wait for the end; the last line."""
        begun = asked = time.monotonic()
        with signals_to(self._interrupt):
            while True:
                if (last := self._shown()) is not None:
                    return last
                if self._process is None and self._interrupted:
                    self._stop()
                    return _ended("interrupted", "interrupted before its process had started")
                if self._process is not None and not _alive(self._process):
                    return self._shown() or _ended("failed", "the server has ended the run")
                if time.monotonic() - asked > _ASKING:
                    asked = time.monotonic()
                    if (text := self._over()) is not None:
                        return self._shown() or _ended("failed", text)
                if self._process is None and time.monotonic() - begun > _STARTING:
                    self._stop()
                    logs = self._site.logs
                    return _ended("failed", f"the SuperLink started nothing in {_STARTING:g} s; see {logs}")
                time.sleep(PAUSE)

    def _shown(self) -> dict[str, Any] | None:
        """Show what has come; the last line, once it is there."""
        for line in self._lines.new():
            if line["kind"] == "started":
                self._process = int(line["pid"])
            elif line["kind"] == "finished":
                return line
            else:
                shown(line, self._progress)
        return None

    def _over(self) -> str | None:
        """Why the SuperLink says that the run is over; None while it goes on, or while nobody answers."""
        with suppress(DeployError):
            run = next((run for run in self._control.runs() if run.run_id == self._number), None)
            if run is None or run.status == "finished":
                details = f": {run.details}" if run is not None and run.details else ""
                return f"the server has ended the run{details}"
        return None

    def _stop(self) -> None:
        with suppress(DeployError):
            self._control.stop(self._number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on: the run ends after its round, and at once when it comes again."""
        self._interrupted += 1
        if self._process is not None:
            with suppress(OSError):
                os.kill(self._process, signal.SIGINT)
        elif self._interrupted > 1:
            raise KeyboardInterrupt


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ended(status: str, reason: str) -> dict[str, Any]:
    return {"kind": "finished", "status": status, "reason": reason, "result": {}}
