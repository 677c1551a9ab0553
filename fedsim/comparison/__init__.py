"""Candidates compared under the same conditions and seeds: planned, run, tuned, judged, and told in lines."""
