"""A Flower app: mods around a client's training."""
