"""Programs as files: read back as written, and refused with the node and the reason where they are damaged."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlab.errors import UserError
from lmlab.files import owned, read_json
from lmlab.methods.transformer_programs.analysis.export import write_program
from lmlab.methods.transformer_programs.program.emitting.emit import to_python
from lmlab.methods.transformer_programs.program.files import load_program, save_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Program
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings


def test_a_program_is_read_back_as_written(counting: Program, tmp_path: Path) -> None:
    assert load_program(save_program(counting, tmp_path)) == counting
    assert Interpreter(load_program(tmp_path)).predict([["NA", "nan,\n"]]) == [["once", "once"]]


def _other(program: Program) -> Program:
    """Another program, all of whose files differ."""
    weights = {
        feature: {value: tuple(-each for each in row) for value, row in rows.items()}
        for feature, rows in program.classifier.weights.items()
    }
    count, kind = program.nodes
    return replace(
        program, nodes=(count, replace(kind, default=0)), classifier=replace(program.classifier, weights=weights)
    )


def test_a_program_that_is_replaced_while_it_is_read_comes_with_its_own_tables(
    counting: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, read = _other(counting), Classifier.read
    save_program(counting, tmp_path)

    def late(path: Path, vocabulary: Sequence[str] = ()) -> Classifier:
        monkeypatch.setattr(Classifier, "read", read)
        save_program(other, tmp_path)  # the rules have been read
        return read(path, vocabulary)

    def missing(path: Path, vocabulary: Sequence[str] = ()) -> Classifier:
        late(path, vocabulary)
        raise UserError(f"No such file: '{path}'.")  # as between the removal of the old files and the new ones

    for first in (late, missing):
        save_program(counting, tmp_path)
        monkeypatch.setattr(Classifier, "read", first)
        assert load_program(tmp_path) == other
    (tmp_path / "weights.csv").unlink()
    with pytest.raises(UserError, match="No such file"):
        load_program(tmp_path)

    def again(path: Path, vocabulary: Sequence[str] = ()) -> Classifier:
        save_program(other, tmp_path)
        return read(path, vocabulary)

    monkeypatch.setattr(Classifier, "read", again)
    save_program(other, tmp_path)
    with pytest.raises(UserError, match="anew each time"):
        load_program(tmp_path)


@pytest.mark.parametrize("named", ["", "program.json"])
def test_who_begins_to_read_while_a_program_is_replaced_waits_for_it(
    counting: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    other, change = _other(counting), threading.Event()
    moved = os.replace

    def slowly(source: Any, target: Any) -> None:
        if Path(source).parent != Path(target).parent:  # a new file comes to its place: the manifest says "not done"
            change.set()
            time.sleep(0.02)
        moved(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    monkeypatch.setattr(owned, "_writing", _Nothing())  # the reader is another process
    for program, before in ((other, counting), (counting, other)):
        save_program(before, tmp_path / "it")
        change.clear()
        writer = threading.Thread(target=save_program, args=(program, tmp_path / "it"))
        writer.start()
        assert change.wait(10)
        assert load_program(tmp_path / "it" / named) == program
        writer.join()


class _Nothing(set[Path]):
    def add(self, element: Path) -> None:
        """Forget it."""


def test_a_writing_that_is_killed_pairs_no_program_with_the_tables_of_another(
    counting: Program, tmp_path: Path
) -> None:
    other = _other(counting)
    texts = {to_python(counting): counting, to_python(other): other}
    assert len(texts) == 2
    seen = set[str]()
    for last in range(1, 40):
        place = tmp_path / str(last)
        write_program(counting, place, {})
        child = os.fork()
        if not child:  # dies before its nth change of a name, as by a kill: nothing is tidied up
            _die_at(last)
            write_program(other, place, {})
            os._exit(0)
        killed = os.waitpid(child, 0)[1] != 0
        if read_json(place / "lmlab-files.json")["done"]:
            read = load_program(place)
            assert texts[(place / "program.py").read_text()] == read
            seen.add("former" if read == counting else "new")
        else:
            with pytest.raises(UserError, match="was cut off"):
                load_program(place)
            seen.add("refused")
        save_program(other, place)  # the next writing mends it
        assert load_program(place) == other and not (place / "program.py").exists()
        assert not list(place.glob(".*.tmp"))
        if not killed:
            break
    assert not killed and load_program(place) == other and seen == {"former", "refused", "new"}


def _die_at(last: int) -> None:
    count = 0

    def counted(change: Any) -> Any:
        def changed(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                os._exit(1)
            return change(*arguments, **named)

        return changed

    for name in ("replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="x"), "the format is 'x'"),
        (lambda data: data["nodes"][0].update(op="exec"), "unknown op 'exec'"),
        (lambda data: data["nodes"].reverse(), "reads 'count', which comes only later"),
        (lambda data: data["nodes"][1].update(inputs=["kind"]), "reads 'kind', which comes only later"),
        (lambda data: data["nodes"][0].update(key="cuont"), "reads 'cuont', which does not exist"),
        (lambda data: data["nodes"][0].update(name="a b"), "is not a name"),
        (lambda data: data["nodes"][0].update(name="import"), "is not a name"),
        (lambda data: data["nodes"][1].update(name="count"), "the name 'count' is given twice"),
        (lambda data: data["nodes"][0].update(value="tokens"), "select_sum adds numbers"),
        (lambda data: data["nodes"][0].update(predicate=[["a", 1.5]]), "is not a pair of texts or whole numbers"),
        (lambda data: data["nodes"][0].update(predicate=[["a", True]]), "is not a pair of texts or whole numbers"),
        (
            lambda data: data["nodes"][0].update(key="positions", predicate=[["a", -1]]),
            "the position -1 is out of range",
        ),
        (lambda data: data["nodes"][1].update(table=[[[0, 1], 2]]), r"has 2 values for 1 input\."),
        (lambda data: data["nodes"][1].update(table=[[["a"], 2]]), "does not fit 'count', which is a number"),
        (lambda data: data["nodes"][1].update(table=[[[0], 1], [[0], 2]]), "appears twice with different results"),
        (lambda data: data["nodes"][1].update(extra=1), "unknown key 'extra'"),
        (lambda data: data.update(classifier="../weights.csv"), "must name a file in the same folder"),
        (lambda data: data.update(classifier=".."), "must name a file in the same folder"),
        (lambda data: data.update(classifier="a\0b"), "must name a file in the same folder"),
        (lambda data: data.update(inputs=["tokens", "ones", "clock"]), "unknown input 'clock'"),
        (lambda data: data.update(numerical=["count"]), "'ones' must be among the numerical variables"),
        (lambda data: data.update(max_length=0), "'max_length' must be a whole number from 1 on"),
        (lambda data: data.update(max_length=10**12), "'max_length' is 1e\\+12; at most 100,000 places"),
    ],
)
def test_damaged_programs_are_refused(counting: Program, tmp_path: Path, change: Any, message: str) -> None:
    path = save_program(counting, tmp_path) / "program.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        load_program(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature,value\n", "line 1: a classifier begins with"),
        ("feature,value,a,b\nkind,0,1\n", "row 2: 3 cells, but the header has 4"),
        ("feature,value,a,b\nkind,0,1,nan\n", "row 2: 'nan' is not a finite number"),
        ("feature,value,a,b\nkind,0,1,2\nkind,0,1,2\n", "the value '0' of 'kind' appears twice"),
        ("feature,value,a,b\nother,0,1,2\n", "the classifier's feature 'other' is no variable"),
        ("feature,value,a,b\ncount,0,1,2\n", "must have the one row '_'"),
        ("feature,value,a,b\ncount,_,1,2\ncount,_,3,4\n", "row 3: the value '_' of 'count' appears twice"),
        ("feature,value,a,b\nkind,0,1,0\n", "the classifier has no row for the value 1 of 'kind'"),
    ],
)
def test_damaged_weights_are_refused(counting: Program, tmp_path: Path, text: str, message: str) -> None:
    save_program(counting, tmp_path)
    (tmp_path / "weights.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_program(tmp_path)


def test_tables_keep_every_text(tmp_path: Path) -> None:
    words = ("<pad>", "NA", "null", "None", "nan", "", 'a"b', "c,d", "e\nf", "g\r\nh", "'", "\\", " ")
    embeddings = Embeddings(words, {"var0_embeddings": tuple(range(len(words))), "num_var0_embeddings": (0.5,) * 13})
    embeddings.write(tmp_path / "embeddings.csv")
    assert Embeddings.read(tmp_path / "embeddings.csv") == embeddings
    classifier = Classifier(("x", "y"), {"tokens": {word: (0.1, -1e-30) for word in words}})
    classifier.write(tmp_path / "weights.csv")
    assert Classifier.read(tmp_path / "weights.csv") == classifier


def test_a_pattern_of_categories_is_no_format_string(tmp_path: Path) -> None:
    embeddings = Embeddings(("a",), {"var0_embeddings": (3,)}, "{i.__class__}{j}")
    with pytest.raises(UserError, match="is not a pattern such as"):
        embeddings.values("var0_embeddings")


@pytest.mark.parametrize("name", ["..", "a\0b"])
def test_what_is_no_file_of_a_table_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a file"):
        Classifier.read(tmp_path / name)
