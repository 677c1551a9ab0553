"""What it means for its owner that a node's SuperNode has ended."""

import os
import sys
import time
from pathlib import Path

import pytest

from fedsim.deploy.children import Child
from fedsim.deploy.keys import make_key, read_key, replace_key
from fedsim.deploy.node.connection import Presence, ended
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.leave import leave
from fedsim.errors import DeployError, Refused
from tests.deploy.owners import node_folder


@pytest.fixture
def home(tmp_path: Path) -> NodeFolder:
    """A node with a key, which was online a moment ago."""
    node = node_folder(tmp_path / "node")
    make_key(node.folder)
    Presence(node).note()
    return node


@pytest.fixture
def supernode(tmp_path: Path) -> Child:
    """One that has ended without a word, as Flower's does when its key is not taken any more."""
    child = Child("SuperNode", [sys.executable, "-c", ""], dict(os.environ), tmp_path / "log")
    end = time.monotonic() + 30
    while child.exit_code is None and time.monotonic() < end:
        time.sleep(0.02)
    return child


def test_a_key_that_was_revoked(home: NodeFolder, supernode: Child) -> None:
    """The owner is told at once; started again within the minute, it is not said that the server may hold it online."""
    presence, key = Presence(home), read_key(home.key).fingerprint
    assert presence.lately
    with pytest.raises(DeployError, match=r"does not take this node's key SHA256:\S+ any more"):
        ended(supernode, home, presence, key)
    assert not presence.lately


def test_a_key_that_was_replaced(home: NodeFolder, supernode: Child) -> None:
    """The coordinator has taken up the new key and ended the old one: the node goes on with the new one."""
    before = read_key(home.key).fingerprint
    after = replace_key(home.folder).fingerprint
    assert before != after
    assert f"key is now {after}" in ended(supernode, home, Presence(home), before)


def test_an_owner_who_has_left(home: NodeFolder, supernode: Child) -> None:
    """The key is gone with everything else, and when the coordinator ends it too the node says why it stops."""
    before = read_key(home.key).fingerprint
    leave(home)
    with pytest.raises(Refused, match="the owner of north has withdrawn"):
        ended(supernode, home, Presence(home), before)
