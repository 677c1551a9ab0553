"""A Flower app: digits and PyTorch."""
