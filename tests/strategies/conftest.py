"""Says at the end how many combinations of strategies the contract suite has tried."""

import sys

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line, where the contract suite ran in this process."""
    suite = sys.modules.get("tests.strategies.test_contract")
    if suite is not None and getattr(suite, "COUNTED", {}).get("combinations"):
        terminalreporter.write_line(
            f"contract: {len(suite.NAMES)} strategies in {suite.COUNTED['combinations']} allowed combinations, "
            f"{len(suite.LAWS)} laws of the server in each: {suite.COUNTED['checks']} checks"
        )
