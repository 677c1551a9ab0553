"""Differential privacy: the private step, and the ledger of what was spent."""
