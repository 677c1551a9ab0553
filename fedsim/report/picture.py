"""A picture of a report as a value: the page draws it with plotly, a paper's figure with matplotlib."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedsim.report.charts import chart
from fedsim.report.page import Table


class Picture(NamedTuple):
    """A picture, what it shows in words, and its numbers.

    Attributes:
        name: of its files as a still, without a suffix.
        figure: {"data": traces, "layout": ...} in plotly's words.
        caption: plain text that says what is seen.
        shown: the numbers.
        height: on the page, in pixels.
    """

    name: str
    figure: Mapping[str, Any]
    caption: str
    shown: Table
    height: int = 340

    @property
    def html(self) -> str:
        """The picture, its caption, and its numbers folded away below."""
        return chart(self.figure, self.caption, self.shown, height=self.height)


def html(pictures: Iterable[Picture]) -> str:
    """Pictures one after another."""
    return "".join(picture.html for picture in pictures)
