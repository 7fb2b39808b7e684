"""A source with several splits gives the one for training, and says so, or the one that was named: never the test."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from lmlab.data import (
    Document,
    FolderSource,
    JsonlSource,
    MDSSource,
    MDSWriter,
    Reject,
    TextSource,
    WebDatasetSource,
    record_source,
    source_settings,
)
from lmlab.data.sources.reading.splits import choose_files
from lmlab.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(folder, names):
    """A file for each name, whose one text is the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pyarrow.table({"text": [name]}), path)
        elif path.suffix in (".jsonl", ".json"):
            path.write_text(json.dumps({"text": name}) + "\n")
        else:
            path.write_text(name)


def texts(source):
    return sorted(each.text for each in source.read() if isinstance(each, Document))


LAYOUTS = {
    "files": ["train.jsonl", "test.jsonl", "validation.jsonl"],
    "spellings": ["training.jsonl", "dev.jsonl", "eval.jsonl"],
    "shards": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
               "data/test-00000-of-00001.parquet"],
    "folders": ["x/train/0.jsonl", "x/test/0.jsonl", "x/val/a/0.jsonl"],
    "named data sets": ["squad_train.jsonl", "squad-test.jsonl"],
    "of the Hub, with kinds": ["train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet",
                               "test_sft-00000-of-00001.parquet"],
    "with what has no label": ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet",
                               "unsupervised-00000-of-00001.parquet"],
    "dots": ["c4-train.00000-of-01024.jsonl", "c4-validation.00000-of-00008.jsonl"],
    "what lmlab held out": ["train.jsonl", "heldout.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["{}", "file://{}", "{}/**/*.*"])
def test_of_several_splits_the_one_for_training_is_taken_and_told(layout, place, tmp_path, capsys):
    names = LAYOUTS[layout]
    write(tmp_path, names)
    source = record_source(place.format(tmp_path))
    expected = sorted(name for name in names if "train" in name)
    assert texts(source) == expected
    notice, *_ = source.notices()
    assert "several splits" in notice and "left out" in notice and notice in capsys.readouterr().err
    assert source.fingerprint() != source.model_copy(update={"split": "all"}).fingerprint()
    assert texts(source.model_copy(update={"split": "all"})) == sorted(names)


def test_a_split_is_named(tmp_path):
    names = LAYOUTS["of the Hub, with kinds"]
    write(tmp_path, names)
    source = record_source(str(tmp_path))
    for split, expected in (("train_gen", [names[1]]), ("test", [names[2]]), ("train", names[:2])):
        named = source.model_copy(update={"split": split})
        assert texts(named) == sorted(expected) and named.notices() == []
    with pytest.raises(UserError, match="has no split 'validation'; it holds the splits test_sft, train_gen and"):
        texts(source.model_copy(update={"split": "validation"}))


def test_a_place_that_names_a_split_is_taken_at_its_word(tmp_path):
    write(tmp_path, LAYOUTS["folders"] + LAYOUTS["files"])
    for location, expected in (
        ("test.jsonl", ["test.jsonl"]),
        ("x/test", ["x/test/0.jsonl"]),
        ("x/te*", None),
        ("te[s]t*.jsonl", None),
        ("test*.jsonl", ["test.jsonl"]),
    ):
        source = JsonlSource(path=str(tmp_path / location))
        if expected:
            assert texts(source) == expected and source.notices() == []


@pytest.mark.parametrize("names", [["test.jsonl"], ["test.jsonl", "validation.jsonl"]])
def test_what_holds_no_split_for_training_must_be_told_which(names, tmp_path):
    write(tmp_path, names)
    with pytest.raises(UserError, match=r"none of them is called train.*\n.*split: test"):
        JsonlSource(path=str(tmp_path)).files()
    assert texts(JsonlSource(path=str(tmp_path), split="test")) == ["test.jsonl"]


def test_a_test_beside_files_without_a_name_is_left_out(tmp_path):
    write(tmp_path, ["corpus.jsonl", "corpus_test.jsonl"])
    source = JsonlSource(path=str(tmp_path))
    assert texts(source) == ["corpus.jsonl"] and "left out test" in source.notices()[0]


def test_a_dataset_dict_that_datasets_saved(tmp_path, lmlab):
    datasets = pytest.importorskip("datasets")
    rows = {name: [{"text": f"{name} {number} " + "word " * 99} for number in range(40)] for name in ("train", "test")}
    made = {name: datasets.Dataset.from_list(each) for name, each in rows.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "D"))
    keep = ("--vocab-size", "300", "--set", "documents.near_duplicate_threshold=null", "--out", tmp_path / "run")
    shown = lmlab("tokenize", tmp_path / "D", *keep)
    assert shown.code == 0 and "took split train" in shown.err and "left out test" in shown.err
    written = [(tmp_path / "run" / "documents" / f"{part}.jsonl").read_text() for part in ("train", "heldout")]
    assert not any('"test ' in each for each in written)
    assert "took split train" in json.loads((tmp_path / "run" / "documents" / "collect.json").read_text())["notices"][0]
    datasets.DatasetDict({"de": made["train"], "fr": made["test"]}).save_to_disk(str(tmp_path / "E"))
    with pytest.raises(UserError, match="the splits de and fr"):
        record_source(str(tmp_path / "E")).files()
    assert len(texts(record_source(str(tmp_path / "E")).model_copy(update={"split": "fr"}))) == 40


def test_splits_of_mds(tmp_path):
    for split in ("train", "val"):
        with MDSWriter({"text": "str"}, tmp_path / split) as writer:
            writer.write({"text": split})
    source = MDSSource(path=str(tmp_path))
    assert texts(source) == ["train"] and "left out validation" in source.notices()[0]
    assert texts(MDSSource(path=str(tmp_path), split="val")) == ["val"]


def test_splits_within_a_file(tmp_path):
    rows = [{"text": name, "split": name} for name in ("train", "test", "dev", "train")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(JsonlSource(path=str(tmp_path / "a.jsonl")).read())
    assert [each.text for each in found if isinstance(each, Document)] == ["train", "train"]
    assert [(each.kind, each.reason) for each in found if isinstance(each, Reject)] == [
        ("split", "of the split test"),
        ("split", "of the split dev"),
    ]
    assert texts(JsonlSource(path=str(tmp_path / "a.jsonl"), split="validation")) == ["dev"]
    assert len(texts(JsonlSource(path=str(tmp_path / "a.jsonl"), split="all"))) == 4
    odd = [{"text": str(n), "part": "ab"[n % 2]} for n in range(4)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    assert texts(JsonlSource(path=str(tmp_path / "b.jsonl"), split_field="part", split="a")) == ["0", "2"]
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(record_source(str(tmp_path / "a.parquet"))) == ["train", "train"]


def test_splits_within_an_archive(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in ("train/1.txt", "test/2.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            file.addfile(member, io.BytesIO(name.encode()))
    assert texts(WebDatasetSource(path=str(tmp_path / "a.tar"), text_field="text")) == ["train/1.txt"]


def test_text_has_splits_only_where_names_are_alike(tmp_path):
    write(tmp_path / "w", ["wiki.train.tokens", "wiki.test.tokens", "wiki.valid.tokens"])
    assert texts(TextSource(path=str(tmp_path / "w"))) == ["wiki.train.tokens"]
    books = ["The Test.txt", "Train to Pakistan.txt", "Emma.txt"]
    write(tmp_path / "books", books)
    assert texts(TextSource(path=str(tmp_path / "books"))) == sorted(books)
    code = ["train.py", "test.py", "eval.py", "tests/test_train.py"]
    write(tmp_path / "code", code)
    assert texts(TextSource(path=str(tmp_path / "code"))) == sorted(code)


def test_splits_of_a_folder_of_several_kinds(tmp_path):
    write(tmp_path, ["train.jsonl", "more_train.parquet", "test.jsonl", "README.md"])
    assert texts(FolderSource(path=str(tmp_path))) == ["more_train.parquet", "train.jsonl"]
    assert source_settings(str(tmp_path), {"split": "test"})["split"] == "test"


def test_files_of_other_kinds_of_parts_are_no_splits():
    names = ["/d/en-00000-of-00002.parquet", "/d/fr-00000-of-00002.parquet"]
    assert choose_files("/d", names, None).files == names


CARD = """---
license: mit
configs:
- config_name: en
  default: true
  data_files:
  - split: train
    path: "en/part-*.jsonl"
  - split: probe
    path: en/held/**
- config_name: de
  data_files: "de/*.jsonl"
---
# A data set
"""
CARD_FILES = ["en/part-0.jsonl", "en/part-1.jsonl", "en/held/a/x.jsonl", "de/part.jsonl", "more.jsonl"]


def carded(folder, text=CARD, names=CARD_FILES):
    write(folder, names)
    (folder / "README.md").write_text(text)
    return record_source(f"{folder}/**/*.jsonl") if text == "glob" else JsonlSource(path=str(folder))


def test_the_readme_of_a_data_set_says_which_files_are_which_split(tmp_path, capsys):
    source = carded(tmp_path)
    assert texts(source) == ["en/part-0.jsonl", "en/part-1.jsonl"]
    (notice,) = source.notices()
    assert "took split train of the configuration en (2 of 5 files) and left out probe" in notice and "de" in notice
    assert texts(source.model_copy(update={"split": "probe"})) == ["en/held/a/x.jsonl"]
    assert len(texts(source.model_copy(update={"split": "all"}))) == 3
    with pytest.raises(UserError, match="it holds the splits probe and train"):
        texts(source.model_copy(update={"split": "test"}))
    # a folder below it was chosen by the user, whatever the README says
    assert texts(JsonlSource(path=str(tmp_path / "de"))) == ["de/part.jsonl"]
    (found,) = [each for each in source_settings(str(tmp_path), {"split": "probe"}).items() if each[0] == "split"]
    assert found == ("split", "probe")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("train: en/part-0.jsonl\n    test: [en/part-1.jsonl]", ["en/part-0.jsonl"]),
        ("- en/part-0.jsonl\n    - en/part-1.jsonl", ["en/part-0.jsonl", "en/part-1.jsonl"]),
        ("- split: test\n      path: en/part-0.jsonl", ["en/part-0.jsonl"]),
        ("- split: test\n      path: nothing-*", None),
        ("7", None),
    ],
    ids=["mapping", "list", "one split", "no such file", "nonsense"],
)
def test_the_forms_of_data_files(files, expected, tmp_path):
    text = f"---\nconfigs:\n- config_name: x\n  data_files:\n    {files}\n---\n"
    source = carded(tmp_path, text)
    assert texts(source) == (expected or sorted(CARD_FILES))


def test_without_a_default_configuration_the_files_must_be_named(tmp_path):
    with pytest.raises(UserError, match=r"several configurations \(de, en\)"):
        texts(carded(tmp_path, CARD.replace("  default: true\n", "")))


def test_patterns_do_not_explode(tmp_path):
    pattern = "/".join(["**", "a*a*a*a*b"] * 40)
    source = carded(
        tmp_path, f'---\nconfigs:\n- config_name: x\n  data_files: "{pattern}"\n---\n', ["a" * 200 + ".jsonl"]
    )
    assert len(texts(source)) == 1


def test_the_command_line_names_a_split(lmlab, tmp_path):
    write(tmp_path / "d", ["train.jsonl", "test.jsonl"])
    shown = lmlab("data", "inspect", tmp_path / "d", "--split", "test")
    assert shown.code == 0 and "test.jsonl" in shown.out and "train.jsonl" not in shown.out
    shown = lmlab("tokenize", tmp_path / "d", "--split", "nothing", "--out", tmp_path / "run")
    assert shown.code == 2 and "has no split 'nothing'" in shown.err
