"""The browser that looks at reports."""

from collections.abc import Iterator

import pytest

from tests.report import browser as browsers


@pytest.fixture(scope="module")
def browser() -> Iterator[browsers.Browser]:
    if (program := browsers.installed()) is None:
        pytest.skip("there is no Chromium to look at reports with: apt-get install chromium")
    with browsers.Browser(program) as opened:
        yield opened
