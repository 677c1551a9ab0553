"""Findings as they are printed and as programs read them."""

import json
import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.comparison.findings import Asked, Findings, conclude
from fedsim.comparison.lines import as_values, findings_lines
from fedsim.comparison.plan import Target, left_out_name, reference_name
from fedsim.overview import figure
from fedsim.records import to_json
from tests.comparison import made
from tests.comparison.made import METRIC, VALIDATION

NAMES = st.lists(
    st.text("abc, =.", min_size=1, max_size=70).map(str.strip).filter(bool), min_size=2, max_size=4, unique=True
)
SCORES = st.one_of(st.floats(0, 1), st.floats(-1e12, 1e12), st.sampled_from([math.nan, math.inf, 0.0]))


def made_findings(names: list[str], scores: list[list[float]], *, target: bool = True) -> Findings:
    """Candidates by their scores over seeds, with references, clients' gains and one client left out."""
    local = reference_name("local")
    own = {client: client / 10 for client in range(12)}
    runs = [
        replace(run, own_figures={client: value + 0.1 for client, value in own.items()}, epsilon=1.234, delta=1e-5)
        for run in made.runs(dict(zip(names, scores, strict=True)))
    ]
    runs += [
        replace(
            run,
            own_figures=own,
            last={"personal/client-test/clients/accuracy": 0.25},
            headline="personal/client-test/clients/accuracy",
        )
        for run in made.runs({local: scores[0]})
    ]
    runs += made.runs({left_out_name(0): scores[0]})
    seeds = tuple(range(1, len(scores[0]) + 1))
    goal = Target(VALIDATION, at_least=0.5) if target else None
    return conclude(Asked("Made", None, METRIC, tuple(names), ("",), names[0], ("local",), seeds, goal), runs)


@settings(max_examples=50, deadline=None)
@given(NAMES, st.data())
def test_lines_fit_the_terminal_and_values_are_json(names: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    scores = [data.draw(st.lists(SCORES, min_size=count, max_size=count)) for _ in names]
    found = made_findings(names, scores)
    assert max(map(len, findings_lines(found))) <= 80
    values = json.loads(to_json(as_values(found)))
    assert [each["candidate"] for each in values["candidates"]] == [*names, "reference: local"]
    for each, wanted in zip(values["candidates"], scores, strict=False):
        assert [each["scores"][str(seed)] for seed in range(1, count + 1)] == [
            score if math.isfinite(score) else None for score in wanted
        ]


def test_a_row_has_mean_difference_and_verdict() -> None:
    one, two = [0.50, 0.51, 0.52, 0.50, 0.53], [0.60, 0.60, 0.63, 0.61, 0.62]
    lines = findings_lines(made_findings(["fedavg", "fedadam"], [one, two]))
    row = next(line for line in lines if line.startswith("fedadam"))
    assert row.split()[1:3] == [figure(sum(two) / 5), "+0.1000"] and row.endswith("  better")
    assert next(line for line in lines if line.startswith("fedavg")).endswith("compared with")
    assert next(line for line in lines if line.startswith("reference: local")).split()[2] == "0.2500"
    assert "  reference: local: personal/client-test/clients/accuracy" in lines
    text = "\n".join(lines)
    assert "fedadam is better than fedavg by 0.1" in " ".join(text.split())
    assert "1.24" in text  # epsilon, rounded up
    gained = [line for line in lines if line.startswith("fedadam")][-1]
    assert gained.split()[1] == "+0.1000" and "100 %" in gained


def test_before_anything_has_run_there_is_something_to_say() -> None:
    found = conclude(Asked("Made", None, None, ("a", "b"), ("",), "a", (), (1, 2)), [])
    assert findings_lines(found)[:2] == ["Made", "seeds 1, 2; no run has finished yet"]
    assert json.loads(to_json(as_values(found)))["runs"] == []
