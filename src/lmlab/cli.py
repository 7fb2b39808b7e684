"""The command line: `lmlab COMMAND`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from lmlab import __version__, plugins
from lmlab.errors import EXIT_INTERRUPTED, Interrupted, LmlabError, UserError, from_unforeseen
from lmlab.terminal import printable

_DEBUG = "--debug"
_TOO_LARGE = 2**63  # as `lmlab.config` has it, whose import would take longer than help


@dataclass(frozen=True)
class _Group:
    """Commands of one subject, `lmlab NAME COMMAND`, which are loaded when they are called.

    Attributes:
        application: "module:attribute" of its Typer application.
        help: what `lmlab --help` and its own help say of it.
        panel: where `lmlab --help` lists it; None for the core's panel.
    """

    application: str
    help: str
    panel: str | None = None


# Importing every command takes longer than showing the list: so the core's are named here, with the first sentence of
# their help (a test compares), as methods' in manifests.
_ALONE = {
    "lmlab.commands.recipes": {
        "demo": "Run recipes/demo.yaml: from the standard library's text to a trained, measured, exported model"
        " and a report.",
        "run": "Run a recipe.",
        "recipes": "List the recipes that come with lmlab, or write one out to change it. `lmlab run NAME` runs it"
        " as it is.",
        "tokenize": "Collect, deduplicate and tokenize your own text: the first stages of a recipe.",
        "train": "Train a language model on tokenized text: one stage of a recipe, without writing one.",
        "report": "Write a run's report.html again from what its stages stored; their sources need not be there.",
    },
    "lmlab.commands.models": {
        "generate": "Continue prompts with a model and print the texts.",
        "chat": "Talk to a model.",
        "convert": "Write any model that lmlab reads as a Hugging Face directory, or as a GGUF file, with its"
        " tokenizer.",
    },
    "lmlab.commands.serve": {
        "serve": "Serve a model by the OpenAI protocol: chat and completions, streamed or whole, in one running"
        " batch; or an encoder: vectors of texts.",
    },
    "lmlab.commands.ask": {
        "ask": "Ask a model many things, each paid for once: a run that was cut off goes on where it was.",
    },
    "lmlab.commands.doctor": {
        "doctor": "Show versions, hardware, measured speed of matrix products, and which extras are installed.",
    },
}
_OF_THE_CORE = {
    "eval": _Group(
        "lmlab.commands.evaluation:app", "Measure models on benchmarks, questions and texts; compare two of them."
    ),
    "data": _Group("lmlab.commands.data:app", "Look at data, pack it, plan mixtures."),
    "retrieval": _Group(
        "lmlab.commands.retrieval:app",
        "Dense and lexical retrieval: encode collections, search them, measure what is found.",
    ),
    "judge": _Group(
        "lmlab.commands.judging.app:app",
        "Judges of answers: grade by a rubric or offline, validate against people, estimate.",
    ),
    "launch": _Group("lmlab.commands.launch:app", "Start recipes on clusters: one on many machines, or many at once."),
}


class _Commands(TyperGroup):
    """The commands of the core and those of the methods."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them; the methods have a panel of their own."""
        return list(self._all())

    def get_command(self, ctx: Any, name: str) -> Any:
        """What the list of commands shows of a command or group."""
        return self._all().get(name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """What is called."""
        name = args[0] if args else ""
        group, module = _groups().get(name), _module_of(name)
        if group is not None:
            return name, _with_paths(_loaded(name, group)), args[1:]
        if module is not None:
            return name, _with_paths(_commands_in(module)[name]), args[1:]
        self._all()  # the message names the nearest
        return super().resolve_command(ctx, args)

    def _all(self) -> dict[str, Any]:
        """The commands that stand alone, the groups of the core, and the methods."""
        if not self.commands:
            alone = {name: told for names in _ALONE.values() for name, told in names.items()}
            self.commands.update((name, _line(TyperCommand, name, told)) for name, told in alone.items())
            self.commands.update(
                (name, _line(TyperGroup, name, each.help, each.panel)) for name, each in _groups().items()
            )
        return dict(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Typer would end it with a bare "Aborted" and another exit code on a signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # true of a training, which keeps checkpoints, and of an answer, of which nothing is kept
            hint = "Run the same command again: it goes on from what was kept, or begins anew if nothing was."
            raise Interrupted("Interrupted.", hint) from None


def _with_paths(command: Any) -> Any:
    """A command whose paths are never empty: a variable of the shell that is not set would mean the current folder. Nor
    does it write over a file that it reads, nor take a number that no library below could hold.
    """
    if command is not None and not hasattr(command, "commands"):
        command.invoke = partial(_invoked, type(command), command)
    for parameter in getattr(command, "params", ()):
        kind = repr(getattr(parameter, "type_descriptor", getattr(parameter, "type", "")))
        if "Path" in kind or "int" in kind:
            parameter.process_value = partial(_processed, type(parameter), parameter, "Path" in kind)
    for each in getattr(command, "commands", {}).values():
        _with_paths(each)
    return command


def _processed(kind: Any, parameter: Any, is_path: bool, context: Any, value: Any) -> Any:
    for each in value if is_path and isinstance(value, list | tuple) else [value] if is_path else []:
        if isinstance(each, str) and not each.strip():
            raise UserError(f"{parameter.opts[0]}: the path is empty.", "Is a variable of the shell not set?")
    found = kind.process_value(parameter, context, value)
    if isinstance(found, int) and abs(found) >= _TOO_LARGE:
        raise UserError(f"{parameter.opts[0]}: the number is too large for 64 bits.")
    return found


def _invoked(kind: Any, command: Any, context: Any) -> Any:
    written, read = _files(command, context, outputs=True), _files(command, context, outputs=False)
    for path, option in written.items():
        if path in read:
            raise UserError(
                f"{option}: '{path}' is what {read[path]} reads, and would be written over.", "Name another file."
            )
    return kind.invoke(command, context)


def _files(command: Any, context: Any, outputs: bool) -> dict[Path, str]:
    """The files among a command's paths that are there, with what each was given by: those it writes, or the others."""
    found: dict[Path, str] = {}
    for parameter in command.params:
        # by --out, --output, or what else a command writes, such as --out-mib
        if any(option.startswith("--out") for option in parameter.opts) == outputs:
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            value = context.params.get(parameter.name)
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, Path) and each.is_file():
                    found[each.resolve()] = name
    return found


app = typer.Typer(
    name="lmlab",
    cls=_Commands,
    help="A laboratory for language models: from raw text to a model that you understand and can defend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@lru_cache(maxsize=1)
def _methods() -> dict[str, plugins.Method]:
    """The methods by their commands."""
    return {method.command: method for method in plugins.methods().values()}


def _groups() -> dict[str, _Group]:
    """The groups of the core and those of the methods, none of which may have the name of a command of the core."""
    found = dict(_OF_THE_CORE)
    for name, method in _methods().items():
        if name in _OF_THE_CORE or _module_of(name) is not None:
            raise UserError(f"The method at '{method.cli}' has a command of the core, '{name}'.", "Remove its package.")
        found[name] = _Group(method.cli, method.help, "Methods")
    return found


def _module_of(name: str) -> str | None:
    """Where a command of the core that stands in no group is defined."""
    return next((module for module, names in _ALONE.items() if name in names), None)


def _commands_in(module: str) -> Mapping[str, Any]:
    """The commands of a module by their names."""
    return typer.main.get_group(plugins.load(f"{module}:app")).commands


def _line(kind: Any, name: str, told: str, panel: str | None = None) -> Any:
    """The line of a command or a group in the list of commands."""
    line = kind(name=name, help=told, short_help=told, rich_help_panel=panel)
    line.rich_markup_mode = "rich"
    return line


def _loaded(name: str, group: _Group) -> Any:
    """A group with its commands."""
    application = plugins.load(group.application)
    application.info.name, application.info.help = name, group.help
    found = typer.main.get_group(application)  # `get_command` would add the options that install completion
    found.name = name
    return found


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
    _set_allocator()
    warnings.showwarning = _tell_warning
    debug = _debugging()
    try:
        app(standalone_mode=True)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(from_unforeseen(error, *_needs()))
    finally:
        gc.freeze()  # else Python looks for cycles among all that PyTorch has loaded: a second and more at each end


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours, such as of texts without tokens, is a sentence for the user: no place in the code."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        print(f"warning: {printable(str(message))}", file=sys.stderr)
    else:
        sys.stderr.write(printable(warnings.formatwarning(message, category, filename, lineno, line)))


def _set_allocator() -> None:
    """Unless the user says otherwise, let a GPU's freed blocks be joined: packed rows differ in size from step to step.

    It must be said before CUDA starts, and to the processes that commands start.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _debugging() -> bool:
    """Whether tracebacks are wanted. The option may stand behind the command, where the message suggests it."""
    arguments = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if _DEBUG in arguments:
        sys.argv = [sys.argv[0], *(each for each in arguments if each != _DEBUG), *sys.argv[1 + len(arguments) :]]
    return _DEBUG in arguments or os.environ.get("LMLAB_DEBUG", "0") not in ("", "0")


def _needs() -> tuple[tuple[str, ...], str]:
    """The extras of the method that was called, and what was called."""
    command = next((each for each in sys.argv[1:] if not each.startswith("-")), "")
    method = _methods().get(command)
    return (method.extras if method else (), f"lmlab {command}")


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(error: LmlabError) -> None:
    kind = "stopped" if error.exit_code == EXIT_INTERRUPTED else "error"
    rank = os.environ.get("RANK", "0")
    print(f"{kind}{'' if rank == '0' else f' (process {rank})'}: {printable(str(error))}", file=sys.stderr)
    raise SystemExit(error.exit_code)


if __name__ == "__main__":
    main()
