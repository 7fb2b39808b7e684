"""Published rules and redaction by datatrove, and classifiers of fastText, on whole corpora."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import UserError
from lmlab.methods.qurating.analysis.cleaning import RULES, Cleaner, clean_rows
from lmlab.methods.qurating.analysis.fasttext import FastTextScorer
from lmlab.methods.qurating.analysis.score_corpus import score_corpus
from lmlab.methods.qurating.selecting.tables.files import Processes

PROSE = (
    "The river rises in the hills to the north of the old town, and it reaches the sea after a course of ninety.\n"
    "Along its banks there are mills that have been working since the middle of the eighteenth century, when wool"
    " was carried down on barges to be sold.\n"
    "Most of them were built by families who had come with little and who left with a good deal more than that.\n"
    "Today only two are open to visitors, and in one of these a wheel of oak still turns on summer afternoons.\n"
    "The others serve as houses, or have fallen into the water one stone after another.\n"
)


def corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)), "utf-8")
    return path


def model_file(path: Path, words: dict[str, float], labels: tuple[str, str] = ("en", "de"), kind: int = 3) -> Path:
    """A classifier of one dimension: a text's vector is the mean over its words, and the logits are plus and minus
    it.
    """
    entries = [("</s>", 0, 0.0)] + [(word, 0, value) for word, value in words.items()]
    named = [(f"__label__{label}", 1) for label in labels]
    parts = [struct.pack("<ii12id", 793712314, 12, 1, 5, 1, 1, 5, 1, 3, kind, 0, 0, 0, 100, 1e-4)]
    parts.append(struct.pack("<iiiqq", len(entries) + 2, len(entries), 2, 100, -1))
    for name, type_of in [(word, type_of) for word, type_of, _ in entries] + named:
        parts.append(name.encode() + b"\0" + struct.pack("<qb", 10, type_of))
    parts.append(struct.pack("<?qq", False, len(entries), 1) + np.array([v for _, _, v in entries], "<f4").tobytes())
    parts.append(struct.pack("<?qq", False, 2, 1) + np.array([1.0, -1.0], "<f4").tobytes())
    path.write_bytes(b"".join(parts))
    return path


def test_a_classifier_of_fasttext_gives_the_probability_of_its_labels(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    model = model_file(tmp_path / "lid.bin", {"the": 1.0, "der": -2.0})
    scorer = FastTextScorer(model, "__label__en")
    # the end of a line is a word with the vector 0: the mean over two or three words
    wanted = [1 / (1 + math.exp(-2 * x)) for x in (1 / 2, -2 / 2, -1 / 3)]
    assert scorer.score(["the", "der", "the\nder"]) == pytest.approx(wanted, abs=2e-3)  # its sigmoid is a table
    scores, likely = FastTextScorer(model).rate(["the", "der", " \n", "\ud800 the"])
    assert likely == ["en", "de", None, "en"]
    assert np.isnan(scores[2])
    assert scores[1] == pytest.approx(1 - wanted[1], abs=2e-3)


def test_labels_of_fasttext_are_a_column_and_by_one_label_a_filter(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    model = model_file(tmp_path / "lid.bin", {"the": 1.0, "der": -2.0})
    where = corpus(tmp_path / "c.jsonl", ["the", "der der", "the the"])
    assert score_corpus("fasttext", [str(where)], tmp_path / "all", "language", model=model) == 3
    table = pq.read_table(tmp_path / "all" / "00000.parquet")
    assert table["language_label"].to_pylist() == ["en", "de", "en"]
    assert all(each > 0.5 for each in table["language_average"].to_pylist())
    runner = CliRunner()
    found = runner.invoke(
        app,
        f"quality score fasttext --in {where} --model {model} --label en --name en --workers 2 --out {tmp_path / 'en'}",
    )
    assert found.exit_code == 0, found.output
    runner.invoke(app, f"quality filter --in {tmp_path / 'en'} --min en_average=0.5 --out {tmp_path / 'kept'}")
    assert pq.read_table(tmp_path / "kept" / "0-of-1.parquet")["id"].to_pylist() == ["d0", "d2"]


def test_a_damaged_file_of_fasttext_is_refused_before_the_library_reads_it(tmp_path: Path) -> None:
    whole = model_file(tmp_path / "m.bin", {"the": 1.0}).read_bytes()
    for stop in range(0, len(whole), 7):
        cut = tmp_path / "cut.bin"
        cut.write_bytes(whole[:stop])
        with pytest.raises(UserError, match="cut.bin"):
            FastTextScorer(cut)
    (tmp_path / "long.bin").write_bytes(whole + b"x")
    with pytest.raises(UserError, match="bytes where the model has"):
        FastTextScorer(tmp_path / "long.bin")
    (tmp_path / "text.bin").write_text("not a model" * 20)
    with pytest.raises(UserError, match="no model of fastText"):
        FastTextScorer(tmp_path / "text.bin")
    with pytest.raises(UserError, match="word vectors only"):
        FastTextScorer(model_file(tmp_path / "vectors.bin", {"the": 1.0}, kind=1))
    with pytest.raises(UserError, match="no model 'nothing'|There is no model"):
        FastTextScorer(tmp_path / "nothing.bin")
    with pytest.raises(UserError, match="folder"):
        FastTextScorer(tmp_path)


def test_an_unknown_label_and_a_label_without_fasttext_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    model = model_file(tmp_path / "lid.bin", {"the": 1.0})
    with pytest.raises(UserError, match="no label 'fr'"):
        FastTextScorer(model, "fr")
    where = corpus(tmp_path / "c.jsonl", ["the"])
    with pytest.raises(UserError, match="has no labels"):
        score_corpus("dsir", [str(where)], tmp_path / "o", "x", target=str(where), label="en")


def test_rules_decide_as_datatrove_does_and_the_first_that_refuses_gives_the_reason() -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document

    texts = [PROSE, PROSE * 4, "Click here. " * 40, "{ lorem ipsum }", "", "short", PROSE + "no stop at the end"]
    for name, their in RULES.items():
        rule, cleaner = getattr(filters, their)(), Cleaner([name])
        for text in texts:
            document = Document(text=text, id="")
            theirs = rule.filter(document)
            kept = theirs[0] if isinstance(theirs, tuple) else theirs
            ours, reason = cleaner.clean(text)
            assert (ours is not None) == kept, (name, text)
            assert ours is None or ours == document.text
            assert bool(reason) != kept
    both = Cleaner(["gopher-repetition", "c4"])
    assert both.clean("Click here. " * 40)[1].startswith("gopher-repetition: ")
    assert both.clean(PROSE + "A curly bracket { is here.")[1].startswith("c4: ")


def test_cleaned_files_hold_the_kept_rows_by_any_number_of_processes(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    folder = tmp_path / "corpus"
    folder.mkdir()
    corpus(folder / "a.jsonl", [PROSE.strip(), "Click here. " * 40, PROSE + "no stop at the end"])
    corpus(folder / "b.jsonl", [PROSE.replace("Today", "Write to jo@river-town.org. Today")])
    results = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        counts, reasons = clean_rows(
            str(folder), out, ["gopher-repetition", "c4"], redact=True, processes=Processes(workers)
        )
        assert counts == {"rows": 4, "kept": 3, "changed": 2}, reasons
        assert sum(reasons.values()) == 1
        results.append([(out / f"{number}-of-2.parquet").read_bytes() for number in range(2)])
    assert results[0] == results[1]
    first = pq.read_table(tmp_path / "out1" / "0-of-2.parquet").to_pydict()
    assert first == {"id": ["d0", "d2"], "text": [PROSE.strip(), PROSE.strip()]}
    second = pq.read_table(tmp_path / "out1" / "1-of-2.parquet")["text"][0].as_py()
    assert "jo@" not in second
    assert "@example.com" in second or "@" in second


def test_what_cannot_be_cleaned_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    where = corpus(tmp_path / "c.jsonl", [PROSE])
    with pytest.raises(UserError, match="no rule 'gophr'.*gopher"):
        clean_rows(str(where), tmp_path / "o", ["gophr"])
    with pytest.raises(UserError, match="nothing to do"):
        clean_rows(str(where), tmp_path / "o")
    with pytest.raises(UserError, match="no column 'body'"):
        clean_rows(str(where), tmp_path / "o", ["c4"], text="body")
    with pytest.raises(UserError, match="language 'xx'"):
        clean_rows(str(where), tmp_path / "o", ["gopher"], language="xx")
    rated = tmp_path / "rated.jsonl"
    rated.write_text(json.dumps({"id": "a", "text": PROSE, "quality_average": 1.0}) + "\n")
    with pytest.raises(UserError, match="'quality_average' was made from texts"):
        clean_rows(str(rated), tmp_path / "o", ["c4"])
    assert clean_rows(str(rated), tmp_path / "o", ["c4-paragraphs"])[0]["rows"] == 1  # changes no text
    nested = tmp_path / "nested.jsonl"
    nested.write_text(json.dumps({"id": "a", "meta": {"text": PROSE}}) + "\n")
    with pytest.raises(UserError, match="cannot be replaced"):
        clean_rows(str(nested), tmp_path / "n", ["c4"], text="meta.text")


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.null(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_all_types_of_columns_are_cleaned_and_null_stays_null(tmp_path: Path, kind: pa.DataType) -> None:
    pytest.importorskip("datatrove")
    texts = [None, None] if pa.types.is_null(kind) else [None, "", "Write to jo@river-town.org."]
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    notes = pa.array([["a"]] * len(texts), pa.list_(pa.string_view()))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": column, "notes": notes}), tmp_path / "in" / "a.parquet")
    clean_rows(str(tmp_path / "in"), tmp_path / "out", redact=True)
    found = pq.read_table(tmp_path / "out" / "0-of-1.parquet")
    assert found["text"].to_pylist()[:2] == texts[:2] and "jo@" not in str(found["text"].to_pylist())
    assert found["notes"].to_pylist() == [["a"]] * len(texts)


def test_labels_of_fasttext_that_are_no_text_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    whole = model_file(tmp_path / "m.bin", {"the": 1.0}, labels=("xx", "de")).read_bytes()
    (tmp_path / "bytes.bin").write_bytes(whole.replace(b"__label__xx", b"__label__\xff\xfe"))
    with pytest.raises(UserError, match=r"no UTF-8: '__label__\\xff\\xfe'"):
        FastTextScorer(tmp_path / "bytes.bin")
    spaced = model_file(tmp_path / "spaced.bin", {"the": 1.0}, labels=("old English", "de"))
    assert FastTextScorer(spaced, "old English").score(["the"])[0] > 0.5


def test_parts_of_a_file_of_fasttext_that_do_not_fit_are_refused_before_the_library_reads_beyond_them(
    tmp_path: Path,
) -> None:
    pytest.importorskip("fasttext")
    whole = model_file(tmp_path / "m.bin", {"the": 1.0}).read_bytes()
    settings = 8
    wrong = {
        "dimension": (settings, struct.pack("<i", 2)),
        "word n-grams without buckets": (settings + 4 * 5, struct.pack("<i", 2)),
        "parts of words without buckets": (settings + 4 * 10, struct.pack("<i", -9)),
        "a label among the words": (whole.index(b"the\0") + 12, b"\1"),
        "a negative count of a label": (whole.index(b"__label__en\0") + 12, struct.pack("<q", -1)),
        "columns of the output": (len(whole) - 24, struct.pack("<qq", 1, 2)),
    }
    for what, (place, written) in wrong.items():
        file = tmp_path / "wrong.bin"
        file.write_bytes(whole[:place] + written + whole[place + len(written) :])
        with pytest.raises(UserError) as refused:
            FastTextScorer(file)
        assert "do not fit together" in str(refused.value), what
    file.write_bytes(whole[:-8] + struct.pack("<ff", math.nan, 1.0))
    with pytest.raises(UserError, match="cannot tell labels"):
        FastTextScorer(file).score(["the"])
    empty = model_file(tmp_path / "empty.bin", {})
    assert FastTextScorer(empty, "en").score(["the"]) == pytest.approx([0.5], abs=2e-3)  # the end of the line alone
