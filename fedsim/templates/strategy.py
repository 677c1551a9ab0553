"""Federated averaging of smoothed updates.

My own, after McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017: client k remembers what it learned before, v_k <- memory v_k + u_k with u_k its new update, and
sends v_k; the server takes w <- w + (1 - memory) mean(v_k). With memory = 0 it is FedAvg, to the bit.
Communicates: the model down, one vector up; v_k stays with the client.
"""

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, Weighting, zeros


def my_strategy(memory: float = 0.3, weights: Weighting = "examples") -> Algorithm:
    """Every parameter is a key of `[strategy]`; its annotation is checked, and without a default it is required.

    Args:
        memory: what is kept of what a client sent before, at least 0 and below 1.
        weights: "examples" or "uniform".
    """
    if not 0 <= memory < 1:  # a ValueError becomes one line, before anything is trained
        raise ValueError(f"memory = {memory:g}: give a number of at least 0 and below 1")

    # What a client does in a round. It runs in a worker, so it keeps nothing between rounds but its state.
    def client(local: Local) -> Upload:
        # local.received       the global model, as one flat vector [D]; compute new vectors, change none in place
        # local.state          this client's own vectors by name: below, `client_state` gives their first values
        # local.shared         vectors that the server sent along by name: `shared` gives their first values
        # local.number, .rows, .round    who it is, how many train rows it has, which round it is
        # local.train(start)   trains as the scenario's [train] says, and gives .params, .steps, .step_size
        #     correct = lambda gradient, params: ...   changes the gradient of every step
        #     loss_term = lambda model, batch: ...     adds a term [B] to the loss of each row of one client
        #     epochs, whole, trains, at                see fedsim/algorithm.py
        # local.loss(params), local.data(), local.frozen(params)    its loss, its rows, a model that does not learn
        # Where [engine] stack trains C clients at once, these are all of them: vectors [C, D], numbers [C, 1]. What
        # takes each client for itself serves both, update.norm(dim=-1, keepdim=True); else they train one by one.
        update = local.train(local.received).params - local.received
        kept = memory * local.state["kept"] + update
        return Upload(
            update=kept,  # [D], all that leaves the client
            # extra={"name": vector},     [D] each, leaves too, combined like the update: name it in `extra` below
            # scalars={"name": number},   leaves too, one a client: name it in `scalars` below
            state={"kept": kept},  # stays with the client until it takes part again
        )

    # What the server does with what the cohort sent. Nothing in place here either.
    def server(server: Server, combined: Combined) -> Server:
        # server.params, .shared, .state, .round   the model, what is sent along, what stays here (`server_state`)
        # combined.update                          [D] the weighted mean of the updates, or what `combine` makes of them
        # combined.extra, .mean("a scalar")        the extra vectors and scalars, with the same weights
        # combined.numbers, .weights, .share_of_population    who answered, how each counted, n / K
        return server._replace(params=server.params + (1 - memory) * combined.update)

    return Algorithm(
        "my_strategy",
        client,
        server,
        weights,
        client_state={"kept": zeros},  # name and first value, (initial model [D], number of clients) -> tensor
        # shared={"name": zeros}, server_state={"name": zeros}, extra=("name",), scalars=("name",),
        # personal="head.*",                  parameters of these names stay with their client
        optimizers=("sgd", "adam", "adamw"),  # what the theory covers; "plain sgd": no momentum, decay or clip
        private="what is sent is computed from clipped, noised gradients alone",
        # `private` says why [privacy.example] holds. Leave it out, and such a scenario is refused, when a client
        # trains twice, or sends anything else that depends on its rows, such as a loss or their number by label.
    )
