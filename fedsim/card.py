"""A model's card: what is known of a trained model, in Markdown, from its `model.json`.

Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_MOST_NAMES = 20
_DATA = {
    "central-validation": "the server's validation rows",
    "central-test": "the server's test rows",
    "client-validation": "clients' own validation rows",
    "client-test": "clients' own test rows",
}
_WEIGHTING = {
    "rows": "over all rows",
    "clients": "mean over clients",
    "worst-10%": "mean of the worst tenth of clients",
    "spread": "standard deviation over clients",
}


def markdown(card: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The card of a model.

    Args:
        card: as `model.json` has it.
        files: that are handed over with it, and what each is.
    """
    parts = [
        [f"# {card.get('title') or 'A federated model'}"],
        _what(card),
        ["## Files", "", *(f"* `{name}`: {what}" for name, what in files.items())],
        ["## What goes in", "", *_inputs(card)],
        ["## What comes out", "", *_outputs(card)],
        ["## Figures", "", *_figures(card)],
        ["## Privacy", "", *_privacy(card)],
        ["## Limits", "", *(f"* {limit}" for limit in _limits(card))],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _what(card: Mapping[str, Any]) -> list[str]:
    architecture, data, strategy = card["architecture"], card["data"], card["strategy"]
    size = f"{architecture['parameters']:,} parameters"
    trained = (
        f"trained by {strategy['name']} on {data['name']}, {data['clients']:,} clients with {data['train_rows']:,}"
    )
    if (client := card.get("client")) is not None:
        which = (
            f"The own model of client {client['number']} ({client['name']}) after round {card['best_round']}, the last."
        )
    else:
        chosen = card["metrics"].get("round_chosen_by")
        how = f"the best by `{chosen}`" if chosen else "nothing chose it"
        which = f"The model after round {card['best_round']} of {card['rounds']}, {how}."
    return [f"{architecture['model']}, {size}; {trained} train rows, in a simulation. {which}"]


def _inputs(card: Mapping[str, Any]) -> Iterator[str]:
    shape = ", ".join(map(str, card["architecture"]["input_shape"]))
    vocabulary, numbers = card["architecture"]["vocabulary"], card["architecture"]["input_type"]
    values = numbers if numbers == "float32" else f"tokens below {vocabulary or 256}"
    yield f"Rows [N, {shape}] of {values}, made of raw values so:"
    yield ""
    yield from _prepared(card["preprocessing"], card["preprocessing"].get("kind", "none"))


def _prepared(stored: Mapping[str, Any], kind: str) -> Iterator[str]:
    if kind == "table":
        yield f"* a table, scales {stored.get('fit')}; columns, units, ranges and categories are in `model.json`"
        yield from (f"* {line}" for line in _columns(stored.get("columns", {})))
    elif kind == "none":
        yield "* nothing was done by fedsim: give rows as the data source made them"
    else:
        apart = ("kind", "declared", "transform", "fitted_on_rows", "target")
        said = ", ".join(f"{key} {value}" for key, value in stored.items() if key not in apart and value is not None)
        yield f"* {kind}: {said}"
    if "transform" in stored:
        yield f"* then the user's own function `{stored['transform']}`"
    if "declared" in stored:
        where = "declared" if stored["declared"] else "taken from the rows of all clients, not declared"
        yield f"* classes{' and categories' if kind == 'table' else ''} were {where}"
    if stored.get("fitted_on_rows"):
        yield "* numbers for it were taken from clients' train rows"


def _columns(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, column in columns.items():
        facts = [str(column["kind"])]
        facts += [str(column["unit"])] if column.get("unit") else []
        facts += ["{:g} to {:g}".format(*column["range"])] if column.get("range") else []
        facts += [_some(column["categories"])] if column.get("categories") else []
        missing = column.get("rule", "error")
        facts += [f"missing: {missing}"] if missing != "error" else []
        yield f"`{name}`: {', '.join(facts)}"


def _outputs(card: Mapping[str, Any]) -> Iterator[str]:
    task, classes, target = card["task"], card["classes"], card["preprocessing"].get("target", {})
    outputs = card["architecture"]["outputs"]
    if task == "classification":
        yield f"[N, {outputs}] logits of the classes {_some(classes)}."
    elif task == "multi-label":
        yield f"[N, {outputs}] logits, one for each of the labels {_some(classes)}; above 0 it is likelier than not."
    elif task in ("next-token", "generation"):
        yield f"[N, places, {outputs}] logits of the next byte at every place."
    elif task == "regression":
        names = f" ({', '.join(target['names'])})" if target.get("names") else ""
        yield f"[N, {outputs}] numbers{names}; value = output * std + mean, with {_target(target)}."
    elif task == "reconstruction":
        yield f"[N, {outputs}] the row again; its mean squared error is the anomaly score."
    else:
        yield f"[N, {outputs}], of task `{task}`."


def _target(target: Mapping[str, Any]) -> str:
    facts = [f"mean {target.get('mean', 0.0)}", f"std {target.get('std', 1.0)}"]
    facts += [f"unit {target['unit']}"] if target.get("unit") else []
    return ", ".join([*facts, *([f"clamped to {target['range']}"] if target.get("range") else [])])


def _figures(card: Mapping[str, Any]) -> Iterator[str]:
    figures = {
        name: value
        for name, value in card["metrics"].items()
        if isinstance(value, int | float) and name.count("/") == 3 and math.isfinite(value)
    }
    if not figures:
        yield "None were measured."
        return
    yield "| metric | value | model | rows | counted |"
    yield "|---|---|---|---|---|"
    for name, value in figures.items():
        model, data, weighting, metric = name.split("/")
        of = "this" if model == "global" or "client" in card else "each client's own"
        on = "its client's test rows" if "client" in card else _DATA[data]
        yield f"| {metric} | {value:.4f} | {of} | {on} | {_WEIGHTING[weighting]} |"
    yield ""
    yield (
        "No training saw these rows. The round was chosen on validation rows, so test figures are not the best that "
        "was ever measured; those of clients' own models are of the last round."
    )


def _privacy(card: Mapping[str, Any]) -> Iterator[str]:
    privacy = card.get("privacy")
    if privacy is None:
        yield "None was promised: single train rows may be told from the weights."
        return
    yield "```"
    yield from privacy.get("statement") or [f"epsilon {privacy['epsilon']} at delta {privacy['delta']:g}"]
    yield "```"
    yield ""
    yield (
        "It is of the weights. What this page says of clients' own rows, their number and figures on them, has no "
        "noise and is not covered; `fedsim export --public` leaves it out."
    )
    if "client" in card:
        yield ""
        yield "This model was fitted to its client's rows; towards the client itself nothing is promised."


def _limits(card: Mapping[str, Any]) -> Iterator[str]:
    data, strategy = card["data"], card["strategy"]
    yield f"Known of {data['name']} alone: rows from elsewhere, later, or made ready otherwise are outside the figures."
    yield "Figures are of one run with one seed; how they vary over seeds is not in them."
    if data["clients"] < 10:
        yield f"Of {data['clients']} clients little can be said about the next one."
    if "client" in card:
        yield f"Made for one client, and measured on its {card['client']['test_rows']} test rows alone."
    elif strategy["own_models"]:
        yield (
            "Clients have models of their own, which `fedsim export --client` gives; what stays with them is here as "
            "it was before training."
        )
    if card["preprocessing"].get("fit") == "per-client":
        yield "Every client's numbers are scaled by its own train rows: a new client needs scales first."


def _some(names: Any) -> str:
    shown = [str(name) for name in names[:_MOST_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
