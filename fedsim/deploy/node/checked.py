"""How a node reads its rows: as a scenario's table `data` says, once their owner has looked at what that gives.

The table says which rows are dropped, which values are sound and what is split how. Who could choose it anew with every
request would learn of single rows, from counts and from what does not fit, and no epsilon covers that. So a node
reads its rows in the ways that its owner has checked, and in no other. Rows that lie there ready leave no choice.
"""

import hashlib
import json
from typing import Any

from fedsim.deploy import private_files
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.log import Log
from fedsim.errors import Refused
from fedsim.scenario import Scenario

MOST_ASKED = 20
"""Scenarios that are kept for a check; a coordinator that sends more fills no disk."""


def digest_of(scenario: Scenario) -> str:
    """SHA-256 of what of a scenario's table `data` says how one client's rows are read."""
    table = scenario.data.model_dump(mode="json", exclude_none=True, exclude={"partition", "without"})
    table["split"].pop("central")
    settings: dict[str, Any] = {key: value for key, value in table.items() if key != "path"}
    if isinstance(schema := settings.get("schema"), dict):
        settings["schema"] = list(schema.items())  # the order of columns is that of features
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def accept(folder: NodeFolder, scenario: Scenario) -> None:
    """Let rows be read as this scenario says from now on: their owner has seen what that gives.

    Raises:
        DeployError: it cannot be written down.
    """
    digest = digest_of(scenario)
    Log(folder.log_file).write("checked", data=digest)
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
    if len(list(folder.asked.glob("*.toml"))) < MOST_ASKED:
        private_files.replace(folder.asked / _file(digest), scenario.to_toml().encode())
    raise Refused(
        f"the node's owner has not checked how this scenario's table data reads rows ({digest[:12]}), and does with "
        f"`fedsim deploy node DIR --check DIR/{folder.asked.name}/{_file(digest)}`"
    )


def _file(digest: str) -> str:
    return f"{digest[:12]}.toml"
