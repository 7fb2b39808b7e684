"""`lmlab programs decompile`: a small language model as a program of averages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import ModelPlace, example
from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import DecompileConfig, ExamplesConfig

if TYPE_CHECKING:
    from lmlab.data import Tokenizer
    from lmlab.methods.transformer_programs.decompile.answers import Asked

DECOMPILED, PYTHON, MANIFEST = "decompiled.json", "program.py", "manifest.json"
_OF_FILES = ("data", "task", "examples", "token_column", "label_column")


@takes_model
@options(ExamplesConfig, "given", only=_OF_FILES, examples=4000)
@options(DecompileConfig, "how")
def decompile(
    model: ModelPlace,
    given: ExamplesConfig,
    how: DecompileConfig,
    test: Annotated[
        list[Path] | None,
        typer.Option("--test", help="Further sequences to compare on, such as longer ones.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the program.")] = Path("decompiled"),
) -> None:
    """Read a small language model as a program of averages that answers as it does."""
    from lmlab.files import owned_folder, write_json, write_text
    from lmlab.methods.transformer_programs.decompile.run import decompile as read
    from lmlab.methods.transformer_programs.decompile.run import measure
    from lmlab.methods.transformer_programs.decompile.text import own_lines, to_text
    from lmlab.progress import console
    from lmlab.runs import Model

    found = Model.find(model)
    tokenizer = found.tokenizer()
    asked = asked_of(given, tokenizer)
    network = found.load()
    program = read(network, asked, names_of(tokenizer, network.config.vocab_size), how)
    text = to_text(program.form)
    manifest: dict[str, Any] = {"model": str(found.path), **program.record(), "lines": own_lines(text), "tests": {}}
    for path in test or ():
        further = asked_of(given.model_copy(update={"data": str(path), "task": None}), tokenizer)
        manifest["tests"][str(path)] = measure(program, network, further, how.offsets)
    with owned_folder(out, "lmlab programs decompile") as folder:
        write_json(folder.new(DECOMPILED), program.form.record())
        write_text(folder.new(PYTHON), text)
        write_json(folder.new(MANIFEST), manifest)
    paths = program.paths
    console.print(
        f"{paths['written']} paths, {paths['gated']} behind open gates, {paths['left']} in the program of"
        f" {manifest['lines']} lines ({program.seconds:.0f} CPU-s)."
    )
    console.print(f"As the model: {program.match:.2%} of places and {program.whole:.1%} of sequences held back.")
    for name, figures in manifest["tests"].items():
        rest = ""
        if "model_accuracy" in figures:
            rest = (
                f"; right are the model {figures['model_accuracy']:.2%}, the program {figures['program_accuracy']:.2%},"
                f" the most common answer {figures['most_common']:.1%}"
            )
        console.print(f"{name}: {figures['match']:.2%} of places, {figures['whole_sequences']:.1%} of sequences{rest}.")
    if program.match < how.match:
        console.print(
            f"That is below the {how.match:.0%} asked for: read it as a part of what the model does.", style="yellow"
        )
    console.print(f"Program: {out / PYTHON}")


decompile_example = example(
    "lmlab programs decompile runs/majority/model --data majority.jsonl --test longer.jsonl --out majority_program/"
)


def names_of(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The text of each id."""
    found = {number: name for name, number in tokenizer.backend.get_vocab().items()}
    return [found.get(number, f"<{number}>") for number in range(vocab_size)]


def asked_of(given: ExamplesConfig, tokenizer: Tokenizer) -> Asked:
    """Labeled sequences as a model knows them: behind its begin mark, an answer wanted wherever there is a label.

    Raises:
        UserError: the task's places see what is to their right, there is nothing to read, or a word is no token.
    """
    from lmlab.methods.transformer_programs.decompile.answers import Asked
    from lmlab.methods.transformer_programs.tasks.load import data_of, draw, read_examples
    from lmlab.methods.transformer_programs.tasks.rasp import PAD

    if given.data is not None:
        examples = read_examples(given.data, "tokens", None, None, given.token_column, given.label_column)
    else:
        drawn = draw(data_of({}, given.task))
        if not drawn.autoregressive:
            raise UserError(
                f"The answers of {given.task} depend on what is to their right, which a language model does not see.",
                "Take dyck1, dyck2 or induction, or give --data.",
            )
        examples = list(drawn.train.examples)
    numbers, begin = tokenizer.backend.get_vocab(), tokenizer.begin_ids
    ids, wanted, labels = [], [], []
    for tokens, answers in examples[: given.examples]:
        strange = next((each for each in tokens if each not in numbers), None)
        if strange is not None:
            raise UserError(
                f"'{strange}' is no token of the model.", "Spell the sequences in the tokens of its tokenizer."
            )
        row = [numbers[each] for each in tokens]
        before = [] if row[: len(begin)] == begin else begin
        ids.append((*before, *row))
        wanted.append((*(False for _ in before), *(each != PAD for each in answers)))
        labels.append((*(None for _ in before), *(None if each == PAD else numbers.get(each, -1) for each in answers)))
    if not any(any(row) for row in wanted):
        raise UserError("No place of the sequences has a label, so there is no answer to compare.")
    return Asked(tuple(ids), tuple(wanted), tuple(labels))
