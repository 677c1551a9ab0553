"""benchmarks/applications.py: which applications there are, their table, and the page that it is put into."""

from pathlib import Path
from typing import Any

from fedsim.scenario import load
from tests.test_benchmarks import script

PAGE = Path(__file__).parents[1] / "docs/applications.md"


def values(metric: str, central: float | None, clients: float | None, own: float | None = None) -> dict[str, Any]:
    """What a run prints, as far as the table reads it."""
    best = {f"global/central-test/rows/{metric}": central, f"global/client-test/clients/{metric}": clients}
    last = {f"personal/client-test/clients/{metric}": own}
    return {
        "title": "Some hospitals",
        "headline": {"metric": f"global/central-test/rows/{metric}", "value": central, "lower_is_better": False},
        "metrics": {name: value for name, value in best.items() if value is not None},
        "metrics_last_round": {name: value for name, value in last.items() if value is not None},
    }


def test_every_application_is_a_scenario_with_references_that_the_page_names() -> None:
    """But reinforcement learning has no constant answer, and generated text nothing to compare."""
    page = PAGE.read_text(encoding="utf-8")
    for name in script("applications").APPLICATIONS:
        references = load(name).references
        assert {"local", "central"} <= set(references) or name.endswith("-transformer") or name == "text-generation"
        assert f"`{name}`" in page or (name.startswith("mnist-") and f"`-{name[6:]}`" in page) or name[:-12] in page


def test_the_table_says_what_was_measured_and_what_was_not() -> None:
    applications = script("applications")
    told = applications.told(
        "some",
        {
            **values("accuracy", 0.75, 0.5),
            "references": {"local": values("accuracy", None, None, 0.625), "central": values("accuracy", 0.875, 0.25)},
        },
        3.0,
    )
    lines = applications.table([told, applications.Application("other", missing="data set 'other': a.csv not found")])
    assert [line.split() for line in lines[1:]] == [
        ["some", "accuracy", "central", "0.750", "-", "0.875", "-"],
        ["higher", "is", "better", "clients", "0.500", "0.625*", "0.250", "-"],
        ["other", "left", "out:", "data", "set", "'other':", "a.csv", "not", "found"],
    ]
    assert max(map(len, lines)) <= 80


def test_the_page_keeps_what_is_around_its_marks(tmp_path: Path) -> None:
    applications, writer = script("applications"), script("_applications_page")
    page = tmp_path / "applications.md"
    page.write_text(f"before\n{writer.BEGIN}\nold\n{writer.END}\nafter\n", encoding="utf-8")
    told = applications.told("some", values("rmse", 1.5, None), 3.0)
    writer.write_page(page, [told], applications.table([told]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "`fedsim run some`" in text and "1.500" in text
    assert "<svg" in page.with_suffix(".svg").read_text(encoding="utf-8")
