"""Dialogues as sequences: the segments and the mask of the published recipe, to the letter, without its faults."""

from __future__ import annotations

import hashlib
import json
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data import PackedRows, TokenizedCorpus, Tokenizer
from lmlab.methods.tutor.answering.prompts import user_message
from lmlab.methods.tutor.config import FormatConfig, MixConfig
from lmlab.methods.tutor.dialogues.encode import IGNORED, encode_segments, format_record
from lmlab.methods.tutor.dialogues.mix import folder_domain, write_dialogues
from lmlab.methods.tutor.dialogues.record import (
    EmptyConversation,
    EmptyTurn,
    MissingRoleKey,
    NothingLearned,
    UnfitRecord,
    UnknownMode,
)
from lmlab.methods.tutor.dialogues.segments import EXAM_ROLES, MATH_ROLES, math_segments, segments_of
from lmlab.methods.tutor.items.item import TutorItem
from lmlab.models import ModelConfig, Transformer

DIALOGUE = "Sure!###STUDENT: What is a parsec?\nTEACHER: A unit.\nSTUDENT: Of what?\nTEACHER: Of length.###bye"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([string.printable * 20], 300)


def told(record, seed=0):
    """Segments as texts with B and E, and whether they are learned."""
    return [(each.text("<B>", "<E>"), each.learned) for each in segments_of(record, seed)]


def test_openbook_masks_chapter_and_questions():
    record = {"mode": "openbook", "conversation": ["The chapter.", "Why?", "So.", "And?", "Thus."]}
    assert told(record) == [
        ("The chapter.<E>\n<B>", False),
        ("\nuser: Why?<E>", False),
        ("\nassistant: So.<E>", True),
        ("\nuser: And?<E>", False),
        ("\nassistant: Thus.<E>", True),
    ]


def test_closedbook_begins_with_the_teacher():
    record = {"mode": "closedbook", "conversation": ["Welcome.", "Hi.", "Today..."]}
    assert told(record) == [
        ("<B>", False),
        ("\nassistant: Welcome.<E>", True),
        ("\nuser: Hi.<E>", False),
        ("\nassistant: Today...<E>", True),
    ]


def test_student_start_has_the_chapter_first():
    record = {"mode": "singleturn", "name": "singleturn_studentstart", "conversation": ["Ch.", DIALOGUE]}
    assert told(record) == [
        ("Ch.<E>\n<B>", False),
        ("\nuser: What is a parsec?<E>", False),
        ("\nassistant: A unit.<E>", True),
        ("\nuser: Of what?<E>", False),
        ("\nassistant: Of length.<E>", True),
    ]


def test_teacher_start_learns_every_turn():
    text = "###TEACHER: Hello.\nSTUDENT: Hi.\nTEACHER: Alone"
    record = {"mode": "singleturn", "name": "teacherstart", "conversation": ["Ch.", text]}
    assert told(record) == [("<B>", False), ("\nassistant: Hello.<E>", True), ("\nuser: Hi.<E>", True)]


def test_exams_draw_one_pair_of_roles_a_record():
    def exam(n):
        text = f"### QUESTION: {n}? ANSWER: yes QUESTION: no"
        return {"mode": "singleturn", "name": "generateexam", "conversation": ["Ch.", text]}

    drawn = [
        tuple(text.replace("<E>", "").rstrip("?0123456789yes") for text, _ in told(exam(n))[1:]) for n in range(90)
    ]
    assert set(drawn) == set(EXAM_ROLES)
    assert told(exam(3)) == told(exam(3))
    assert [told(exam(n), seed=1) for n in range(9)] != [told(exam(n)) for n in range(9)]
    assert all(learned for _, learned in told(exam(0))[1:])


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("STUDENT: a TEACHER: b", ["a", "b"]),  # without marks nothing is cut, though the reference cuts two letters
        ("x ### STUDENT: a TEACHER: b ### y ### z", ["a", "b  y"]),
        ("STUDENT: : a\n TEACHER:b  ", ["a", "b"]),
        ("STUDENT: a STUDENT: b TEACHER: c", ["b", "c"]),
        ("STUDENT: a TEACHER: STUDENT: b TEACHER: c", ["a", "b", "c"]),  # the empty turn goes, the others keep roles
        ("STUDENT: a TEACHER: b TEACHER: c STUDENT: d TEACHER: e", ["d", "e"]),
    ],
)
def test_dialogues_in_one_piece_are_split_by_role_words(text, turns):
    record = {"mode": "singleturn", "name": "studentstart", "conversation": ["Ch.", text]}
    found = [(t.removesuffix("<E>").partition(": ")[2], t.startswith("\nassistant"), on) for t, on in told(record)[1:]]
    assert [each[0] for each in found] == turns
    assert all(teacher == learned for _, teacher, learned in found)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"mode": "other", "conversation": ["a"]}, UnknownMode),
        ({"mode": "singleturn", "name": "x", "conversation": ["a"]}, UnknownMode),
        ({"mode": "openbook", "conversation": []}, EmptyConversation),
        ({"mode": "openbook"}, EmptyConversation),
        ({"mode": "singleturn", "name": "studentstart", "conversation": [DIALOGUE]}, EmptyConversation),
        ({"mode": "openbook", "conversation": ["a", " \n", "b"]}, EmptyTurn),
        ({"mode": "closedbook", "conversation": ["a", None]}, EmptyTurn),
        ({"mode": "singleturn", "name": "studentstart", "conversation": ["c", "STUDENT: only"]}, MissingRoleKey),
        ({"mode": "singleturn", "name": "generateexam", "conversation": ["c", "nothing"]}, MissingRoleKey),
        ({"mode": "openbook", "conversation": ["chapter", "question"]}, NothingLearned),
    ],
)
def test_what_cannot_be_learned_from_says_why(record, error, tokenizer):
    with pytest.raises(error):
        format_record(record, tokenizer)


def test_special_tokens_in_text_stay_text(tokenizer):
    record = {"mode": "openbook", "conversation": [f"a{tokenizer.eos_token}", "q", f"b{tokenizer.eos_token}c"]}
    made = format_record(record, tokenizer)
    assert made.ids.count(tokenizer.eos_id) == 4  # three ends and a beginning, which is the same token here
    assert tokenizer.backend.decode(made.ids, skip_special_tokens=False) == made.text


def test_a_long_dialogue_is_cut_between_turns(tokenizer):
    record = {"mode": "openbook", "conversation": ["chapter", "q1", "a1", "q2", "a2"]}
    whole = format_record(record, tokenizer)
    for size in range(len(whole.ids) + 1):
        try:
            made = format_record(record, tokenizer, size)
        except NothingLearned:
            assert size < whole.segments.index(3)
            continue
        assert len(made.ids) <= size and made.ids == whole.ids[: len(made.ids)]
        assert len(made.ids) == len(whole.ids) or whole.segments[len(made.ids)] > made.segments[-1]


TURNS = st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=3, max_size=7)


@given(TURNS, st.sampled_from(["openbook", "closedbook"]))
def test_segments_are_the_text_and_learned_tokens_those_of_learned_segments(tokenizer, turns, mode):
    try:
        segments = segments_of({"mode": mode, "conversation": turns})
        made = encode_segments(segments, tokenizer)
    except UnfitRecord:
        return
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    assert made.text == "".join(each.text(begin, end) for each in segments)
    assert tokenizer.backend.decode(made.ids, skip_special_tokens=False) == made.text
    alone = [encode_segments([each], tokenizer).ids for each in segments if each.learned]
    assert [label for label in made.labels if label != IGNORED] == [id for each in alone for id in each]
    assert len(made.ids) == len(made.labels) == len(made.segments)


def test_the_loss_does_not_see_what_a_masked_turn_says_at_its_own_places(tokenizer):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2))

    def gradient(question):
        model.zero_grad()
        made = format_record({"mode": "openbook", "conversation": ["c", question, "answer"]}, tokenizer)
        logits = model(torch.tensor([made.ids])).logits_BTV
        logits.retain_grad()
        labels = torch.tensor(made.labels[1:])
        torch.nn.functional.cross_entropy(logits[0, :-1], labels, ignore_index=IGNORED).backward()
        learned = np.array([label != IGNORED for label in made.labels[1:]])
        return logits.grad[0, :-1].abs().sum(-1).numpy(), learned

    for question in ("why", "how so, then"):
        found, learned = gradient(question)
        assert (found[~learned] == 0).all() and (found[learned] > 0).all()


def test_mathematics_is_joined_learned_and_its_remainder_kept(tokenizer, tmp_path):
    rows = [{"query": f"What is {n} + 1?", "response": f"It is {n + 1}."} for n in range(23)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = MixConfig(metamath=str(tmp_path / "math.jsonl"))
    account = write_dialogues(None, tokenizer, config, tmp_path / "out")
    assert account.sequences == {"metamath": 3} and account.tokens == account.learned_tokens
    shard = TokenizedCorpus(tmp_path / "out").shards[0]
    texts = [
        tokenizer.backend.decode(shard.tokens[start:end].tolist(), skip_special_tokens=False)
        for start, end in zip([0, *shard.ends[:-1]], shard.ends, strict=True)
    ]
    assert sorted(text.count("What is") for text in texts) == [3, 10, 10]
    order = np.random.default_rng(42).permutation(23)
    places = [*np.random.default_rng(42).permutation(3)]
    first = math_segments([(rows[n]["query"], rows[n]["response"]) for n in order[:10]], 0, 0)
    assert texts[places.index(0)] == encode_segments(first, tokenizer).text


def test_roles_of_mathematics_are_drawn_for_each_sequence():
    drawn = {
        tuple(each.text("", "").partition("1")[0] for each in math_segments([("1", "1")], 0, n)[1:]) for n in range(99)
    }
    assert drawn == set(MATH_ROLES)


def test_a_mixture_takes_science_counts_what_it_leaves_and_is_the_same_again(tokenizer, tmp_path):
    good = {"mode": "openbook", "conversation": ["c", "q", "a"], "textbook_folder": "textbooks/phys/book"}
    rows = [
        good,
        {**good, "textbook_folder": "textbooks/hist/book"},
        {**good, "mode": "?"},
        {**good, "conversation": []},
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    accounts = [
        write_dialogues(tmp_path / "chat.jsonl", tokenizer, MixConfig(folders=("stem",)), tmp_path / name)
        for name in "ab"
    ]
    assert accounts[0].sequences == {"openbook": 1}
    assert accounts[0].left_out == {"EmptyConversation": 1, "UnknownMode": 1, "other_folder": 1}
    digests = {hashlib.sha256((tmp_path / name / "00000.tokens.npy").read_bytes()).hexdigest() for name in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("folder", "domain"),
    [
        ("textbooks/phys/book", "phys"),
        ("/data/textbooks/phys/book/", "phys"),
        ("./textbooks/hist", "hist"),
        ("phys/book", "phys"),
        ("phys/book/chapter", "phys"),
        ("libretexts/hist/book", "hist"),
        ("hist", "hist"),
        ("", "text"),
        (None, "text"),
    ],
)
def test_the_domain_of_a_folder_is_found_wherever_it_lies(folder, domain):
    assert folder_domain({"textbook_folder": folder}) == domain


def test_the_template_of_a_chat_model_masks_what_it_does_not_write(tokenizer, tmp_path):
    chat = tokenizer.with_chat_template(
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    record = {"mode": "openbook", "conversation": ["chapter", "q", "a", "r", "b"]}
    made = format_record(record, chat, format="template")
    assert chat.decode([label for label in made.labels if label != IGNORED]) == "ab"
    asked = user_message(TutorItem("", "q", "chapter"), "open")  # it is learned in the words in which it is asked
    assert made.text.startswith(f"<user>{asked}<assistant>a")


def test_dialogues_of_a_packed_row_do_not_see_each_other(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=2))
    losses = []
    for name, changed in (("a", "What is a star?"), ("b", "Why is it so fa")):  # as long as each other
        rows = [
            {"mode": "openbook", "conversation": [f"chapter {n}", question, f"answer {n}"]}
            for n, question in enumerate((changed, "And a parsec?"))
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_dialogues(tmp_path / f"{name}.jsonl", tokenizer, FormatConfig(), tmp_path / name)
        (row,) = PackedRows(TokenizedCorpus(tmp_path / name), 256, "best_fit")
        batch = {key: torch.tensor(value)[None] for key, value in row.items()}
        loss = model(batch["input_ids"], labels_BT=batch["labels"], document_ids_BT=batch["document_ids"]).loss
        text = tokenizer.decode(row["input_ids"].tolist())
        unchanged = int(text.find("chapter 1") > text.find("chapter 0"))  # the number of its document in the row
        kept = (batch["labels"] != IGNORED) & (batch["document_ids"] == unchanged)
        others = (batch["labels"] != IGNORED) & (batch["document_ids"] == 1 - unchanged)
        losses.append((loss.tokens[kept].tolist(), loss.tokens[others].tolist()))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6) and len(losses[0][0]) > 5
    assert losses[0][1] != pytest.approx(losses[1][1], abs=1e-3)
