"""A decompiled model as files: `decompiled.json`, `program.py` and `manifest.json` with what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import owned_folder, write_json, write_text
from lmlab.methods.transformer_programs.config import DecompileConfig, SequencesConfig
from lmlab.methods.transformer_programs.decompile.answers import Asked
from lmlab.methods.transformer_programs.decompile.run import decompile, measure
from lmlab.methods.transformer_programs.decompile.text import own_lines, to_text
from lmlab.methods.transformer_programs.tasks.load import data_of, draw, read_examples
from lmlab.methods.transformer_programs.tasks.rasp import PAD
from lmlab.runs import Model

DECOMPILED, PYTHON, MANIFEST = "decompiled.json", "program.py", "manifest.json"


def write_decompiled(model: Model, given: SequencesConfig, how: DecompileConfig, out: str | Path) -> dict[str, Any]:
    """Read a language model as a program of averages and write it, all files or none; the manifest.

    Raises:
        UserError: the model cannot be written out, or the sequences are not in its tokens.
    """
    tokenizer = model.tokenizer()
    asked = asked_of(given, tokenizer)
    further = {path: asked_of(given.model_copy(update={"data": path, "task": None}), tokenizer) for path in how.test}
    network = model.load()
    program = decompile(network, asked, names_of(tokenizer, network.config.vocab_size), how)
    text = to_text(program.form)
    manifest = {
        "model": str(model.path),
        **program.record(),
        "lines": own_lines(text),
        "tests": {path: measure(program, network, each, how.offsets) for path, each in further.items()},
    }
    with owned_folder(out, "lmlab programs decompile") as folder:
        write_json(folder.new(DECOMPILED), program.form.record())
        write_text(folder.new(PYTHON), text)
        write_json(folder.new(MANIFEST), manifest)
    return manifest


def names_of(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The text of each id."""
    found = {number: name for name, number in tokenizer.backend.get_vocab().items()}
    return [found.get(number, f"<{number}>") for number in range(vocab_size)]


def asked_of(given: SequencesConfig, tokenizer: Tokenizer) -> Asked:
    """Labeled sequences as a model knows them: behind its begin mark, an answer wanted wherever there is a label.

    Raises:
        UserError: the task's places see what is to their right, there is nothing to read, or a word is no token.
    """
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
