"""`fedsim check`: model, loss and metrics on one batch of one client, and what they are to a federation."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from fedsim import compiled, seeds, stackable
from fedsim.data.corpus import Folders
from fedsim.data.federation import Rows
from fedsim.errors import FedsimError, ModelError, ScenarioError, one_line
from fedsim.job import Job, prepare
from fedsim.local import one_thread
from fedsim.origins import reference
from fedsim.privacy.example import private_module
from fedsim.problem import Problem, evaluate, evaluating
from fedsim.progress import wrapped
from fedsim.scenario import Scenario, load, parse
from fedsim.scenario_files import assignments, override
from fedsim.stock import TREES

TRAINED, FROZEN = "trained", "frozen, never sent"
UNUSED, STILL = "unused: no gradient reaches it", "zero gradient on this batch"
STAYS, AVERAGED = "stays with each client", "averaged like updates"
ANEW = "starts anew at every client"


class Value(NamedTuple):
    """A parameter or buffer of a model.

    Attributes:
        name, shape: in the model.
        what: becomes of it in a round.
    """

    name: str
    shape: list[int]
    what: str


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        model: what it is called.
        data: name of the corpus.
        task: what is learned.
        clients: how many there are.
        client: the one whose batch it is, by number.
        rows: in that batch.
        inputs, targets, output: shape [rows, ...] and type.
        parameters, buffers: of the model.
        loss: what it is called: the task's name, or the user's function.
        headline: the metric by which the task is judged.
        metrics: of the untrained model on the batch.
        private, stacked, compiled: why the model cannot be trained with example-level privacy, in stacks, compiled;
            empty where it can.
    """

    model: str
    data: str
    task: str
    clients: int
    client: int
    rows: int
    inputs: str
    targets: str
    output: str
    parameters: list[Value]
    buffers: list[Value]
    loss: str
    headline: str
    metrics: dict[str, float]
    private: str
    stacked: str
    compiled: str


@one_thread()
def check(target: str, settings: Sequence[str] = (), data_dir: Path | None = None) -> Checked:
    """Try a scenario, or a model on data that `settings` name.

    Args:
        target: a scenario as `run` takes it, or a model `file.py:Net`.
        settings: "data.name=digits" and the like; rows are one client's if a model's data say nothing of clients.
        data_dir: where data sets are looked for first.

    Raises:
        FedsimError: the first thing that does not fit.
    """
    of_model = target.partition(":")[0].endswith(".py")
    scenario = _of_model(target, settings) if of_model else load(target, settings)
    if scenario.model.name == TREES:
        raise ScenarioError(f"{target}: trees are no model of batches; try it by: fedsim run {target} --fast-check")
    job = prepare(scenario, Folders.of(data_dir, scenario.folder))
    module, problem = job.build_model(), job.build_problem()
    client = int(np.argmax(job.federation.train_rows > 0))
    rows = job.federation.rows(client, "train")
    batch = Rows(*(part[: scenario.train.batch_size] for part in rows))
    inputs, targets = problem.inputs(batch.x), problem.targets(batch.y)
    with evaluating(module):
        output = module(inputs.clone()).detach()
    return Checked(
        model=job.model_title,
        data=job.federation.corpus,
        task=job.federation.task,
        clients=job.federation.clients,
        client=client,
        rows=len(batch.x),
        inputs=_kind(inputs),
        targets=_kind(targets),
        output=_kind(output),
        parameters=_parameters(job, problem, inputs, targets),
        buffers=_buffers(job, module),
        loss=reference(job.own.loss) if job.own.loss is not None else job.federation.task,
        headline=problem.headline,
        metrics=problem.metrics(evaluate(module, problem, *batch)),
        private=_private(module, job.model_title, inputs),
        stacked=stackable.refusal(job),
        compiled=_compiled(job, module, problem, inputs, targets),
    )


def _of_model(target: str, settings: Sequence[str]) -> Scenario:
    """A scenario for a model alone."""
    if ":" not in target:
        raise ScenarioError(f"{target}: name the class or function in it, as {target}:Net")
    usual = {
        "title": target,
        "seed": 1,
        "rounds": 1,
        "model": {"name": target},
        "train": {"learning_rate": 0.1, "batch_size": 32},
    }
    content = override(usual, assignments(settings))
    if not isinstance(table := content.get("data"), dict) or "name" not in table:
        raise ScenarioError(f"{target} is a model; name the data that it is for, such as --set data.name=digits")
    table.setdefault("partition", {"kind": "iid", "clients": 1})
    return parse(content, Path.cwd(), target)


def _kind(values: Tensor) -> str:
    return f"{list(values.shape)} {str(values.dtype).removeprefix('torch.')}"


def _parameters(job: Job, problem: Problem, inputs: Tensor, targets: Tensor) -> list[Value]:
    """Every parameter, and what a backward pass of the batch says of it."""
    module = job.build_model().train()
    with seeds.scope(job.scenario.seed, "check"):
        try:
            problem.mean_loss(module(inputs.clone()), targets).backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ModelError(f"model {job.model_title!r} fails in training: {one_line(error)}") from error
    pattern, found = job.build_algorithm().personal, []
    for name, parameter in module.named_parameters():
        what = TRAINED
        if not parameter.requires_grad:
            what = FROZEN
        elif parameter.grad is None:
            what = UNUSED
        elif not bool(parameter.grad.any()):
            what = STILL
        elif _matches(name, pattern):
            what = f"{TRAINED}; {STAYS}"
        found.append(Value(name, list(parameter.shape), what))
    return found


def _buffers(job: Job, module: nn.Module) -> list[Value]:
    """Every buffer, and how it comes together."""
    pattern, found = job.build_algorithm().personal, []
    for name, buffer in module.named_buffers():
        what = ANEW if not buffer.is_floating_point() else STAYS if _matches(name, pattern) else AVERAGED
        found.append(Value(name, list(buffer.shape), what))
    return found


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is not None and fnmatch.fnmatchcase(name, pattern)


def _private(module: nn.Module, name: str, inputs: Tensor) -> str:
    try:
        private_module(module, name).module(inputs[:1].clone())  # the first pass tries its per-example gradients
    except FedsimError as error:
        return str(error)
    return ""


def _compiled(job: Job, module: nn.Module, problem: Problem, inputs: Tensor, targets: Tensor) -> str:
    algorithm, size = job.build_algorithm(), job.scenario.train.batch_size
    if algorithm.features:
        return f"strategy {algorithm.name!r} adds a term to the loss"
    return compiled.refusal(module, job.model_title, problem, inputs, targets, size)


def as_data(found: Checked) -> dict[str, Any]:
    """For programs."""
    values = ("parameters", "buffers")
    return {**asdict(found), **{key: [each._asdict() for each in getattr(found, key)] for key in values}}


def check_lines(found: Checked) -> list[str]:
    """For people, at most 80 columns but for long names."""
    count = sum(_size(each) for each in found.parameters if each.what != FROZEN)
    facts = {
        "model": f"{found.model}, {count:,} parameters that are trained",
        "data": f"{found.data}, {found.task}, {found.clients} client{'s' if found.clients != 1 else ''}",
        "batch": f"{found.rows} rows of client {found.client}: inputs {found.inputs}, targets {found.targets}",
        "output": found.output,
        "loss": found.loss,
        "metrics": _figures(found.metrics, found.headline),
    }
    lines = [line for name, text in facts.items() for line in _fact(name, text)]
    for title, values in (("parameters", found.parameters), ("buffers", found.buffers)):
        lines += [title] if values else []
        lines += [f"  {each.name:<26} {each.shape!s:<18} {each.what}" for each in values]
    can = {
        "privacy": ("can be trained with example-level privacy", found.private),
        "stacks": ("many clients can be trained as one computation", found.stacked),
        "compile": ("its step can be compiled", found.compiled),
    }
    return [*lines, *(line for name, (yes, no) in can.items() for line in _fact(name, f"no: {no}" if no else yes))]


def _size(value: Value) -> int:
    return int(np.prod(value.shape))


def _figures(metrics: Mapping[str, float], headline: str) -> str:
    """Metrics of the untrained model, those of single classes left out, the headline first."""
    shown = [headline, *(name for name in metrics if name != headline and "/" not in name)]
    return "untrained: " + ", ".join(f"{name} {metrics[name]:.4g}" for name in shown)


def _fact(name: str, text: str) -> list[str]:
    first, *rest = wrapped(text, 12)
    return [f"{name:<12}{first.lstrip()}", *rest]
