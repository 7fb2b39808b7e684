"""A comparison from its settings to its files: rows of all questions, and the table."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from lmlab.errors import UserError
from lmlab.evals import Evaluator
from lmlab.files import parse_json, read_json, sha256_json, write_json, write_text
from lmlab.methods.autocompressor.comparing.cases import build_cases
from lmlab.methods.autocompressor.comparing.config import CompareConfig
from lmlab.methods.autocompressor.comparing.measure import Row, measure
from lmlab.methods.autocompressor.comparing.table import Line, lines_of
from lmlab.methods.autocompressor.kinds.base import Compressor, chosen, create, require_untrained
from lmlab.methods.autocompressor.kinds.kvzip import KVzipConfig
from lmlab.models import Transformer, kernel_of, known_fingerprint
from lmlab.progress import progress

ABOUT, ROWS, TABLE = "comparison.json", "rows.jsonl", "table.json"


def model_of(evaluator: Evaluator) -> Transformer:
    """The network that makes and reads memories.

    Raises:
        UserError: another library runs it.
    """
    if evaluator.model is None:
        raise UserError("This model is run by another library; memories need a model of lmlab.")
    return evaluator.model


def compare(
    evaluator: Evaluator, config: CompareConfig, out: Path, trained: dict[str, Compressor] | None = None
) -> list[Line]:
    """Measure and write. Rows of cases that an earlier attempt finished with the same settings and model are kept.

    Arguments:
        trained: compressors of kinds that learn, by name.

    Raises:
        UserError: kinds, tasks or lengths that cannot be; or the folder holds another comparison.
    """
    model = model_of(evaluator)
    names = list(dict.fromkeys(["none", "full", *chosen(config.kinds), *(trained or {})]))
    compressors: dict[str, Compressor] = {}
    for name in names:
        if name in (trained or {}):
            compressors[name] = (trained or {})[name]
            continue
        require_untrained(name)
        settings: dict[str, object] = {"sinks": config.sinks, "seed": config.seed}
        compressors[name] = create(name, model, tokenizer=evaluator.tokenizer, **settings)
        for part in compressors[name].modules():
            if isinstance(part, Compressor) and isinstance(part.config, KVzipConfig):
                part.config = KVzipConfig.model_validate({**part.config.model_dump(), "share": config.share})
    cases = build_cases(evaluator.tokenizer, config, model.config.max_seq_len)
    about: dict[str, object] = {
        "settings": config.model_dump(mode="json"),
        "model": known_fingerprint(model),
        "trained": {name: _fingerprint(each) for name, each in (trained or {}).items()},
        "kernel": kernel_of(model),
        "cases": sha256_json([dataclasses.asdict(case) for case in cases]),
    }
    out.mkdir(parents=True, exist_ok=True)
    rows = _finished(out, about)
    done = {row.case for row in rows}
    with progress("compare", len(cases), "contexts", start=len(done)) as advance, open(out / ROWS, "a") as file:
        for group in measure(compressors, cases, config.ratios, config.aware, done):
            file.write(json.dumps([row.record() for row in group]) + "\n")
            file.flush()
            rows += group
            advance()
    order = {case.name: number for number, case in enumerate(cases)}
    lines = lines_of(sorted(rows, key=lambda row: order[row.case]))
    write_json(out / TABLE, about | {"lines": [_numbers(dataclasses.asdict(line)) for line in lines]})
    return lines


def _fingerprint(trained: Compressor) -> str:
    """Of its weights and of its settings, such as the scale of vectors, which are in no weight."""
    return sha256_json([known_fingerprint(trained), trained.config.model_dump(mode="json")])


def _finished(out: Path, about: dict[str, object]) -> list[Row]:
    """The rows of cases that an earlier attempt has finished; a line that was cut off is done again.

    Raises:
        UserError: the folder holds the rows of other settings, another model or another kernel.
    """
    header = out / ABOUT
    if not header.exists():
        write_json(header, about)
        return []
    if read_json(header) != about:
        raise UserError(
            f"'{out}' holds a comparison of other settings, another model or another attention kernel.",
            "Give another folder by --out, or remove it.",
        )
    if not (out / ROWS).exists():
        return []
    whole = [line for line in (out / ROWS).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    write_text(out / ROWS, b"".join(whole).decode())
    return [Row(**row) for line in whole for row in parse_json(line, str(out / ROWS))]


def _numbers(value: object) -> object:
    """The same, with null for what is no number."""
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
