"""Reference: one model on everybody's rows pooled, as if nobody had to keep theirs.

Robbins, Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 1951: plain descent
w -= eta grad F(w; batch), here on batches of all train rows, with as many steps a round as a cohort takes together.
What federation is measured against. Communicates nothing, and has one update and so no weights. Any local optimiser,
started afresh each round. No private form is declared: the accountant's unit is a client's row.
"""

from fedsim.algorithm import Algorithm, add_update, local_update


def central() -> Algorithm:
    """All rows in one place."""
    return Algorithm("central", local_update, add_update, pooled=True)
