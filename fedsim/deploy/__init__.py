"""Real clients: a coordinator's server, nodes that keep their data, and the scenario that both were simulated with."""
