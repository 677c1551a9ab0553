"""The Flower app that `flower_apps.py` runs under Flower's own simulation and under `fedsim flower`."""
