"""A node's folder as `fedsim deploy join` leaves it, for tests of what its owner does with it."""

from pathlib import Path

from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.rules import DEFAULT


def node_folder(path: Path, rules: str = DEFAULT) -> NodeFolder:
    """A node without a key, whose owner allows what the default does or these rules."""
    path.mkdir(mode=0o700)
    (path / "node.toml").write_text('name = "north"\nhost = "study.example"\nport = 8443\n')
    (path / "rules.toml").write_text(rules)
    return NodeFolder.open(path)
