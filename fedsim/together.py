"""Clients that are trained together: one stack of a cohort, from what they receive to what each contributes.

A stack has W places. Where it has fewer clients, silent places fill it up, and a client that breaks the computation
becomes silent: so the shapes of the stack, and with them the bits of every other client, stay what they are. They
depend on the cohort alone, which is cut into stacks in the order of client numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from fedsim import seeds
from fedsim.algorithm import Upload
from fedsim.devices import DeviceMemoryError, on
from fedsim.errors import ClientError, one_line
from fedsim.local import Contribution, Received, Work
from fedsim.stacking import Slot, Stack
from fedsim.states import State
from fedsim.training import LocalClient, Step

Result = Contribution | ClientError
NOBODY: Mapping[int, list[Step]] = {}


class Member(NamedTuple):
    """A client of a stack.

    Attributes:
        number: the client.
        state: its own vectors, None before its first accepted round.
        silent: it keeps its place and is not trained.
    """

    number: int
    state: State | None
    silent: bool = False


def train_together(
    work: Work,
    members: Sequence[Member],
    round: int,
    received: Received,
    observed: Mapping[int, list[Step]] = NOBODY,
) -> list[Result]:
    """A round of the clients of one stack.

    Args:
        work: does it, under `cohort.client_timeout` times the number of members.
        members: W at most, in the order of their numbers.
        round: from 1.
        received: model and shared vectors.
        observed: by client, gets every step that it takes, also up to a failure.

    Returns:
        For each member in order its contribution, or why it failed. Numbers that are not finite fail their client
        and nobody else; where the whole computation fails, who fails alone too is left out and the others train again.
    """
    results, broken = _attempt(work, members, round, received, observed)
    failed = [each for each, result in zip(members, results, strict=True) if isinstance(result, ClientError)]
    alone = _alone(work, failed, round, received, observed)
    if broken and alone:
        others = [member._replace(silent=member.silent or member.number in alone) for member in members]
        results, _ = _attempt(work, others, round, received, observed)
    return [alone.get(member.number, result) for member, result in zip(members, results, strict=True)]


def _attempt(
    work: Work, members: Sequence[Member], round: int, received: Received, observed: Mapping[int, list[Step]]
) -> tuple[list[Result], bool]:
    """What `at_once` gives, or its failure for everybody, and whether it failed; a GPU's full memory ends the run."""
    try:
        return at_once(work, members, round, received, observed), False
    except DeviceMemoryError:
        raise
    except Exception as error:
        return [_failed(round, member, error) for member in members], True


def at_once(
    work: Work,
    members: Sequence[Member],
    round: int,
    received: Received,
    observed: Mapping[int, list[Step]] = NOBODY,
) -> list[Result]:
    """The round of `train_together`, but raises what ends it for all of them."""
    asked = [member for member in members if not member.silent]
    if not asked:
        return [_left_out(round, member) for member in members]
    filling = [asked[0]._replace(silent=True)] * (work.width - len(members))
    for steps in observed.values():
        steps.clear()
    with work.limited(len(asked)):
        slots = [_slot(work, member, round, received, observed) for member in (*members, *filling)]
        with on(work.device, work.width):
            stack = Stack(slots, work.stacked)
            seeds.seed_globals(work.job.scenario.seed, "train", round, asked[0].number)
            upload = work.algorithm.client(stack)
    return [
        _left_out(round, member)
        if member.silent
        else _result(work, slot.client, partial(stack.apart, upload, place), received.clip)
        for place, (member, slot) in enumerate(zip(members, slots, strict=False))
    ]


def _slot(work: Work, member: Member, round: int, received: Received, observed: Mapping[int, list[Step]]) -> Slot:
    steps = None if member.silent else observed.get(member.number)
    state = None if member.silent else member.state
    return Slot(work.client(member.number, round, received, state, steps), member.silent)


def _result(work: Work, client: LocalClient, worked: Callable[[], Upload], clip: float | None) -> Result:
    try:
        with work.named(client.number, client.round), work.limited():
            return work.contribution(client, worked, clip)
    except ClientError as error:
        return error


def _alone(
    work: Work, members: Sequence[Member], round: int, received: Received, observed: Mapping[int, list[Step]]
) -> dict[int, ClientError]:
    """Who fails without the others too, and why: in the words of one that always trains alone."""
    failed: dict[int, ClientError] = {}
    for member in members:
        if member.silent:
            continue
        steps: list[Step] = []
        try:
            work.train(member.number, round, received, member.state, steps)
        except ClientError as error:
            failed[member.number] = error
            if member.number in observed:
                observed[member.number][:] = steps
    return failed


def _failed(round: int, member: Member, error: Exception) -> ClientError:
    reason = error if isinstance(error, ClientError) else one_line(error)
    return ClientError(f"round {round}, client {member.number}: trained with others, not one by one: {reason}")


def _left_out(round: int, member: Member) -> ClientError:
    return ClientError(f"round {round}, client {member.number}: it was not asked")
