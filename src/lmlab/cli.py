"""The command line: `lmlab COMMAND`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lmlab import __version__
from lmlab.commands import ask, data, doctor, evaluation, launch, models, recipes, serve
from lmlab.errors import EXIT_INTERRUPTED, Interrupted, LmlabError, from_unforeseen
from lmlab.terminal import printable

ENTRY_POINTS = "lmlab.commands"
_DEBUG = "--debug"


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; Typer would end it with a bare "Aborted" and another exit code on a signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.", "Run the same command again to go on.") from None


app = typer.Typer(
    name="lmlab",
    cls=_Commands,
    help="A laboratory for language models: from raw text to a model that you understand and can defend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for part in (recipes, models, serve, ask):
    app.add_typer(part.app)
app.add_typer(evaluation.app, name="eval")
app.add_typer(data.app, name="data")
app.add_typer(launch.app, name="launch")
for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
    app.add_typer(point.load(), name=point.name, rich_help_panel="Methods")
app.add_typer(doctor.app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; also LMLAB_DEBUG=1. May stand last.")
    ] = False,
) -> None:
    if version:
        print(f"lmlab {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors are printed without a traceback unless it is asked for."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    debug = _debugging()
    try:
        app(standalone_mode=True)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(from_unforeseen(error))


def _debugging() -> bool:
    """Whether tracebacks are wanted. The option may stand behind the command, where the message suggests it."""
    arguments = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if _DEBUG in arguments:
        sys.argv = [sys.argv[0], *(each for each in arguments if each != _DEBUG), *sys.argv[1 + len(arguments) :]]
    return _DEBUG in arguments or os.environ.get("LMLAB_DEBUG", "0") not in ("", "0")


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(error: LmlabError) -> None:
    kind = "stopped" if error.exit_code == EXIT_INTERRUPTED else "error"
    rank = os.environ.get("RANK", "0")
    print(f"{kind}{'' if rank == '0' else f' (process {rank})'}: {printable(str(error))}", file=sys.stderr)
    raise SystemExit(error.exit_code)


if __name__ == "__main__":
    main()
