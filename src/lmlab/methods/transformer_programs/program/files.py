"""Programs as files: `program.json` with `weights.csv` and `embeddings.csv` beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from lmlab.errors import UserError, did_you_mean, reads
from lmlab.files import only_owned, owned_folder, read_mapping, read_whole, write_json
from lmlab.methods.transformer_programs.program.domains import domains
from lmlab.methods.transformer_programs.program.ir import (
    FORMAT,
    LOOKUP,
    SELECT_CLOSEST,
    SELECT_SUM,
    Lookup,
    Node,
    Program,
    Select,
    Value,
    check,
    is_number,
    is_value,
    ordered,
)
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings
from lmlab.runs import Artifact

PROGRAM, WEIGHTS, EMBEDDINGS = "program.json", "weights.csv", "embeddings.csv"
WRITER = "lmlab programs"
"""Whose a program's folder is: export, import and minimize may each replace what another of them wrote."""
_KNOWN = {
    "format", "inputs", "numerical", "nodes", "classifier", "embeddings", "categories", "autoregressive",
    "pool_outputs", "bos", "eos", "vocabulary", "max_length", "bounded", "lower", "replace_numbers",
}  # fmt: skip
_FIELDS = {
    SELECT_CLOSEST: {"op", "name", "key", "query", "value", "predicate", "causal"},
    SELECT_SUM: {"op", "name", "key", "query", "value", "predicate", "causal"},
    LOOKUP: {"op", "name", "inputs", "table", "default"},
}


@dataclass(frozen=True)
class StoredProgram(Artifact):
    """A program's files: `program.json` or its directory, the stage that trained it, or a run with one."""

    called: ClassVar[str] = "a Transformer Program"

    @classmethod
    @reads("what is looked for there")
    def find(cls, place: str | Path) -> Self:
        """As `Artifact.find`; a file that is being replaced, and so missing for a moment, is waited for."""
        return read_whole(Path(place).expanduser().parent, lambda: cls._found(place))

    @classmethod
    def _found(cls, place: str | Path) -> Self:
        path = Path(place).expanduser()
        if not path.is_dir():
            only_owned([str(path)], path.parent)
        return super().find(place)

    @classmethod
    def _at(cls, path: Path) -> Self | None:
        places = [path / PROGRAM, path / "program" / PROGRAM] if path.is_dir() else [path]
        found = (read_whole(each.parent, partial(cls._whole, each)) for each in places)
        return next((each for each in found if each is not None), None)

    @classmethod
    def _whole(cls, path: Path) -> Self | None:
        only_owned([str(path)], path.parent)  # or tables of one program would run with the rules of another
        return cls(path) if path.is_file() else None

    @classmethod
    def _remedy(cls) -> str:
        return f"Name {PROGRAM}, its directory, a stage train_program, or a run with one."


def load_program(path: str | Path) -> Program:
    """Read a program.

    Arguments:
        path: whatever `StoredProgram.find` takes.

    Raises:
        UserError: nothing is there, its writing was cut off, or the file is not of the format; the message names the
            node and what is wrong with it.
    """
    return read_whole(StoredProgram.find(path).path.parent, lambda: _read(StoredProgram.find(path).path))


def _read(path: Path) -> Program:
    """The program of a file, and of the tables beside it."""
    data, where = read_mapping(path), f"'{path}'"
    if data.get("format") != FORMAT:
        raise UserError(f"{where}: the format is {data.get('format')!r:.60}, not '{FORMAT}'.")
    vocabulary = _names(data, "vocabulary", where) if data.get("vocabulary") is not None else None
    classifier = Classifier.read(_beside(path, data, "classifier", WEIGHTS), vocabulary or ())
    embeddings = None
    if data.get("embeddings") is not None:
        categories = _text(data, "categories", where) if data.get("categories") is not None else None
        embeddings = Embeddings.read(_beside(path, data, "embeddings", EMBEDDINGS), categories)
    nodes = data.get("nodes")
    if not isinstance(nodes, list):
        raise UserError(f"{where}: 'nodes' must be a list.")
    inputs = _names(data, "inputs", where)
    program = Program(
        inputs=inputs,
        numerical=frozenset(_names(data, "numerical", where)),
        nodes=tuple(_node(node, f"{where}, node {number}") for number, node in enumerate(nodes)),
        classifier=classifier,
        embeddings=embeddings,
        autoregressive=_flag(data, "autoregressive", where),
        pool_outputs=_flag(data, "pool_outputs", where),
        bos=_text(data, "bos", where) if "bos" in data else "<s>",
        eos=_text(data, "eos", where) if "eos" in data else "</s>",
        vocabulary=vocabulary,
        max_length=_length(data, where),
        bounded=_flag(data, "bounded", where),
        lower=_flag(data, "lower", where),
        replace_numbers=_flag(data, "replace_numbers", where),
        about={key: value for key, value in data.items() if key not in _KNOWN},
    )
    program = check(complete(program), where)
    _check_constants(program, where)
    return program


def _check_constants(program: Program, where: str) -> None:
    """Rows that are all equal hold for any value, so that a value whose row is lost would be answered, not refused."""
    known = domains(program)
    for name in program.classifier.features:
        if name in program.numerical or program.classifier.matters(name):
            continue  # a value without a row is refused at its place
        rows = program.classifier.rows_of(name)
        lost = next((each for each in ordered(known.get(name) or ()) if str(each) not in rows), None)
        if lost is not None:
            raise UserError(f"{where}: the classifier has no row for the value {lost!r:.60} of '{name}'.")


def save_program(program: Program, directory: str | Path) -> Path:
    """Write a program's files in place of those of an earlier program, all of them or none; the directory.

    What `lmlab programs` wrote beside an earlier program, such as its Python text, goes with it.

    Raises:
        UserError: another command wrote the directory, or another process is writing it.
    """
    directory = Path(directory)
    with owned_folder(directory, WRITER) as folder:
        write_files(program, folder.new)
    return directory


def write_files(program: Program, place: Callable[[str], Path]) -> None:
    """Write a program's files.

    Arguments:
        place: where to write a file of a name.
    """
    data: dict[str, Any] = {
        "format": FORMAT,
        **program.about,
        "autoregressive": program.autoregressive,
        "pool_outputs": program.pool_outputs,
        "bos": program.bos,
        "eos": program.eos,
        "inputs": list(program.inputs),
        "numerical": [name for name in program.variables if name in program.numerical],
        "nodes": [node_record(node) for node in program.nodes],
        "classifier": WEIGHTS,
    }
    if program.vocabulary is not None:
        data["vocabulary"] = list(program.vocabulary)
    if program.max_length is not None:
        data["max_length"] = program.max_length
    data |= {name: True for name in ("bounded", "lower", "replace_numbers") if getattr(program, name)}
    if program.embeddings is not None:
        data |= {"embeddings": EMBEDDINGS, "categories": program.embeddings.categories}
        program.embeddings.write(place(EMBEDDINGS))
    program.classifier.write(place(WEIGHTS))
    write_json(place(PROGRAM), data)


def complete(program: Program) -> Program:
    """The same with vocabulary and length, where only its tables tell them."""
    found: dict[str, Any] = {}
    rows = program.classifier.weights
    if program.vocabulary is None:
        if program.embeddings is not None:
            found["vocabulary"] = program.embeddings.words
        elif "tokens" in rows:
            found["vocabulary"] = tuple(rows["tokens"])
    if program.max_length is None and "positions" in rows:
        found["max_length"] = len(rows["positions"])
    return _with(program, found)


def _with(program: Program, found: Mapping[str, Any]) -> Program:
    from dataclasses import replace

    return replace(program, **found) if found else program


def node_record(node: Node) -> dict[str, Any]:
    """A node as it stands in the file."""
    if isinstance(node, Select):
        record = {"op": node.op, "name": node.name, "key": node.key, "query": node.query, "value": node.value}
        pairs = [list(pair) for pair in node.predicate]
        return record | {"predicate": pairs} | ({"causal": True} if node.causal else {})
    table = [[list(key), node.table[key]] for key in ordered_keys(node.table)]
    return {"op": LOOKUP, "name": node.name, "inputs": list(node.inputs), "table": table, "default": node.default}


def ordered_keys(table: Mapping[tuple[Any, ...], Value]) -> list[tuple[Any, ...]]:
    """The keys of a table in one order, whatever their kinds."""
    return sorted(table, key=lambda key: [(isinstance(each, str), each) for each in key])


def _node(data: Any, where: str) -> Node:
    if not isinstance(data, dict):
        raise UserError(f"{where} is not a mapping.")
    name = data.get("name")
    if not isinstance(name, str):
        raise UserError(f"{where} has no name.")
    where = f"{where} '{name:.60}'"
    op = data.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        raise UserError(f"{where}: unknown op {op!r:.60}. {did_you_mean(op, _FIELDS)}")
    for key in data:
        if key not in _FIELDS[op]:
            raise UserError(f"{where}: unknown key '{key:.60}'. {did_you_mean(key, _FIELDS[op])}")
    for key in sorted(_FIELDS[op] - {"causal", "default"}):
        if key not in data:
            raise UserError(f"{where}: the key '{key}' is required.")
    if op == LOOKUP:
        return _lookup(data, name, where)
    for key in ("key", "query", "value"):
        _text(data, key, where)
    pairs = data["predicate"]
    if not isinstance(pairs, list):
        raise UserError(f"{where}: 'predicate' must be a list of pairs.")
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_value, pair))):
            raise UserError(f"{where}: {pair!r:.120} is not a pair of texts or whole numbers.")
    predicate = tuple(dict.fromkeys((q, k) for q, k in pairs))
    return Select(op, name, data["key"], data["query"], data["value"], predicate, _flag(data, "causal", where))


def _lookup(data: dict[str, Any], name: str, where: str) -> Lookup:
    rows = data["table"]
    table: dict[tuple[Value | float, ...], Value] = {}
    if not isinstance(rows, list):
        raise UserError(f"{where}: 'table' must be a list of rows [[key, ...], result].")
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], list)):
            raise UserError(f"{where}: {row!r:.120} is not a row [[key, ...], result].")
        key, result = tuple(row[0]), row[1]
        if not all(is_value(each) or is_number(each) for each in key) or not is_value(result):
            raise UserError(f"{where}: {row!r:.120} holds what is neither a text nor a number.")
        if table.setdefault(key, result) != result:
            raise UserError(f"{where}: the key {row[0]!r:.120} appears twice with different results.")
    default = data.get("default")
    if default is not None and not is_value(default):
        raise UserError(f"{where}: the default {default!r:.60} is neither a text nor a whole number.")
    return Lookup(name, _names(data, "inputs", where), table, default)


def _names(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where}: '{key}' must be a list of texts.")
    return tuple(value)


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{key}' must be a text.")
    return value


def _flag(data: Mapping[str, Any], key: str, where: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise UserError(f"{where}: '{key}' must be true or false.")
    return value


def _length(data: Mapping[str, Any], where: str) -> int | None:
    value = data.get("max_length")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"{where}: 'max_length' must be a whole number from 1 on.")
    return value


def _beside(path: Path, data: Mapping[str, Any], key: str, usual: str) -> Path:
    """The file that a program names, which must stand beside it."""
    name = data.get(key, usual)
    if not isinstance(name, str) or not name or Path(name).name != name or name == ".." or "\0" in name:
        raise UserError(f"'{path}': '{key}' must name a file in the same folder, not {name!r:.80}.")
    return path.parent / name
