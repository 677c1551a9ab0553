"""Why an algorithm's uploads stay private at each level, or why they do not.

At example level it depends on what the client half does with its rows, so every strategy says it (`Algorithm.private`).
At client and local level it follows from how the platform treats uploads: all that leaves is clipped as one vector.
"""

from collections.abc import Iterator

from fedsim.algorithm import Algorithm
from fedsim.privacy.plan import Level


def argument(algorithm: Algorithm, level: Level) -> str:
    """Why it stays private, for people; empty where `refusal` says why not."""
    if refusal(algorithm, level) is not None:
        return ""
    if level == "example":
        text = algorithm.private
    else:
        what = " and ".join(["the update", *(f"the {name}" for name in algorithm.extra)])
        text = f"{what}, clipped as one vector, {'is' if not algorithm.extra else 'are'} all that leaves"
    return f"{text}; jointly, personal parts never leave" if algorithm.personalised else text


def refusal(algorithm: Algorithm, level: Level) -> str | None:
    """Why there is no such form, and what to change; None where there is one."""
    return next(_reasons(algorithm, level), None)


def _reasons(algorithm: Algorithm, level: Level) -> Iterator[str]:
    if algorithm.flower is not None:
        yield "what a Flower strategy does with updates is its own; use one of `fedsim list strategies`"
    if level == "example":
        if not algorithm.private:
            yield "it declares no private form; use fedavg"
        return
    if algorithm.pooled or algorithm.model:
        yield "it is a reference, which promises no privacy; use fedavg"
    if algorithm.alone:
        yield "no value of a client ever leaves it, so there is nothing to protect; use privacy.example, or none"
    if algorithm.scalars:
        names = ", ".join(algorithm.scalars)
        yield f"it sends each client's own {names}, which is neither clipped nor noised; use fedavg"
    if level == "client" and not algorithm.linear:
        yield (
            f"one client can move what {algorithm.combine.name} gives by more than the noise hides; it needs a sum, so "
            "use a strategy that combines by the mean"
        )
    if algorithm.weights != "uniform":
        what = "a client's number of rows" if algorithm.weights == "examples" else "what the server learned of a client"
        yield f'{what} is not covered, and a weight would scale its clip; set strategy.weights = "uniform"'
