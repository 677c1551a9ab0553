"""What leaves a node is what the list says, of every strategy and at every level of privacy, and nothing else can."""

import copy
import json
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedsim.arrays import opened
from fedsim.cli import app
from fedsim.deploy import disclosure, listing
from fedsim.deploy.disclosure import DESCRIBED, Field, Kind, fields, filtered, said
from fedsim.deploy.node.holding import load
from fedsim.errors import ClientError, Refused
from fedsim.grid import begin_run, with_content
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.privacy.accountant import Charge, largest, rounded_up
from fedsim.scenario import parse
from fedsim.worker import answered
from tests import small
from tests.deploy.node_messages import Played
from tests.strategies.exchange import NAMES, SUITED, Server, of, work
from tests.strategies.test_contract import REFUSED, private

FORMS = [(level, name) for level, without in REFUSED.items() for name in NAMES if name not in without]
TRAINING = [name for name in NAMES if not of(name).pooled]
LEFT_LATER = {"metrics/counter", "description/counter", "error/reason"}
"""What the node itself adds to an answer, and what stands in its place."""


def asked(on: Work, kind: str, **settings: Any) -> Message:
    """A message to client 0 as a coordinator sends it."""
    begin_run()
    if on.algorithm.flower is None:
        content = Server(on).messages()[0].content
    else:
        content = RecordDict({"arrays": to_record(on.layout, on.initial), "config": ConfigRecord({"server-round": 1})})
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    reply = "update" if on.algorithm.flower is None else "model"
    message = Message(RecordDict(), 2, kind)
    return with_content(
        message, RecordDict({**content, "config": ConfigRecord({**config, "reply": reply, "chunk": 0, **settings})})
    )


def answer(on: Work, kind: str, **settings: Any) -> RecordDict:
    """All that client 0 has to say, before anything is withheld."""
    message = asked(on, kind, **settings)
    return answered(on, 0, message, None).reply(message).content


def held(content: RecordDict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of all that an answer holds, read off its values alone."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for record, values in content.items():
        for name, value in values.items():
            if isinstance(value, Array):
                inside = opened(value)
                assert inside is not None
                found[f"{record}/{name}"] = str(inside.values.dtype), inside.values.shape
            elif isinstance(value, list):
                found[f"{record}/{name}"] = type(value[0] if value else None).__name__, (len(value),)
            else:
                found[f"{record}/{name}"] = type(value).__name__, ()
    return found


def named(listed: Sequence[Field], kind: Kind) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same as the list tells it."""
    there = [field for field in listed if field.message == kind and field.path not in LEFT_LATER]
    return {field.path: (field.type, field.shape) for field in there}


@pytest.mark.parametrize("name", TRAINING)
def test_without_privacy_all_that_a_strategys_client_sends_is_listed(name: str) -> None:
    """Types and shapes included; nothing is held back where the owner lets metrics leave, but for figures."""
    on = work(name)
    listed, sent = fields(on, metrics=True), answer(on, "train")
    assert held(filtered(sent, "train", listed)) == held(sent) == named(listed, "train")
    measured = answer(on, "evaluate", part="validation", personal=on.algorithm.personalised)
    assert held(filtered(measured, "evaluate", listed)) == held(measured) == named(listed, "evaluate")


@pytest.mark.parametrize(("level", "name"), FORMS)
def test_with_privacy_the_vector_and_declared_numbers_leave(level: str, name: str) -> None:
    on = private(name, level)
    listed, sent = fields(on, metrics=True), answer(on, "train")
    left = filtered(sent, "train", listed)
    assert held(left) == named(listed, "train")
    scalars = {f"metrics/scalar/{scalar}" for scalar in on.algorithm.scalars}
    assert held(left).keys() == {"update/vector", "metrics/num-examples", "metrics/steps", "metrics/summed"} | scalars
    assert not named(listed, "evaluate")
    with pytest.raises(Refused, match="'metrics' that is not on the list"):
        filtered(answer(on, "evaluate", part="validation"), "evaluate", listed)


@cache
def at_points(level: str, mark: float, strategy: str) -> Work:
    """Clients with two clouds of points; `mark` is in every row of one of them."""
    tables: dict[str, small.Changes] = {
        "example": {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}},
        "local": {"privacy.local": {"noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.05}},
    }
    changes = {**small.POINTS, **tables[level], "model": {"name": "mlp", "hidden": [4]}}
    weights = {} if strategy == "fednova" else {"weights": "uniform"}
    return Work(small.job({**changes, "strategy": {"name": strategy, **weights}}, data=small.points(mark)))


@pytest.mark.parametrize(("level", "strategy"), [("example", "fedavg"), ("example", "fednova"), ("local", "fedavg")])
def test_figures_of_private_work_do_not_depend_on_rows(level: str, strategy: str) -> None:
    """Other rows, as many of them: the figures that leave are the same, those that stay are not."""
    begin_run()
    figures = []
    for mark in (0.0, 50.0):
        on = at_points(level, mark, strategy)
        message = with_content(Message(RecordDict(), small.ODD + 2, "train"), asked(on, "train").content)
        sent = answered(on, small.ODD, message, None).reply(message).content
        figures.append((sent["metrics"], filtered(sent, "train", fields(on, metrics=True))["metrics"]))
    (all_of_one, left_of_one), (all_of_other, left_of_other) = figures
    assert left_of_one == left_of_other
    assert all_of_one["loss"] != all_of_other["loss"]


@pytest.mark.parametrize("name", ["flower:FedAvg", "flower:FedAdam"])
def test_a_flower_strategy_gets_the_model_array_by_array(name: str) -> None:
    on = Work(small.job({"strategy": {"name": name}, "model": {"name": "mlp", "hidden": [4]}}))
    listed, sent = fields(on, metrics=True), answer(on, "train")
    assert held(filtered(sent, "train", listed)) == held(sent) == named(listed, "train")
    assert sum(path.startswith("arrays/") for path in held(sent)) == 4


def test_an_owner_can_keep_figures_without_privacy() -> None:
    on = work("fedavg")
    listed, sent = fields(on, metrics=False), answer(on, "train")
    assert held(sent).keys() - held(filtered(sent, "train", listed)).keys() == {
        "metrics/loss",
        "metrics/norm",
        "metrics/seconds",
    }
    assert not named(listed, "evaluate")
    with pytest.raises(Refused, match="strategy 'afl' needs each node's loss"):
        fields(work("afl"), metrics=False)


def test_an_owner_can_keep_counts() -> None:
    on = work("fedavg")
    listed, sent = fields(on, metrics=False, counts=False), answer(on, "train")
    left = held(filtered(sent, "train", listed))
    assert left.keys() == {"update/vector", "metrics/summed"} and left == named(listed, "train")
    shown = listing.lines(on, listed)
    assert "for some rows 1, for none 0" in shown
    assert any("metrics/num-examples: it counts" in line for line in shown)


@cache
def sound() -> tuple[RecordDict, tuple[Field, ...]]:
    on = work("scaffold")
    return answer(on, "train"), fields(on, metrics=True)


VALUES = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(), st.lists(st.integers(0, 5)), st.lists(st.floats(), max_size=3)
)


@given(st.text(max_size=12), VALUES)
def test_no_other_figure_leaves(name: str, value: Any) -> None:
    """Whatever it is called; also under a listed name, unless it is of the listed form."""
    sent, listed = sound()
    content = RecordDict({**sent, "metrics": MetricRecord({**sent["metrics"], name: value})})  # type: ignore[dict-item]
    fits = {field.name: field for field in listed if field.message == "train" and field.record == "metrics"}
    if name in fits and type(value).__name__ in (fits[name].type, "int"):
        return
    with pytest.raises(Refused, match="is not on the list of what leaves"):
        filtered(content, "train", listed)


@pytest.mark.parametrize("record", [ArrayRecord(), MetricRecord(), ConfigRecord(), ConfigRecord({"row": "Jane"})])
def test_no_other_record_leaves_not_even_an_empty_one(record: Any) -> None:
    sent, listed = sound()
    with pytest.raises(Refused, match="a record 'more' that is not on the list of what leaves; it was not sent"):
        filtered(RecordDict({**sent, "more": record}), "train", listed)


@pytest.mark.parametrize("change", ["longer", "float64", "lying header", "another name"])
def test_a_vector_of_another_form_does_not_leave(change: str) -> None:
    sent, listed = sound()
    record = sent["update"]
    assert isinstance(record, ArrayRecord)
    values = record["vector"].numpy()
    arrays = {
        "longer": {"vector": Array(values.repeat(2))},
        "float64": {"vector": Array(values.astype("float64"))},
        "lying header": {"vector": Array("float32", values.shape, "numpy.ndarray", Array(values.repeat(2)).data)},
        "another name": {"vector": Array(values), "rows": Array(values)},
    }
    with pytest.raises(Refused, match="is not on the list of what leaves"):
        filtered(RecordDict({**sent, "update": ArrayRecord(arrays[change])}), "train", listed)


def test_words_of_a_failure_leave_where_losses_do() -> None:
    """An error can quote a row; a refusal is about what was asked, and is told everywhere."""
    spoken = ValueError("could not convert 'Jane Doe, 1961'")
    open_, closed, promised = (
        fields(work("fedavg"), metrics=True),
        fields(work("fedavg"), metrics=False),
        fields(private("fedavg", "example"), metrics=True),
    )
    assert "Jane" in said(spoken, open_) and "\n" not in said(spoken, open_)
    assert said(ClientError("round 1, client 3: Jane"), open_) == "round 1, client 3: Jane"
    for listed in (closed, promised, DESCRIBED):
        assert said(spoken, listed) == said(ClientError("Jane"), listed) == disclosure._NEUTRAL
        assert said(Refused("rules.toml hours: not now"), listed) == "rules.toml hours: not now"


@pytest.mark.parametrize(
    "changes", [{}, {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}]
)
def test_a_nodes_answers_are_what_is_listed(changes: small.Changes, tmp_path: Path) -> None:
    """Through the node's own handling: what it says of its rows, a round, and a measurement."""
    prepared = small.job({"model": {"name": "mlp", "hidden": [4]}, **changes})
    played = Played(prepared, tmp_path)
    on = Work(prepared)
    listed = fields(on, metrics=True)

    def everything(kind: Kind) -> set[str]:
        return {field.path for field in listed if field.message == kind and field.record != "error"}

    described = played.ask(played.told(with_content(Message(RecordDict(), 3, "query.describe"), _config())))
    assert held(described.content).keys() == everything("describe")
    trained = played.ask(played.train(on))
    assert held(trained.content).keys() == everything("train")
    content = RecordDict({"arrays": to_record(on.layout, on.initial), "shared": ArrayRecord(), **_config()})
    measured = played.ask(played.told(with_content(Message(RecordDict(), 3, "evaluate"), content)))
    if changes:
        assert measured.has_error() and str(measured.error.reason).startswith("refused: ")
    else:
        assert held(measured.content).keys() == everything("evaluate")


def _config() -> RecordDict:
    return RecordDict({"config": ConfigRecord({"server-round": 1, "part": "validation", "personal": False})})


# --- for people


@pytest.mark.parametrize("name", ["fedavg", "fedbn", "afl"])
@pytest.mark.parametrize("metrics", [True, False])
def test_the_table_names_every_field_in_80_columns(name: str, metrics: bool) -> None:
    if name == "afl" and not metrics:
        return
    on = work(name)
    listed = fields(on, metrics=metrics)
    text = listing.lines(on, listed)
    assert max(map(len, text)) <= 80
    assert all(any(field.message in line and field.path in line for line in text) for field in listed)
    assert metrics == (not any("stays at the node" in line for line in text))


def test_the_command_prints_what_a_node_is_held_to(tmp_path: Path) -> None:
    """With an owner's rules, as a table and for programs; the bytes are those of the vector."""
    scenario = tmp_path / "mine.toml"
    scenario.write_text(small.scenario({**copy.deepcopy(small.PRIVATE), **SUITED.get("fedavg", {})}).to_toml())
    rules = tmp_path / "rules.toml"
    rules.write_text("metrics = false\n")
    shown = CliRunner().invoke(app, ["deploy", "disclosure", str(scenario), "--json", "--rules", str(rules)])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.output)
    on = Work(small.job(small.PRIVATE))
    assert [each["name"] for each in told["fields"]] == [field.name for field in fields(on, metrics=False)]
    vector = next(each for each in told["fields"] if each["record"] == "update")
    assert vector["bytes"] == 4 * on.layout.size and vector["shape"] == [on.layout.size]
    assert vector["protection"].startswith("epsilon 8.00 at delta 0.001 (example level)")
    assert told["privacy"] == "example" and {each["name"] for each in told["withheld"]} == {"loss", "norm", "seconds"}
    assert told["rounds"] == told["most"] == 3
    plain = CliRunner().invoke(app, ["deploy", "disclosure", str(scenario)])
    assert plain.exit_code == 0 and "update/vector" in plain.output and max(map(len, plain.output.split("\n"))) <= 80


def test_an_owner_asks_with_the_nodes_own_rows_and_rules(tmp_path: Path) -> None:
    """The epsilon is of the node's own number of rows; statistics of a table are listed where the rules allow them."""
    rows = tmp_path / "mine.csv"
    rows.write_text("age,ill\n" + "".join(f"{40 + row % 9},{'yes' if row % 3 else 'no'}\n" for row in range(200)))
    schema = {"age": {"kind": "number", "range": [0, 120]}, "ill": {"kind": "label", "categories": ["no", "yes"]}}
    table = {"name": "csv", "schema": schema, "path": "not-here.csv", "preprocess": {"kind": "constants"}}
    changes = {"data": {**table, "partition": {"kind": "natural"}}, "model": {"name": "mlp", "hidden": [4]}}
    noise = {"noise_multiplier": 1.5, "delta": 1e-4, "max_grad_norm": 1.0, "max_participations": 2}
    scenario, rules = tmp_path / "mine.toml", tmp_path / "rules.toml"
    scenario.write_text(small.scenario({**changes, "privacy.example": noise}).to_toml())
    rules.write_text("statistics = true\n")
    command = ["deploy", "disclosure", str(scenario), "--data", str(rows), "--rules", str(rules), "--json"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.output)
    assert (told["rounds"], told["most"]) == (3, 2)
    summed = [field["name"] for field in told["fields"] if field["message"] == "statistics"]
    assert summed == [*(f"number/age/{name}" for name in ("count", "mean", "variance")), "category/ill", "counter"]
    held = load(rows, parse(tomllib.loads(scenario.read_text()), tmp_path, "mine"))
    charge = Charge(1.5, 32 / held.train, 2 * -(-held.train // 32), "zero-out", "poisson")
    epsilon = rounded_up(largest([charge], 1e-4, "rdp")[0])
    vector = next(field for field in told["fields"] if field["record"] == "update")
    assert vector["protection"].startswith(f"epsilon {epsilon} at delta 0.0001 (example level)")
