"""What a tutor is asked, what becomes of long prompts, and that batches and shared chapters change nothing."""

from __future__ import annotations

import json

import pytest
from tutor_questions import question

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.tutor.answering.local import LocalTutor
from lmlab.methods.tutor.answering.prompts import Asking, user_message
from lmlab.methods.tutor.answering.run import answer_locally
from lmlab.methods.tutor.answering.window import ContextOverflow, prompts_for
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.methods.tutor.items.item import MissingColumn, TutorItem, item_id, load_items, read_item

HARD = 'Braces {x} {{y}} \\n \\ {% raw %} ${z} %s """quoted""" and """"four"""" end'


def config(**settings):
    return AnswerConfig(max_new_tokens=12, device="cpu", precision="fp32", **settings)


@pytest.mark.parametrize(
    ("given", "points"),
    [
        (["one", "two words"], ("one", "two words")),
        ("- one\n- two\n  words", ("one", "two words")),
        ("1. one\n2) two words\n\n", ("one", "two words")),
        ("['one', \"two words\"]", ("one", "two words")),
        ('["one", "two words"]', ("one", "two words")),
        (None, ()),
        ("", ()),
    ],
)
def test_key_points_in_every_published_form(given, points):
    assert read_item({"question": "q", "chapter": "c", "key_points": given}).key_points == points


def test_ids_are_those_of_the_specification():
    import hashlib

    assert item_id("q", "p") == hashlib.sha256(b"q\0p").hexdigest()[:16]
    assert read_item({"question": "q", "chapter": "c", "path_to_chapter": "p"}).id == item_id("q", "p")


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(MissingColumn, match=r"no column 'chapter'; there are: question, extra"):
        read_item({"question": "q", "extra": 1})
    with pytest.raises(MissingColumn, match="no column 'question'"):
        read_item({"chapter": "c"}, "closed")
    assert read_item({"question": "q"}, "closed").closed_book


def test_empty_cells_of_tables_are_nothing_and_truth_values_may_be_numbers(tmp_path):
    nan = float("nan")
    rows = [{"question": "q", "chapter": "c", "key_points": ["p"], "path_to_chapter": nan, "difficulty": nan,
             "closed_book": 1.0, "misleading_question": nan, "answer_in_chapter": 0.0, "id": nan},
            {"question": "r", "chapter": nan, "closed_book": 1.0}]  # fmt: skip
    item = read_item(rows[0])
    assert (item.path_to_chapter, item.difficulty, item.id) == ("", "", item_id("q", ""))
    assert (item.closed_book, item.misleading, item.answer_in_chapter) == (True, None, False)
    assert read_item(rows[1], "closed").chapter == ""
    with pytest.raises(MissingColumn, match="no column 'chapter'"):
        read_item(rows[1])


@pytest.mark.parametrize("chapter", ["", " \n\t"])
def test_a_question_without_a_chapter_is_asked_alone_and_not_about_nothing(chapter):
    assert user_message(TutorItem("i", "Why?", chapter), "open") == "Why?"


def test_equal_questions_about_other_chapters_without_paths_are_told_apart(tmp_path):
    rows = [{"question": "What is it about?", "chapter": text} for text in ("one", "two", "one")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [item.id for item in load_items(tmp_path / "q.jsonl")]
    assert ids[0] == ids[2] != ids[1]


def test_a_chapter_arrives_byte_by_byte_within_a_fence_that_it_cannot_end():
    text = user_message(TutorItem("i", "Why {y}?", HARD), "open")
    assert text == (
        f'I am trying to understand the following passage of a textbook:\n"""""\n{HARD}\n"""""\n\nWhy {{y}}?'
    )
    assert user_message(TutorItem("i", "Why?", HARD), "closed") == "Why?"


def test_prompts_in_both_formats_hold_each_special_token_once(tutor):
    tokenizer = Tokenizer.load(tutor)
    for format, golden in (
        ("plain", "<|endoftext|>\nuser: Why <|endoftext|>?<|endoftext|>\nassistant:"),
        ("template", "<|user|>Why <|endoftext|>?<|endoftext|><|assistant|>"),
    ):
        ids = Asking(tokenizer, format).ids("Why <|endoftext|>?")
        assert tokenizer.backend.decode(ids, skip_special_tokens=False) == golden
        assert ids.count(tokenizer.eos_id) == golden.count("<|endoftext|>") - 1  # what the student spells is text


def test_overflow_names_all_offenders_before_any_answer(tutor, tmp_path):
    rows = [question(n, n) for n in range(3)] + [question(n, n, chapter="long " * 2000) for n in range(3, 12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = load_items(tmp_path / "q.jsonl")
    with pytest.raises(ContextOverflow, match="9 of 12 prompts") as told:
        answer_locally(str(tutor), items, config(), tmp_path / "out")
    assert all(item.id in str(told.value) for item in items[3:])
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    rows = answer_locally(str(tutor), items, config(overflow="skip"), tmp_path / "skip")
    assert [row["answer_status"] for row in rows] == ["ok"] * 3 + ["skipped"] * 9
    rows = answer_locally(str(tutor), items, config(overflow="truncate_middle"), tmp_path / "cut")
    assert [bool(row["tutor"].get("tokens_cut")) for row in rows] == [False] * 3 + [True] * 9


def test_a_shortened_chapter_keeps_its_first_and_last_third(tutor):
    asking = Asking(Tokenizer.load(tutor))
    words = [f"w{n}" for n in range(700)]
    item = TutorItem("i", "Why?", " ".join(words))
    whole = len(asking.ids(user_message(item, "open")))
    (prompt,) = prompts_for(asking, [item], "open", int(whole * 0.8), 4, "truncate_middle")
    text = asking.tokenizer.decode(prompt.ids)
    assert len(prompt.ids) <= int(whole * 0.8) - 4 and prompt.cut > 0
    assert " ".join(words[: len(words) // 3]) in text and " ".join(words[-(len(words) // 3) :]) in text
    with pytest.raises(ContextOverflow, match="even without its chapter"):
        prompts_for(asking, [TutorItem("i", "long " * 500, "c")], "open", 200, 4, "truncate_middle")


def test_batches_and_shared_chapters_give_the_tokens_of_one_by_one(tutor, questions):
    items = load_items(questions)
    found = {}
    for name, settings in {"one": {"share": False, "batch_tokens": 1}, "batch": {"share": False}, "share": {}}.items():
        made = LocalTutor.load(str(tutor), config(**settings))
        prompts = prompts_for(made.asking, items, "open", made.limit, 12, "error")
        found[name] = {prompt.item.id: done.output for prompt, done in made.answer(prompts)}
    assert found["one"] == found["batch"] == found["share"]
    assert len(set(found["one"].values())) > 1


def test_a_run_goes_on_where_it_was_cut_off_and_refuses_another_model(tutor, questions, tmp_path):
    items = load_items(questions)
    whole = answer_locally(str(tutor), items, config(), tmp_path / "whole")
    lines = (tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "answers.part-0.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    again = answer_locally(str(tutor), items, config(), tmp_path / "cut")
    for row in (*whole, *again):
        row["tutor"].pop("seconds")
    assert whole == again
    with pytest.raises(UserError, match="other settings"):
        answer_locally(str(tutor), items, config(format="plain"), tmp_path / "cut")


def test_a_window_beyond_the_model_needs_to_be_said_how(tutor):
    with pytest.raises(UserError, match="more than the model's 1024"):
        LocalTutor.load(str(tutor), config(window=4096))
    made = LocalTutor.load(str(tutor), config(window=4096, rope_theta="keep"))
    assert (
        made.limit == 4096
        and made.model.config.rope_theta == LocalTutor.load(str(tutor), config()).model.config.rope_theta
    )
    assert LocalTutor.load(str(tutor), config(rope_theta="1000000")).model.config.rope_theta == 1e6
