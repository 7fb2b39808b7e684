"""From trained networks to a program's directory, checked on every split, on random inputs and, where they are few
enough, on all inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import LmlabError
from lmlab.files import owned_folder, sha256_file, write_json, write_text
from lmlab.methods.transformer_programs.analysis.minimize import described, minimize, score
from lmlab.methods.transformer_programs.analysis.verify import (
    VerificationReport,
    every_input,
    random_inputs,
    verify,
)
from lmlab.methods.transformer_programs.config import ExportOptions
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.program.emitting.emit import Tables, to_python
from lmlab.methods.transformer_programs.program.files import PROGRAM, WEIGHTS, WRITER, write_files
from lmlab.methods.transformer_programs.program.ir import Program
from lmlab.methods.transformer_programs.tasks.dataset import Dataset
from lmlab.methods.transformer_programs.tasks.rasp import PAD, UNK, Example
from lmlab.progress import progress

MANIFEST, PYTHON = "manifest.json", "program.py"
_RANDOM = 2000  # sequences beside the data, which may not reach what a program has rules for


def export_program(
    model: ProgramTransformer,
    place: int,
    data: Dataset,
    out: str | Path,
    options: ExportOptions | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert, verify, minimize if asked, and write; the manifest.

    Arguments:
        place: which of the model's seeds.

    Raises:
        LmlabError: program and model differ, and `allow_unfaithful` is not set.
    """
    out, options = Path(out), options or ExportOptions()
    splits = {"train": data.train, "valid": data.valid, **({"test": data.test} if data.test is not None else {})}
    inputs, exhaustive = checked_inputs(model, data, options.exhaustive)
    with progress("verify", len(inputs), "sequences") as advance:
        program = to_program(model, place, inputs, options.max_rows, options.max_length, about)
        report = verify(model, program, inputs, place, advance)
    report.exhaustive = exhaustive
    if not report.equal and not options.allow_unfaithful:
        assert report.first is not None
        raise LmlabError(difference(report), "Report it, or use --allow-unfaithful to write it marked as such.")
    manifest: dict[str, Any] = {
        "seed": model.seeds[place],
        "faithful": report.equal,
        "verification": report.record(),
        "size": described(program),
        "accuracy": {name: score(program, split.examples) for name, split in splits.items() if len(split)},
    }
    if options.minimize:
        shorter = minimize(program, [*data.train.examples, *data.valid.examples], options.max_accuracy_drop)
        test = [] if data.test is None else list(data.test.examples)
        manifest["minimized"] = {
            "max_accuracy_drop": options.max_accuracy_drop,
            "before": shorter.before,
            "after": shorter.after,
            **({"test_accuracy": score(shorter.program, test)} if test else {}),
        }
        program = shorter.program
    return write_program(program, out, manifest, options.tables)


def convert(model: ProgramTransformer, max_rows: int, about: dict[str, Any] | None) -> tuple[Program, dict[str, Any]]:
    """The program of a network that comes without data, once it is shown to answer alike on random inputs of every
    length, and its manifest.

    Raises:
        LmlabError: they differ.
    """
    spec = model.spec
    symbols = [token for token in spec.vocabulary if token not in (PAD, UNK, spec.bos, spec.eos)]
    bos, eos = (mark if mark in spec.vocabulary else None for mark in (spec.bos, spec.eos))
    longest = max(1, spec.context - (bos is not None) - (eos is not None))
    inputs = random_inputs(symbols, longest, _RANDOM, 0, bos, eos) if symbols else []
    program = to_program(model, max_rows=max_rows, about=about)
    report = verify(model, program, inputs)
    if not report.equal:
        raise LmlabError(difference(report))
    return program, {"faithful": True, "verification": report.record(), "size": described(program)}


def write_program(program: Program, out: Path, manifest: dict[str, Any], tables: Tables = "csv") -> dict[str, Any]:
    """A program's directory: its form, tables, Python text and manifest, all of them or none."""
    text = to_python(program, tables)
    with owned_folder(out, WRITER) as folder:
        write_files(program, folder.new)
        write_text(folder.new(PYTHON), text)
        manifest = manifest | {"sha256": {name: sha256_file(folder.new(name)) for name in (PROGRAM, WEIGHTS, PYTHON)}}
        write_json(folder.new(MANIFEST), manifest)
    return manifest


def checked_inputs(model: ProgramTransformer, data: Dataset, exhaustive: int) -> tuple[list[Sequence[str]], int | None]:
    """What a program and its network are compared on: all splits, random sequences of every length, and all sequences
    where they are few enough.

    Returns:
        the sequences, and up to how many symbols they are all there; None if they are not.
    """
    splits = [data.train, data.valid, *([] if data.test is None else [data.test])]
    inputs: list[Sequence[str]] = [tokens for split in splits for tokens, _ in split.examples]
    spec = model.spec
    symbols = [token for token in spec.vocabulary if token not in (PAD, UNK, spec.bos, spec.eos)]
    bos, eos, longest = _frame(spec, data.train.examples, data.context)
    inputs += random_inputs(symbols, longest, _RANDOM, 0, bos, eos)
    if sum(len(symbols) ** length for length in range(1, longest + 1)) > exhaustive:
        return inputs, None
    return [*inputs, *every_input(symbols, longest, bos, eos)], longest


def symbols_of(program: Program) -> list[str]:
    """The tokens that are no marks."""
    return [token for token in program.vocabulary or () if token not in (PAD, UNK, program.bos, program.eos)]


def _frame(spec: NetworkSpec, examples: Sequence[Example], context: int) -> tuple[str | None, str | None, int]:
    """The marks that sequences have, and the most symbols between them."""
    tokens = examples[0][0]
    bos = spec.bos if tokens[0] == spec.bos else None
    eos = spec.eos if tokens[-1] == spec.eos else None
    return bos, eos, max(1, context - (bos is not None) - (eos is not None))


def difference(report: VerificationReport) -> str:
    """The first difference in one sentence."""
    first = report.first or {}
    where = "" if first.get("place") is None else f" at place {first['place']}"
    variable = first.get("variable")
    told = "" if not variable else f" The first variable that differs is '{variable['name']}'."
    theirs = first.get(report.against)
    if theirs == first.get("program"):  # as of a program that was made short
        told += " Their answers are the same there, and their logits are not."
    return (
        f"The program and the {report.against} differ on {report.different} of {report.places} places; first on"
        f" {' '.join(first.get('tokens', []))!r:.200}{where}: program {first.get('program')!r}, {report.against}"
        f" {theirs!r}.{told}"
    )
