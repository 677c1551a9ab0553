"""Reference: each client alone, on its own rows and never a word from the others.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1
without its mean: w_k of a round is where client k starts its next one. What federation must beat.
Communicates: the first model down, nothing up; every parameter is personal, so the global model stays as it was and
nothing is weighted. Any local optimiser. Private at example level, jointly: a client's model is computed from clipped
and noised gradients, and never leaves.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=local --set train.learning_rate=0.3
"""

from fedsim.algorithm import Algorithm, add_update, local_update


def local() -> Algorithm:
    """Each client alone."""
    return Algorithm(
        "local",
        local_update,
        add_update,
        personal="*",
        private="each model sums its client's clipped, noised gradients and never leaves",
    )
