"""Averaging of updates divided by how many steps made them, so that busy clients do not pull harder (FedNova).

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
algorithm FedNova: client i's update is -eta G_i a_i, where a_i says how much each step's gradient counts (all ones for
plain SGD, more with momentum). It sends d_i = G_i a_i / ||a_i||_1 and eta ||a_i||_1; the server takes
w_{t+1} = w_t - tau_eff sum_i p_i eta d_i with tau_eff = sum_i p_i ||a_i||_1.
Communicates: the model down, one normalised update and one number up. SGD, also with momentum (a_i must be known).
Private at example level: a_i depends on the number of steps alone, which the accountant takes as public.
"""

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, Weighting


def fednova(weights: Weighting = "examples") -> Algorithm:
    """FedNova.

    Args:
        weights: p_i: "examples" (the paper) or "uniform".
    """

    def client(local: Local) -> Upload:
        trained = local.train(local.received)
        step_size = trained.step_size  # eta ||a_i||_1
        return Upload((trained.params - local.received) / step_size, scalars={"step_size": step_size})

    def server(server: Server, combined: Combined) -> Server:
        return server._replace(params=server.params + combined.mean("step_size") * combined.update)

    return Algorithm(
        "fednova",
        client,
        server,
        weights,
        scalars=("step_size",),
        optimizers=("sgd",),
        private="the noised update is divided by a public number",
    )
