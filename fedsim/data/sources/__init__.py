"""One file per data source, each with a function of its name that gives a corpus; this file imports none."""
