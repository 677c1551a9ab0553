"""What a person sees while an app runs: a heading, one line for each batch of messages, and a block at the end."""

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from fedsim.apps.grid import Batch
from fedsim.progress import WIDTH, heading_lines, shortened, wrapped

_HEAD = f"{'batch':>6}  {'messages':<16}{'replies':>8}{'failed':>8}{'seconds':>9}  means of what clients report"


class Lines:
    """Plain lines of at most 80 columns."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Print to a stream, by default the standard output."""
        self._stream = stream or sys.stdout
        self._begun = False
        self._reasons: set[str] = set()

    def begin(self, facts: Sequence[str]) -> None:
        """A run starts."""
        self._print(*heading_lines(facts[0], facts[1:]))

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self._print(*wrapped(f"note: {text}"))

    def batch(self, batch: Batch, means: Mapping[str, float]) -> None:
        """A batch of messages is answered."""
        kinds = "+".join(dict.fromkeys(message.metadata.message_type for message in batch.messages))
        failed = [reply for reply in batch.replies if reply.has_error()]
        figures = f"{shortened(kinds, 15):<16}{len(batch.replies):>8}{len(failed):>8}{batch.wall:>9.2f}"
        if not self._begun:
            self._print(_HEAD)
        self._begun = True
        self._print(shortened(f"{batch.number:6d}  {figures}  {_told(means)}".rstrip(), WIDTH))
        for reply in failed:
            reason = str(reply.error.reason)
            if reason not in self._reasons:
                self._reasons.add(reason)
                self.note(f"node {reply.metadata.src_node_id}: {reason}")

    def measured(self, round: int, metrics: Mapping[str, float]) -> None:
        """The ServerApp has measured a model."""
        if metrics:
            when = f"after round {round}" if round else "before round 1"
            self._print(shortened(f"        ServerApp, {when}: {_told(metrics)}", WIDTH))

    def end(self, lines: Sequence[str]) -> None:
        """A run has ended."""
        self._print(*lines)

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._stream, flush=True)


def _told(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
