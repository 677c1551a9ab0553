"""How a node reads its rows: as a scenario's table `data` says, once their owner has looked at what that gives.

The table says which rows are dropped, which values are sound and what is split how. Who could choose it anew with every
request would learn of single rows, from counts and from what does not fit, and no epsilon covers that. So a node
reads its rows in the ways that its owner has checked, and in no other. Rows that lie there ready leave no choice.
"""

import hashlib
import json
from typing import Any

import tomli_w

from fedsim.deploy import private_files
from fedsim.deploy.node.folder import NodeFolder
from fedsim.errors import DeployError, Refused
from fedsim.scenario import Scenario
from fedsim.scenario_files import renamed

MOST_ASKED = 20
"""Scenarios that are kept for a check; a coordinator that sends more fills no disk."""


def digest_of(scenario: Scenario) -> str:
    """SHA-256 of what of a scenario's table `data` says how one client's rows are read; of own code its content.

    Raises:
        DeployError: a file of own code is not there.
    """
    table = scenario.data.model_dump(mode="json", exclude_none=True, exclude={"partition", "without", "path"})
    table["split"].pop("central")
    settings: dict[str, Any] = renamed({"data": table}, lambda file: _content(scenario, file))["data"]
    if isinstance(schema := settings.get("schema"), dict):
        settings["schema"] = list(schema.items())  # the order of columns is that of features
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def accept(folder: NodeFolder, scenario: Scenario) -> None:
    """Let rows be read as this scenario says from now on: their owner has seen what that gives.

    Raises:
        DeployError: it cannot be written down, or the ledger is gone.
    """
    digest = digest_of(scenario)
    _, log = folder.books()  # both begin here: a log without a ledger is one whose ledger was lost
    log.write("checked", data=digest)
    private_files.folder(folder.checked)
    private_files.replace(folder.checked / digest, scenario.to_toml().encode())
    (folder.asked / _file(digest)).unlink(missing_ok=True)


def require(folder: NodeFolder, scenario: Scenario) -> None:
    """Make sure that the owner has checked how this scenario reads rows.

    Raises:
        Refused: so far not; the scenario is kept for the check.
    """
    digest = digest_of(scenario)
    if (folder.checked / digest).is_file():
        return
    private_files.folder(folder.asked)
    file = folder.asked / _file(digest)
    if not file.is_file() and len(list(folder.asked.glob("*.toml"))) < MOST_ASKED:
        private_files.replace(file, _here(scenario).encode())
    how = f"and does with `fedsim deploy node DIR --check DIR/{folder.asked.name}/{file.name}`"
    if not file.is_file():
        how = f"and {MOST_ASKED} others wait in DIR/{folder.asked.name}/ already: this one is not kept"
    raise Refused(f"the node's owner has not checked how this scenario's table data reads rows ({digest[:12]}), {how}")


def _content(scenario: Scenario, file: str) -> str:
    try:
        return hashlib.sha256((scenario.folder / file).read_bytes()).hexdigest()
    except OSError as error:
        raise DeployError(f"{scenario.folder / file} cannot be read: {error.strerror}") from error


def _here(scenario: Scenario) -> str:
    """The scenario as a text that is understood wherever it lies: own code by its place at this node."""
    content = scenario.model_dump(mode="json", exclude_none=True)
    content["data"].pop("path", None)
    return tomli_w.dumps(renamed(content, lambda file: str((scenario.folder / file).resolve())))


def _file(digest: str) -> str:
    return f"{digest[:12]}.toml"
