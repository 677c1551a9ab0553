"""A node's folder at its owner: settings, and where everything else lies."""

import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsim.deploy import private_files
from fedsim.deploy.node.ledger import Ledger
from fedsim.deploy.node.log import Log, entries
from fedsim.errors import DeployError, Refused
from fedsim.registry import nearest


class _Data(BaseModel):
    """`[data]` of node.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    path: str


class NodeFolder(BaseModel):
    """A node, as `node.toml` describes it.

    Attributes:
        folder: in which all of it lies, of mode 700.
        name: of the node, as the coordinator admitted it.
        host, port: of the coordinator's server.
        data: where the owner's rows lie, if that is written down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    folder: Path = Field(exclude=True)
    name: str = Field(min_length=1)
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    data: _Data | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The node of a folder that `fedsim deploy join` made.

        Raises:
            DeployError: there is none, its settings are not sound, or others may read it.
        """
        file = folder / "node.toml"
        try:
            content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DeployError(
                f"{folder} is no node: it has no node.toml; make one with `fedsim deploy join`"
            ) from error
        except (OSError, ValueError) as error:
            raise DeployError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        private_files.check(folder)
        try:
            return cls.model_validate({**content, "folder": folder.resolve()})
        except ValidationError as error:
            raise DeployError(f"{file}: {reason(error, cls)}") from error

    @property
    def key(self) -> Path:
        """The node's private key."""
        return self.folder / "key"

    @property
    def certificate(self) -> Path:
        """The coordinator's CA."""
        return self.folder / "ca.crt"

    @property
    def rules_file(self) -> Path:
        """What the owner allows."""
        return self.folder / "rules.toml"

    @property
    def ledger_file(self) -> Path:
        """What was spent."""
        return self.folder / "ledger.db"

    @property
    def log_file(self) -> Path:
        """What happened."""
        return self.folder / "log.jsonl"

    @property
    def approved(self) -> Path:
        """Own code of coordinators that the owner approved, by digest."""
        return self.folder / "approved"

    @property
    def pending(self) -> Path:
        """Own code that waits for the owner."""
        return self.folder / "pending"

    @property
    def checked(self) -> Path:
        """Ways to read rows that the owner has checked, by digest."""
        return self.folder / "checked"

    @property
    def asked(self) -> Path:
        """Scenarios that wait for such a check."""
        return self.folder / "asked"

    @property
    def states(self) -> Path:
        """What strategies keep here between rounds."""
        return self.folder / "states"

    @property
    def replies(self) -> Path:
        """The last answers, to be given again."""
        return self.folder / "replies"

    @property
    def flower(self) -> Path:
        """Flower's own folder."""
        return self.folder / "flwr"

    @property
    def logs(self) -> Path:
        """What child processes print."""
        return self.folder / "logs"

    @property
    def left(self) -> Path:
        """There once the owner has withdrawn."""
        return self.folder / "withdrawn"

    @property
    def withdrawn(self) -> bool:
        """Whether the owner has withdrawn."""
        return self.left.exists()

    def books(self) -> tuple[Ledger, Log]:
        """Its ledger and its log, begun where there are none yet.

        Raises:
            DeployError: a file cannot be read or written, or the ledger is gone and the log is there.
        """
        if self.log_file.exists() and not self.ledger_file.exists():
            raise DeployError(
                f"{self.ledger_file} is gone, and {self.log_file.name} tells of earlier requests: what was spent is "
                "not known. Restore the ledger from a backup, or leave and join anew under another name"
            )
        return Ledger(self.ledger_file), Log(self.log_file)

    def told(self, delta: float) -> float:
        """The largest epsilon at a delta that its log tells of; 0 of none."""
        if not self.log_file.exists():
            return 0.0
        found = (each for each in entries(self.log_file) if each.get("delta") == delta)
        return max((float(each.get("epsilon-after", 0.0)) for each in found), default=0.0)

    def require_whole(self, delta: float) -> None:
        """Make sure that the ledger knows what the log tells of.

        Raises:
            DeployError: it knows of less, so it was restored from a backup.
        """
        ledger, _ = self.books()
        with closing(ledger):
            known, told, counter = ledger.spent(delta), self.told(delta), ledger.counter
        if known < told * (1 - 1e-6):
            raise DeployError(
                f"{self.ledger_file} knows of epsilon {known:.3g} and {self.log_file.name} of {told:.3g}: it was "
                f"restored from a backup; `fedsim deploy ledger {self.folder} --catch-up N` charges what is missing, N "
                f"being the charges that the coordinator has seen, or {counter + 1}"
            )

    def require_member(self) -> None:
        """Refuse whatever is asked of a node whose owner has withdrawn.

        Raises:
            Refused: it has.
        """
        if self.withdrawn:
            raise Refused(f"the owner of {self.name} has withdrawn")


def reason(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong in an owner's TOML file, in words: the key and what it should be."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and not part.endswith("]"))
    if first["type"] == "extra_forbidden":
        return f"{key} is not known.{nearest(key, set(model.model_fields) - {'folder'})}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}" if key else message
