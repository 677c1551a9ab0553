"""Data sets: one file per source, each giving a corpus; then split, partition, federation."""
