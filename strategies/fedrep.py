"""A shared representation under personal heads (FedRep).

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021,
algorithm 1: a client first trains its own head with the body fixed, then the body with the head fixed; only
the body is averaged.
Communicates: the body down, its update up; heads stay with their clients. Any local optimiser. Private at example
level, jointly: both passes reach later uploads, so both clip, noise and are charged, and heads never leave.
"""

from fedsim.algorithm import Algorithm, Local, Upload, Weighting, add_update


def fedrep(personal: str = "head.*", head_epochs: int = 1, weights: Weighting = "examples") -> Algorithm:
    """FedRep.

    Args:
        personal: pattern of the head's parameter names (shell style).
        head_epochs: passes over the rows for the head, 1 to 1,000; the body takes the scenario's.
        weights: "examples" or "uniform".
    """
    if not 1 <= head_epochs <= 1000:
        raise ValueError(f"head_epochs = {head_epochs} should lie between 1 and 1000")

    def client(local: Local) -> Upload:
        head = local.train(local.received, trains="personal", epochs=head_epochs)
        trained = local.train(head.params, trains="shared")
        return Upload(trained.params - local.received)

    return Algorithm(
        "fedrep",
        client,
        add_update,
        weights,
        personal=personal,
        private="head and body sum clipped, noised gradients of two charged passes, and heads never leave",
        private_passes=(head_epochs, None),
    )
