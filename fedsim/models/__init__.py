"""Models: plain small modules, one family per file."""
