"""Gradient-boosted trees instead of a net: how they are grown, how they come together, a run of them."""
