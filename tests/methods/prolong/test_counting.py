"""Documents that end with questions about all of themselves."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from lmlab.config import validate
from lmlab.data import SourceConfig, read_documents
from lmlab.errors import UserError
from lmlab.methods.prolong.counting import CountedWordsSource

ASKED = "How often does each of these words stand in the text above"


@pytest.fixture
def texts(tmp_path):
    long = " ".join(
        f"Alpha beta{'' if n % 3 else ' Gamma'} delta_{n}, {'ALPHA' if n % 2 else 'theta'}" for n in range(90)
    )
    rows = [{"id": "long", "text": long, "domain": "d"}, {"id": "short", "text": "alpha alpha"}, {"text": 3}]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "jsonl", "path": str(path), "id_field": "id", "domain_field": "domain"}


def test_counts_are_those_of_whole_words_in_any_case(texts):
    source = CountedWordsSource(source=texts, words=3, min_words=100)
    found, short, reject = source.read()
    text, _, told = found.text.partition(ASKED)
    counts = {word: int(count) for word, count in re.findall(r"^(\w+): (\d+)$", told, re.MULTILINE)}
    assert len(counts) == 3
    for word, count in counts.items():
        assert count == len(re.findall(rf"(?<![^\W\d_]){word}(?![^\W\d_])", text, re.IGNORECASE)) > 1
    assert (found.id, found.domain, short.text) == ("long", "d", "alpha alpha") and "text" in reject.reason
    assert [each.text for each in list(source.read())[:2]] == [found.text, short.text]
    others = {next(iter(source.model_copy(update={"seed": seed}).read())).text for seed in range(9)}
    assert len(others) > 1
    shares = [ASKED in next(iter(source.model_copy(update={"seed": n, "share": 0.5}).read())).text for n in range(40)]
    assert 8 < sum(shares) < 32


def test_a_recipe_names_the_source_within_and_what_is_wrong_with_it(texts, tmp_path, lmlab):
    stage = {"kind": "collect", "min_bytes": 0, "heldout_fraction": 0, "max_reject_fraction": 0.5}
    stage["sources"] = [{"kind": "counted_words", "source": texts, "min_words": 50}]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "r", "stages": {"documents": stage}}))
    done = lmlab("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    asked = [ASKED in each.text for each in read_documents(tmp_path / "run" / "documents" / "train.jsonl")]
    assert sorted(asked) == [False, True]
    same = CountedWordsSource(source=texts).fingerprint()
    (tmp_path / "texts.jsonl").write_text('{"text": "another"}\n')
    assert CountedWordsSource(source=texts).fingerprint() != same
    for settings, says in (({"kind": "jsonlines"}, "jsonlines"), ({"kind": "jsonl", "paths": "x"}, "paths")):
        with pytest.raises(UserError, match=says):
            validate(SourceConfig, {"kind": "counted_words", "source": settings}, "here")


def test_words_are_whole_in_any_writing(tmp_path):
    path = tmp_path / "hindi.jsonl"
    words = ["हिन्दी", "किताब", "नमस्ते", "विद्यालय", "漢字漢字", "これはなに"]
    path.write_text(json.dumps({"text": " ".join(words * 40)}))
    source = CountedWordsSource(source={"kind": "jsonl", "path": str(path)}, min_words=10, words=6)
    (found,) = source.read()
    told = dict(re.findall(r"^(\S+): (\d+)$", found.text.partition(ASKED)[2], re.MULTILINE))
    assert told == dict.fromkeys(words[:4], "40")  # no pieces between vowel signs, and no runs of characters


def test_a_source_within_needs_its_kind():
    with pytest.raises(UserError, match="source: the key 'kind' is required"):
        CountedWordsSource(source={"path": "x"})
