"""What several files of tests share: a running server, one for each file, that two nodes may reach."""

from collections.abc import Iterator

import pytest

from tests.deploy import served
from tests.deploy.served import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server that has admitted north and south."""
    folder = tmp_path_factory.mktemp("served")
    site = served.site_with(folder, "north", "south")
    with served.serving(site, folder / "server.log") as running:
        running.wait_for("south may take part")
        yield running
