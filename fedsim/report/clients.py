"""A run's pictures of single clients: whom the model serves, who holds which rows, whose updates point alike."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.overview import Values
from fedsim.report import charts
from fedsim.report.charts import Trace, look
from fedsim.report.chronicle import SHOWN_CLIENTS, Own, Sketches
from fedsim.report.page import Cell, Table, thinned
from fedsim.report.picture import Picture

_COLUMNS = 12
"""Rounds in the table of a heat map."""
_QUANTILES = {"lowest": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "highest": 1.0}


def over_clients(own: Own) -> list[Picture]:
    """How unequal the model is to clients, by round; empty for fewer than three."""
    if max(len(clients) for _, clients, _ in own.rounds) < 3:
        return []
    rounds = [round for round, _, _ in own.rounds]
    found = np.array([np.quantile(values, list(_QUANTILES.values())) for _, _, values in own.rounds])
    low, tenth, quarter, middle, three, nine, high = found.T
    traces: list[Trace] = [
        *charts.band(rounds, tenth, nine, "80 % of clients", look(0), 0.15),
        *charts.band(rounds, quarter, three, "half of them", look(0), 0.3),
        charts.line(rounds, middle, "median client", look(0)),
        charts.line(rounds, high if own.lower else low, "worst client", look(1)),
    ]
    caption = f"{_whose(own)} for single clients: {own.metric} on their {own.place}, by round."
    rows: list[list[Cell]] = [
        [round, *map(float, line), len(clients)] for (round, clients, _), line in zip(own.rounds, found, strict=True)
    ]
    layout = charts.axes("round", own.metric, hovermode="x unified")
    return [
        Picture(
            "over-clients", {"data": traces, "layout": layout}, caption, Table(["round", *_QUANTILES, "clients"], rows)
        )
    ]


def by_client(own: Own) -> list[Picture]:
    """A shade for every client and round; of very many clients the worst."""
    clients, known = _shown(own)
    place = {client: row for row, client in enumerate(clients)}
    z = np.full((len(clients), len(own.rounds)), np.nan)
    for column, (_, numbers, values) in enumerate(own.rounds):
        for client, value in zip(numbers.tolist(), values.tolist(), strict=True):
            if client in place:
                z[place[client], column] = value
    rounds, names = [str(round) for round, _, _ in own.rounds], [f"client {client}" for client in clients]
    whom = (
        "single clients" if known == len(clients) else f"the {len(clients)} worst of {known} clients, the worst on top"
    )
    caption = f"{_whose(own)} for {whom}: {own.metric} on their {own.place}, by round. Empty: not measured."
    rows_axis = {"type": "category", "autorange": "reversed", "showgrid": False}
    layout = charts.axes("round", "", yaxis=rows_axis, xaxis={"type": "category", "nticks": 14, "showgrid": False})
    kept = thinned(range(len(rounds)), _COLUMNS)
    table = Table(
        ["client", *(f"round {rounds[column]}" for column in kept)],
        [[name, *(float(line[column]) for column in kept)] for name, line in zip(names, z, strict=True)],
    )
    trace = charts.heat_map(rounds, names, z, own.metric)
    return [
        Picture("by-client", {"data": [trace], "layout": layout}, caption, table, 100 + max(130, 14 * len(clients)))
    ]


def _whose(own: Own) -> str:
    return "Clients' own models" if own.personal else "The global model"


def _shown(own: Own) -> tuple[list[int], int]:
    """The clients of the heat map in their order, and how many are known."""
    last: dict[int, float] = {}
    for _, numbers, values in own.rounds:
        last.update(zip(numbers.tolist(), values.tolist(), strict=True))
    if len(last) <= SHOWN_CLIENTS:
        return sorted(last), len(last)
    worst = sorted(last, key=lambda client: (-last[client] if own.lower else last[client], client))
    return worst[:SHOWN_CLIENTS], len(last)


def partition(kept: Values) -> list[Picture]:
    """Who holds how many rows, and of which classes or with which targets; from `partition.json`."""
    some = (
        ""
        if len(kept["shown"]) == kept["clients"]
        else f" Drawn are {len(kept['shown'])} of {kept['clients']} clients."
    )
    pictures = _sizes(kept, some)
    if "labels" in kept:
        pictures += _labels(kept, some)
    if "targets" in kept:
        pictures += _targets(kept, some)
    return pictures


def _sizes(kept: Values, some: str) -> list[Picture]:
    shown, parts = kept["shown"], kept["parts"]
    traces = [
        charts.bars(shown, rows, part, look(place), marker={"color": look(place).colour, "pattern": {"shape": shape}})
        for place, ((part, rows), shape) in enumerate(zip(parts.items(), ("", "/", "."), strict=True))
    ]
    layout = charts.axes("client", "rows", barmode="stack", bargap=0.15 if len(shown) <= SHOWN_CLIENTS else 0)
    rows = [
        [client, name, *(part[place] for part in parts.values())]
        for place, (client, name) in enumerate(zip(shown, kept["names"], strict=True))
    ]
    caption = f"Rows of every client, by what they are used for.{some}"
    return [Picture("rows", {"data": traces, "layout": layout}, caption, Table(["client", "name", *parts], rows), 280)]


def _labels(kept: Values, some: str) -> list[Picture]:
    labels, classes = np.array(kept["labels"], dtype=float), kept["classes"]
    layout = charts.axes("client", "class", yaxis={"type": "category", "showgrid": False}, xaxis={"showgrid": False})
    trace = charts.heat_map(kept["shown"], classes, np.where(labels > 0, labels, np.nan).T, "rows")
    rows = [[client, *counts] for client, counts in zip(kept["shown"], kept["labels"], strict=True)]
    caption = f"Rows of every client and class; empty: none.{some}"
    height = min(700, max(220, 100 + 16 * len(classes)))
    return [Picture("labels", {"data": [trace], "layout": layout}, caption, Table(["client", *classes], rows), height)]


def _targets(kept: Values, some: str) -> list[Picture]:
    held = [(client, own) for client, own in zip(kept["shown"], kept["targets"], strict=True) if own is not None]
    clients = [client for client, _ in held]
    low, first, middle, third, high = np.array([own for _, own in held]).T
    spread = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 0}
    wide = {**spread, "array": high - middle, "arrayminus": middle - low}
    narrow = {**spread, "array": third - middle, "arrayminus": middle - first, "thickness": 5}
    traces = [
        charts.points(clients, middle, "90 % of its rows", look(0), error_y={**wide, "color": look(0).faint(0.6)}),
        charts.points(
            clients, middle, "median and half of them", look(0), error_y={**narrow, "color": look(0).faint(0.6)}
        ),
    ]
    rows = [[client, *own] for client, own in held]
    caption = f"Targets of every client.{some}"
    table = Table(["client", "5 %", "25 %", "median", "75 %", "95 %"], rows)
    return [Picture("targets", {"data": traces, "layout": charts.axes("client", "target")}, caption, table, 280)]


def similarity(seen: Sketches, own: Own | None) -> list[Picture]:
    """Clients on a map: those lie together whose updates point alike."""
    shade = _last(own, seen.clients) if own is not None else None
    marker: dict[str, object] = {"size": 12, "line": {"width": 1, "color": "#767676"}}
    if own is not None and shade is not None:
        bar = {"title": {"text": own.metric, "side": "right"}, "thickness": 12, "outlinewidth": 0}
        marker |= {"color": shade, "colorscale": charts.SHADES, "colorbar": bar}
    named = len(seen.clients) <= 40
    trace = charts.points(
        seen.places[:, 0],
        seen.places[:, 1],
        "client",
        look(0),
        marker=marker,
        mode="markers+text" if named else "markers",
        text=[str(client) for client in seen.clients],
        textposition="top center",
        hovertemplate="client %{text}<extra></extra>",
    )
    first, second = (f"axis {axis}, {100 * share:.0f} % of what differs" for axis, share in enumerate(seen.shares, 1))
    layout = charts.axes(first, second, yaxis={"scaleanchor": "x"})
    caption = (
        "Clients whose updates pointed the same way lie together. A client is the mean direction of its updates, each "
        f"projected on {seen.width} random directions, which keep angles; the picture shows the two axes on which "
        f"clients differ most, {100 * sum(seen.shares):.0f} % of it."
        + (f" The shade is {own.metric} on {own.place}, as last measured." if shade is not None and own else "")
    )
    rows: list[list[Cell]] = [
        [int(client), float(x), float(y), int(updates), None if shade is None else float(shade[place])]
        for place, (client, (x, y), updates) in enumerate(zip(seen.clients, seen.places, seen.updates, strict=True))
    ]
    columns = ["client", "axis 1", "axis 2", "updates", own.metric if own is not None else "figure"]
    return [Picture("similarity", {"data": [trace], "layout": layout}, caption, Table(columns, rows), 440)]


def _last(own: Own, clients: np.ndarray) -> np.ndarray | None:
    """[K] every client's last figure, nan where there is none; None where there is none of any."""
    last: dict[int, float] = {}
    for _, numbers, values in own.rounds:
        last.update(zip(numbers.tolist(), values.tolist(), strict=True))
    found = np.array([last.get(client, np.nan) for client in clients.tolist()])
    return found if np.isfinite(found).any() else None


def gains(metric: str, own: Mapping[int, float], alone: Mapping[int, float], *, lower: bool) -> list[Picture]:
    """What every client gains over training alone, in the order of its gain; empty where no client has both figures."""
    sign = -1.0 if lower else 1.0
    both: Sequence[int] = sorted(own.keys() & alone.keys())
    if not both:
        return []
    gain = {client: sign * (own[client] - alone[client]) for client in both}
    order = sorted(both, key=lambda client: (gain[client], client))
    names = [f"client {client}" for client in order]
    trace = charts.bars(names, [gain[client] for client in order], "gain", look(2))
    layout = charts.axes("client", f"gain in {metric}", xaxis={"type": "category", "nticks": 20})
    gained = sum(value > 0 for value in gain.values())
    caption = (
        f"What every client gains over training alone: {metric} on its own test rows after the last round, less "
        f"that of references/local; above 0 is better. {gained} of {len(both)} gain."
    )
    rows = [[client, gain[client], own[client], alone[client]] for client in order]
    table = Table(["client", "gain", "this run", "alone"], rows)
    return [Picture("gains", {"data": [trace], "layout": layout}, caption, table, 280)]
