"""docs/evaluation.md and docs/hand-over.md say what there is."""

import re
from pathlib import Path

from fedsim import cli, registry
from fedsim.problem import Problem, problem_for

DOCS = Path(__file__).resolve().parent.parent / "docs"
_SHAPES: dict[str, tuple[int, ...]] = {"multi-label": (2,)}


def problem(task: str) -> Problem:
    return problem_for(task, ("a", "b"), (3,), _SHAPES.get(task, ()))


def test_the_page_has_every_task_with_its_first_metric() -> None:
    """A task that is added needs its line: what it is judged by is what a reader looks for."""
    page = (DOCS / "evaluation.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w ]+) \|", page, flags=re.MULTILINE)
    told = {task: headline.lower().replace(" ", "-") for task, headline in rows}
    assert told == {task: problem(task).headline for task in registry.members("fedsim.tasks")}


def test_the_commands_of_the_pages_are_known() -> None:
    known = {name.name or getattr(name.callback, "__name__", "") for name in cli.app.registered_commands}
    for page in ("evaluation.md", "hand-over.md"):
        named = re.findall(r"(?:^    |`|do )fedsim (\w+) ", (DOCS / page).read_text(), flags=re.MULTILINE)
        assert named and set(named) <= known
