"""Audits: does a mechanism keep what it claims, and how much does a model tell of the rows it was trained on."""
