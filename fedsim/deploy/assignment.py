"""What a coordinator asks of nodes: a resolved scenario and the user's own source files, named by their digest.

It travels as a Flower app, because Flower carries apps. A node reads scenario and sources out of it as data: the two
files of code in it are always the same, and nothing of them is imported there.
"""

import hashlib
import io
import json
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tomli_w

from fedsim.errors import DeployError, Refused

MOST_BYTES = 10 * 1024 * 1024
"""Of a Flower app as it travels; SuperLink takes no larger one."""
_MOST_OPENED = 64 * 1024 * 1024
_PROJECT, _CODE, _CONTENT = "pyproject.toml", "fedsim_assignment/__init__.py", "fedsim_assignment/assignment.json"
_MANIFEST = ".info/CONTENT"  # Flower's own list of what is in an app
PROJECT: Mapping[str, Any] = {
    "project": {"name": "fedsim-assignment", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []},
    "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
    "tool": {
        "flwr": {
            "app": {
                "publisher": "fedsim",
                "components": {"serverapp": "fedsim_assignment:server", "clientapp": "fedsim_assignment:client"},
                "config": {"ticket": ""},
            }
        }
    },
}
CODE = '''"""The coordinator's half of a deployed run; nodes run their own fedsim and nothing of this."""

from flwr.clientapp import ClientApp

from fedsim.deploy.serving import server

__all__ = ["client", "server"]
client = ClientApp()
'''


@dataclass(frozen=True)
class Assignment:
    """What nodes are asked to do.

    Attributes:
        scenario: resolved, in TOML; nodes put their own data in the place of its table `data`.
        sources: the user's own files by the name that the scenario has for them.
    """

    scenario: str
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(self._content).hexdigest()

    @cached_property
    def sources_digest(self) -> str:
        """SHA-256 of the user's own files, which an owner approves."""
        return hashlib.sha256(_canonical(dict(self.sources))).hexdigest()

    @property
    def _content(self) -> bytes:
        return _canonical({"scenario": self.scenario, "sources": dict(self.sources)})

    def write_app(self, folder: Path) -> None:
        """Write the Flower app that carries it into a folder.

        Raises:
            DeployError: it is larger than Flower lets an app be.
        """
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(_CONTENT, self._content)
        if (size := packed.tell()) > MOST_BYTES - 64 * 1024:  # the rest of the app is a few kilobytes
            largest = max(self.sources, key=lambda name: len(self.sources[name]), default="the scenario")
            raise DeployError(
                f"own files come to {size / 1e6:.1f} MB packed, and {MOST_BYTES / 1e6:.1f} MB may travel to nodes; the "
                f"largest is {largest}: install what is large on the nodes instead"
            )
        contents = {_PROJECT: tomli_w.dumps(PROJECT).encode(), _CODE: CODE.encode(), _CONTENT: self._content}
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    @classmethod
    def read(cls, fab: bytes) -> Self:
        """The assignment in a Flower app's bundle, of which nothing is unpacked or run.

        Raises:
            Refused: it is no bundle, holds another file, or other code.
        """
        found = _files(fab)
        try:
            project = tomllib.loads(found[_PROJECT].decode())
        except ValueError:
            project = {}
        for name, same in ((_PROJECT, project == PROJECT), (_CODE, found[_CODE] == CODE.encode())):
            if not same:
                raise Refused(f"the app's {name} is not that of fedsim: it would be code that the server chose")
        try:
            content = json.loads(found[_CONTENT])
            scenario, sources = content["scenario"], content["sources"]
            sound = isinstance(scenario, str) and isinstance(sources, dict) and set(content) == {"scenario", "sources"}
            sound = sound and all(isinstance(text, str) for text in sources.values())
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise Refused(f"the app's {_CONTENT} holds no scenario and sources")
        if odd := [name for name in sources if not _stays_inside(name)]:
            raise Refused(f"the app's source {odd[0]!r} would lie outside its folder")
        return cls(scenario, sources)


def _files(fab: bytes) -> dict[str, bytes]:
    """Every file of a bundle that an assignment has; others are refused."""
    if len(fab) > MOST_BYTES:
        raise Refused(f"the app has {len(fab) / 1e6:.1f} MB; {MOST_BYTES / 1e6:.1f} MB are the most")
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as file:
            entries = [entry for entry in file.infolist() if entry.filename != _MANIFEST]
            names = [entry.filename for entry in entries]
            if odd := [name for name in names if name not in (_PROJECT, _CODE, _CONTENT)]:
                raise Refused(f"the app holds {odd[0]!r}, which is no part of an assignment; nothing of it was run")
            if sorted(names) != sorted((_PROJECT, _CODE, _CONTENT)):
                raise Refused("the app is no assignment of fedsim: a file is missing, or in it twice")
            if sum(entry.file_size for entry in entries) > _MOST_OPENED:
                raise Refused(f"the app has more than {_MOST_OPENED / 1e6:.0f} MB once it is opened")
            return {entry.filename: file.read(entry) for entry in entries}
    except Refused:
        raise
    except Exception as error:  # a damaged archive raises whatever its damage calls for
        raise Refused("the app cannot be opened: it is no sound bundle of a Flower app") from error


def _stays_inside(name: str) -> bool:
    """Whether a source's name is one plain file name or path below the folder that it is put into."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and not part.startswith(".") for part in parts)
    return plain and "\\" not in name and "\0" not in name and len(name) <= 200


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
