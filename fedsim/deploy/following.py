"""Two files by which a command and the server's half of its run know of each other.

The ticket says what is to be run: the command writes it, and the process that the SuperLink starts reads it. What that
process has to tell goes line by line into a file beside it, and the command shows it as that of a run on this machine.
"""

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsim.deploy import private_files
from fedsim.deploy.assignment import Assignment
from fedsim.errors import DeployError
from fedsim.progress import Progress
from fedsim.records import RoundRecord

Status = Literal["done", "stopped", "interrupted", "failed"]
"""How the server's half of a run ended."""


Purpose = Literal["run", "describe", "statistics"]
"""What for: to run a scenario, to ask nodes what rows they have, to ask them for statistics of these."""


class Ticket(BaseModel):
    """What the server's half of a run is asked for.

    Attributes:
        purpose: a run; only what nodes say of their data; or a statistic of these.
        run: its id, which stays when it is resumed.
        scenario: resolved, in TOML, as nodes get it.
        sources: the user's own files by the scenario's names of them.
        origin: what errors call the scenario.
        folder: of the run.
        resumed: whether that folder is there, and the run goes on.
        nodes: how many there must be; all that are admitted where nobody says.
        population: names of the nodes of a run that goes on, by number.
        wait: seconds for which nodes are waited for.
        central: where the server's own held-out rows are.
        seeded_coins: whether noise comes from the scenario's seed, for a rehearsal.
        more: what another purpose needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Purpose
    run: str = Field(pattern=r"^[0-9a-f]{16}$")
    scenario: str
    sources: dict[str, str] = {}
    origin: str = "scenario"
    folder: Path | None = None
    resumed: bool = False
    nodes: int | None = Field(None, ge=1)
    population: list[str] | None = None
    wait: float = Field(600.0, ge=0)
    central: Path | None = None
    seeded_coins: bool = False
    more: dict[str, Any] = {}

    @classmethod
    def new(cls, purpose: Purpose, asked: Assignment, **fields: Any) -> Self:
        """The first ticket of a run, whose id it draws."""
        told = {"scenario": asked.scenario, "sources": dict(asked.sources)}
        return cls(purpose=purpose, run=os.urandom(8).hex(), **told, **fields)

    @property
    def assignment(self) -> Assignment:
        """What nodes are asked to do."""
        return Assignment(self.scenario, self.sources)

    def write(self, runs: Path) -> str:
        """Write it under a new name; that name.

        Raises:
            DeployError: it cannot be written.
        """
        name = f"{self.run}-{os.urandom(4).hex()}"
        private_files.folder(runs)
        private_files.create(following_file(runs, name), b"")
        private_files.create(_file(runs, name), self.model_dump_json(indent=1).encode())
        return name

    @classmethod
    def read(cls, runs: Path, name: str) -> Self:
        """The ticket of this name.

        Raises:
            DeployError: there is none, or it is damaged.
        """
        if not re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{8}", name):
            raise DeployError("this run was not started by fedsim deploy run; start it so")
        try:
            return cls.model_validate_json(_file(runs, name).read_bytes())
        except OSError as error:
            raise DeployError(f"{_file(runs, name)} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise DeployError(f"{_file(runs, name)} is damaged: {error.errors()[0]['msg']}") from error


class Following:
    """Tells a command what goes on, as a `Progress`; every line is on its way when a method returns."""

    def __init__(self, runs: Path, name: str) -> None:
        """Of the ticket of this name."""
        self._path = following_file(runs, name)
        self._lock = threading.Lock()
        self._cut = False

    def tell(self, kind: str, **values: Any) -> None:
        """Add a line; a disk that is full does not end a run that has nobody to tell."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        with self._lock:
            try:
                with self._path.open("ab") as file:
                    file.write(b"\n" + line if self._cut else line)
                self._cut = False
            except OSError:
                self._cut = True  # the next line begins behind what there is of this one

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """See `Progress`."""
        self.tell("begin", title=title, facts=list(facts), notes=list(notes), rounds=rounds)

    def phase(self, text: str) -> None:
        """See `Progress`."""
        self.tell("phase", text=text)

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.tell("note", text=text)

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        """See `Progress`."""
        self.tell(
            "round",
            number=record.number,
            shown=dict(shown),
            cohort=record.cohort,
            failed=record.failed,
            epsilon=record.epsilon,
            seconds=record.seconds,
            metrics=dict(record.metrics),
        )

    def end(self, lines: Sequence[str]) -> None:
        """See `Progress`."""
        self.tell("end", lines=list(lines))


class Lines:
    """What was told, line by line, as far as it has come."""

    def __init__(self, runs: Path, name: str) -> None:
        """Of the ticket of this name."""
        self._path, self._place = following_file(runs, name), 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines that came since the last call, without those that a full disk has cut."""
        with self._path.open("rb") as file:
            file.seek(self._place)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def shown(line: Mapping[str, Any], progress: Progress) -> None:
    """Show one line; kinds that are not for a person are passed over."""
    kind = line["kind"]
    if kind == "begin":
        progress.begin(line["title"], line["facts"], line["notes"], line["rounds"])
    elif kind == "phase":
        progress.phase(line["text"])
    elif kind == "note":
        progress.note(line["text"])
    elif kind == "end":
        progress.end(line["lines"])
    elif kind == "round":
        record = RoundRecord(
            number=line["number"],
            seconds=line["seconds"],
            cohort=line["cohort"],
            failed=line["failed"],
            metrics=line["metrics"],
            epsilon=line["epsilon"],
            fingerprint="",
            clients=[],
        )
        progress.round(record, line["shown"])


def forget(runs: Path, name: str) -> None:
    """Remove a ticket that was never handed over."""
    for path in (_file(runs, name), following_file(runs, name)):
        path.unlink(missing_ok=True)


def following_file(runs: Path, name: str) -> Path:
    """Where the lines of a ticket are."""
    return runs / f"{name}.following"


def _file(runs: Path, name: str) -> Path:
    return runs / f"{name}.json"
