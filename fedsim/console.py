"""What all commands of the command line share: their help, their common options, and how they print."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo


class Command(TyperCommand):
    """A command whose help says what its arguments are.

    Click 8.5 gave arguments a help text of its own, and so wipes out the one that typer below 0.21 sets before; here
    it is set again.
    """

    def __init__(self, name: str | None, *, callback: Callable[..., Any] | None = None, **rest: Any) -> None:
        super().__init__(name, callback=callback, **rest)
        hints = get_type_hints(callback, include_extras=True) if callback is not None else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                notes = getattr(hints.get(str(parameter.name)), "__metadata__", ())
                parameter.help = next((note.help for note in notes if isinstance(note, ArgumentInfo)), None)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: Click 8.5 would write them a second time."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments and options; without the escapes that typer puts in for rich, which is not used."""
        records = [(each, each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            rows = [row for each, row in records if row is not None and each.param_type_name == kind]
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name, text.replace("\\[", "[")) for name, text in rows])


ScenarioName = Annotated[str, typer.Argument(help="a .toml file, or a name from `fedsim list scenarios`")]
Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="change a key for this run")]
DataDir = Annotated[Path | None, typer.Option(help="folder of data sets, looked into before FEDSIM_DATA")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs instead")]


def tell(values: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print a text for people, or values for programs."""
    if as_json:
        print_json(values)
    else:
        typer.echo(text)


def print_json(values: Any) -> None:
    """Print values as JSON."""
    from fedsim.records import to_json

    typer.echo(json.dumps(json.loads(to_json(values)), indent=2))


def echo_wrapped(text: str, indent: str = "    ", first: str = "    ") -> None:
    """Print a text in lines of at most 80 columns; `first` is before its first line, `indent` before the others."""
    import textwrap

    for line in textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=indent):
        typer.echo(line)


def open_page(file: Path) -> None:
    """Show a page in the browser, or say where it is."""
    import webbrowser

    if not webbrowser.open(file.resolve().as_uri()):
        typer.echo(f"note: no browser was found; open {file.resolve().as_uri()}", err=True)
