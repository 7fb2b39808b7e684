"""The command line: `lmlab COMMAND`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lmlab import __version__
from lmlab.commands import ask, data, doctor, evaluation, launch, models, recipes, serve
from lmlab.errors import EXIT_INTERRUPTED, Interrupted, LmlabError, from_os_error

ENTRY_POINTS = "lmlab.commands"


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
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"lmlab {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors for the user are printed without a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except LmlabError as error:
        _fail(error)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        _fail(from_os_error(error))


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(error: LmlabError) -> None:
    kind = "stopped" if error.exit_code == EXIT_INTERRUPTED else "error"
    rank = os.environ.get("RANK", "0")
    print(f"{kind}{'' if rank == '0' else f' (process {rank})'}: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


if __name__ == "__main__":
    main()
