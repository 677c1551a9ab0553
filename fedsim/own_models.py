"""One client's own model after a run's last round, of a strategy that gives clients such."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedsim import own as parts
from fedsim.checkpoints import named_tensors
from fedsim.data.transform import Transform
from fedsim.driving import strategy_for
from fedsim.errors import RunFolderError
from fedsim.federating import DataSource
from fedsim.local import Received, one_thread
from fedsim.own import Loss, Metric
from fedsim.parameters import Weights, fingerprint
from fedsim.past import Past, check_client, checkpoint_at, reopen
from fedsim.states import ClientStates
from fedsim.stored import kept_checkpoints, open_run


class Own(NamedTuple):
    """A client's model.

    Attributes:
        tensors: all that the module keeps, by name.
        card: what takes the place of the global model's in `model.json`.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]


@one_thread()
def own_model(
    run: Path,
    client: int,
    *,
    model: Callable[..., nn.Module] | None = None,
    data: DataSource | None = None,
    loss: str | Loss | None = None,
    metrics: Sequence[str | Metric] = (),
    transform: str | Transform | None = None,
    data_dir: Path | None = None,
) -> Own:
    """A client's own model, put together from the checkpoint of the last round and what the client kept.

    Args:
        run: the folder of a finished run.
        client: its number.
        model, data, loss, metrics, transform, data_dir: as for `resume`.

    Raises:
        RunFolderError: the strategy gives clients no models, or the last checkpoint is not there.
        ScenarioError: no such client, or what the run was made with is not what there is now.
    """
    own = parts.Own(loss, metrics, transform)
    past = reopen(run, model=model, data=data, own=own, data_dir=data_dir)
    check_client(past, client)
    if not past.work.algorithm.personalised:
        raise RunFolderError(
            f"{run}: strategy {past.work.algorithm.name!r} gives clients no model of their own; for the global one "
            "leave client (--client) out"
        )
    weights = _weights(past, client)
    tensors = {**past.work.plain.constants, **named_tensors(past.work.layout, weights)}
    return Own(tensors, _card(past, client, weights))


def _weights(past: Past, client: int) -> Weights:
    with closing(open_run(past.path)) as records:
        row = next((row for row in kept_checkpoints(past.path, records) if row.number == past.rounds), None)
        if row is None:
            raise RunFolderError(f"{past.path}: the checkpoint of its last round is not there, so no client's model is")
        point = checkpoint_at(past, records, row)
    strategy, states = strategy_for(past.work), ClientStates(past.job.federation.clients, past.path / "checkpoints")
    strategy.restore(point.round, point.snapshot)
    states.restore(point.places)
    state = states.get(client, int(strategy.accepted[client]))
    received = Received(strategy.weights, dict(strategy.server.shared))
    return past.work.own_model(client, point.round, received, state).clone()


def _card(past: Past, client: int, weights: Weights) -> dict[str, Any]:
    """Who it is, and how its model does on its own test rows."""
    rows = past.job.federation.rows(client, "test")
    name = past.job.federation.names[client]
    figures: dict[str, float] = {}
    if len(rows.x):
        problem = past.work.problem
        measured = past.work.evaluate(weights, rows, f"client {client}")
        figures = {f"personal/client-test/rows/{key}": value for key, value in problem.metrics(measured).items()}
    return {
        "client": {"number": client, "name": name, "test_rows": len(rows.x)},
        "metrics": {"protocol": "model/data/weighting/metric", "round_chosen_by": None, **figures},
        "best_round": past.rounds,
        "fingerprint": fingerprint(weights),
    }
