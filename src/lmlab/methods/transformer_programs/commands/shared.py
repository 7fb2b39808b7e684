"""What several commands do: read labeled sequences for a program, mark them, and show what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.commandline.options import print_table
from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import ExamplesConfig

if TYPE_CHECKING:
    from lmlab.methods.transformer_programs.program.ir import Program
    from lmlab.methods.transformer_programs.tasks.rasp import Example


def rule_of(name: str) -> Any:
    """The rule of a task, or a function that the user names; its module may stand in the present folder.

    Raises:
        UserError: there is no such task, module or function, or the module does not run.
    """
    import sys
    from importlib import import_module

    from lmlab.methods.transformer_programs.tasks.rasp import task

    if ":" not in name:
        return task(name).label
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind all others: what is installed is never hidden
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # code of the user's
        told = str(error) if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {error}"
        raise UserError(f"--oracle {name}: {told}.", "Name it as module:function.") from error


def labeled_examples(program: Program, given: ExamplesConfig, splits: Sequence[str] = ("test",)) -> list[Example]:
    """Labeled sequences for a program: of a file, or drawn."""
    from lmlab.methods.transformer_programs.tasks.load import data_of, draw, read_examples
    from lmlab.progress import console

    if given.data is not None:
        sequence = given.labels == "sequence" if given.labels else program.pool_outputs
        kind = given.labels or ("sequence" if sequence else "tokens")
        if sequence != program.pool_outputs:
            gives = "one answer a sequence" if program.pool_outputs else "an answer for each token"
            raise UserError(f"--labels {given.labels}: the program gives {gives}.", "Leave --labels out.")
        columns = (given.token_column, given.label_column)
        found = read_examples(given.data, kind, *marks_of(program), *columns)
        longest = program.longest
        kept = [each for each in found if longest is None or len(each[0]) <= longest]
        if not kept:
            raise UserError(f"No sequence of '{given.data}' has at most {longest} places, which the program knows.")
        if len(kept) < len(found):
            told = (
                f"{len(found) - len(kept):,} of {len(found):,} sequences are longer than the program's {longest} places"
            )
            console.print(f"{told} and left out.", style="yellow")
        return kept[: given.examples]
    drawn = draw(data_of(program.about, given.task))
    parts = {"train": drawn.train, "valid": drawn.valid, "test": drawn.test}
    return [each for split in splits for each in getattr(parts[split], "examples", ())][: given.examples]


def marks_of(program: Program) -> tuple[str | None, str | None]:
    """The marks that sequences of a program have at their ends: those in its vocabulary."""
    known = program.vocabulary or ()
    return (program.bos if program.bos in known else None, program.eos if program.eos in known else None)


def marked(program: Program, tokens: list[str]) -> list[str]:
    bos, eos = marks_of(program)
    before = [bos] if bos and tokens[:1] != [bos] else []
    return [*before, *tokens, *([eos] if eos and tokens[-1:] != [eos] else [])]


def joined(answer: Any) -> str:
    return answer if isinstance(answer, str) else " ".join(answer)


def show_trace(execution: Any, number: int) -> None:
    from rich.table import Table

    program, tokens = execution.program, execution.tokens[number]
    table = Table("", *(f"{place} {token}" for place, token in enumerate(tokens)))
    for name in program.variables:
        cells = [str(each) for each in execution.variable(name, number)]
        if name in execution.places:
            taken = execution.places[name][number].tolist()
            cells = [f"{cell} (at {'none' if at < 0 else at})" for cell, at in zip(cells, taken, strict=False)]
        table.add_row(name, *cells)
    answer = execution.answers[number]
    table.add_row("ANSWER", *([answer] if isinstance(answer, str) else answer))
    print_table(table)


def show_manifest(manifest: dict[str, Any], out: Path) -> None:
    from lmlab.progress import console

    checked = manifest.get("verification")
    if checked:
        every = f", all inputs up to {checked['exhaustive']} symbols among them" if checked.get("exhaustive") else ""
        word = "equal" if manifest["faithful"] else "NOT EQUAL"
        console.print(f"Program and network are {word} on {checked['places']:,} places{every}.")
    for split, value in manifest.get("accuracy", {}).items():
        console.print(f"accuracy on {split}: {100 * value:.2f} %")
    shorter = manifest.get("minimized")
    if shorter:
        for name in ("accuracy", "lines", "nodes", "predicate_pairs", "table_rows", "classifier_rows"):
            before, after = shorter["before"][name], shorter["after"][name]
            shown = f"{100 * before:.2f} % -> {100 * after:.2f} %" if name == "accuracy" else f"{before} -> {after}"
            console.print(f"{name.replace('_', ' ')}: {shown}")
    console.print(f"Program: {out}")
