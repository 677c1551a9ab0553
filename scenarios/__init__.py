"""Scenario files that come with fedsim; beside published results, in `papers/`, what data and models they need."""
