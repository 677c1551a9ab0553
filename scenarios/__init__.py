"""Scenario files that come with fedsim; this package holds no code."""
