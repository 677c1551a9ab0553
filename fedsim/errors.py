"""Everything that can go wrong, as a small tree.

A message says what is wrong, where (file, key, client, round) and what to change. The command line prints
it as one line and ends with `exit_code`; a traceback is for our own mistakes only.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST, _LONGEST_WORD = 1000, 300


class FedsimError(Exception):
    """Base of all errors that a user can cause or mend; as text one printable line, whatever it quotes."""

    exit_code = 2

    def __str__(self) -> str:
        words = " ".join(_shortened(word) for word in super().__str__().split())
        text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)
        if len(text) <= _LONGEST:
            return text
        # What went wrong stands at the beginning, what to change at the end.
        return f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class ScenarioError(FedsimError):
    """A scenario that cannot be run: unknown key, impossible value, settings that do not go together."""


class DataError(FedsimError):
    """A data set that is missing, corrupt or does not have what the scenario asks of it."""


class ModelError(FedsimError):
    """A model that does not fit the data, the task or the privacy asked for."""


class PrivacyError(FedsimError):
    """A privacy setting for which no true epsilon could be printed."""


class RunFolderError(FedsimError):
    """A run folder that exists already or cannot be written."""


class ClientError(FedsimError):
    """One client's failure in one round. An expected event: recorded, not raised to the user."""


class NotFiniteError(ClientError):
    """A client's loss or update is not finite."""


class DeployError(FedsimError):
    """A server, a node or their keys that are not as a deployment needs them."""


class Refused(DeployError):
    """What a node's owner does not allow, or what is not what it says; the reason goes back to the coordinator."""


class StoppedByPolicy(FedsimError):
    """A run ended by its own rules (every client failed, `on_client_error = "fail"`, divergence)."""

    exit_code = 3


class Interrupted(FedsimError):
    """A run that its user interrupted."""

    exit_code = 130


@contextmanager
def named(origin: str) -> Iterator[None]:
    """Say in which scenario a mistake was made."""
    try:
        yield
    except FedsimError as error:
        raise type(error)(f"{origin}: {error}") from error


def one_line(error: BaseException) -> str:
    """The error's type and message on a single line without colours, for records and replies."""
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shortened(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[:100]}...{word[-50:]}"
