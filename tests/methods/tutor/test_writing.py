"""Dialogues about chapters: by two models, by one, by rule; paid for once; and only those that pass the gates."""

from __future__ import annotations

import json
import shutil

import pytest

from lmlab.data import Tokenizer
from lmlab.data.chapters.chapter import Chapter
from lmlab.endpoints import BudgetExceeded, Endpoint, MockBackend, Price, Reply
from lmlab.errors import UserError
from lmlab.methods.tutor.config import ChatGenerateConfig
from lmlab.methods.tutor.dialogues.encode import format_record
from lmlab.methods.tutor.writing.definitions import definitions
from lmlab.methods.tutor.writing.gates import Gates
from lmlab.methods.tutor.writing.passages import FEWEST_WORDS, MOST_WORDS, questions
from lmlab.methods.tutor.writing.rule import rule_dialogue
from lmlab.methods.tutor.writing.write import write_about

FOREIGN = "weil das Weltall sehr viel Raum hat und Entfernungen dort gewaltig sind, wie man heute durch Messungen weiss"
SENTENCES = " ".join(
    f"{name} is a measure of how the light of stars of class {n} reaches a telescope on the ground."
    for n, name in enumerate(("Magnitude", "The parallax", "Luminosity", "A parsec", "Flux", "Precession"))
)
CHAPTER = (
    f"# Stars\n\n{SENTENCES}\n\nIt is not defined here what follows from that.\n\n"
    + "the star is far away and bright " * 30
)


@pytest.fixture
def books(tmp_path):
    for number in range(3):
        folder = tmp_path / "textbooks" / "phys" / f"book{number}"
        folder.mkdir(parents=True)
        (folder / "one.md").write_text(CHAPTER.replace("class", f"kind {number}"))
    return tmp_path / "textbooks"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def talk(request):
    """A backend's answer: it counts turns, and says the stop phrase as the student's third."""
    system = request.messages[0]["content"]
    turns = len(request.messages) - 1
    who = "student" if system.startswith("You are a student") else "teacher"
    end = " Bye. [END]" if who == "student" and turns >= 5 else ""
    return f"the {who} says of the star in turn {turns} that it is {hash_of(request)} far away and bright{end}"


def hash_of(request):
    import hashlib

    return hashlib.sha256(json.dumps(request.messages).encode()).hexdigest()[:6]


def write(books, out, backend, **settings):
    config = ChatGenerateConfig(min_words=50, **settings)
    endpoint = Endpoint(model="m", backend="mock", replies=out / "none")
    return write_about(str(books), config, endpoint, out, backends=(backend, None))


def test_two_models_alternate_with_roles_swapped_until_the_stop_phrase(books, tmp_path):
    seen = []

    def answer(request):
        seen.append(request.messages)
        return talk(request)

    account = write(books, tmp_path / "out", MockBackend(answer), kinds=("openbook", "closedbook"), num_turns=10)
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert (
        account.kept
        == {"openbook": 3, "closedbook": 3}
        == {mode: sum(row["mode"] == mode for row in rows) for mode in ("openbook", "closedbook")}
    )
    for row in rows:
        turns = row["conversation"][1:] if row["mode"] == "openbook" else row["conversation"]
        first, second = ("student", "teacher") if row["mode"] == "openbook" else ("teacher", "student")
        assert all((first if n % 2 == 0 else second) in turn for n, turn in enumerate(turns))
        assert turns[-1].startswith("the teacher") and row["stop_reason"] == "stop_phrase"
        assert row["num_turns"] == len(turns) and row["textbook_folder"].startswith("textbooks/phys/book")
        assert "[END]" not in row["processed_conversation"]
    for messages in seen:
        assert [m["role"] for m in messages] == [
            "system",
            *(("user", "assistant")[n % 2] for n in range(len(messages) - 1)),
        ]
        assert messages[-1]["role"] == "user"
    student = [m[0]["content"] for m in seen if m[0]["content"].startswith("You are a student")]
    assert any("The chapter:" in text for text in student) and not all("The chapter:" in text for text in student)


def test_a_second_run_asks_nothing_and_writes_the_same(books, tmp_path):
    calls = []

    def answer(request):
        calls.append(1)
        return talk(request)

    made = []
    for _ in range(2):
        write(books, tmp_path / "out", MockBackend(answer), num_turns=4)
        made.append([(tmp_path / "out" / name).read_bytes() for name in ("train.jsonl", "rows.jsonl", "generate.json")])
    assert len(calls) == 12 and made[0] == made[1]
    (tmp_path / "out" / "rows.jsonl").unlink()  # killed before the rows were written: replies are there
    write(books, tmp_path / "out", MockBackend(answer), num_turns=4)
    assert len(calls) == 12 and (tmp_path / "out" / "train.jsonl").read_bytes() == made[0][0]


def test_one_model_writes_whole_dialogues_and_bad_ones_are_dropped(books, tmp_path):
    def answer(request):
        text = request.messages[0]["content"]
        body = f"the star is far away {hash_of(request)} and bright"
        if "book0" in text or "kind 0" in text:
            return "I will not write anything of that form."
        if "exam" in text[:60]:
            return f"###QUESTION: what of {body}?\nANSWER: that {body} indeed###"
        if "a teacher, who begins and leads" in text:
            return f"###TEACHER: look, {body}\nSTUDENT: why is it that {body}?###"
        return f"###STUDENT: why is it that {body}?\nTEACHER: because {body}###"

    kinds = ("studentstart", "teacherstart", "generateexam")
    account = write(books, tmp_path / "out", MockBackend(answer), scheme="one_llm", kinds=kinds)
    assert account.kept == dict.fromkeys(kinds, 2) and account.dropped == {"role alternation": 3}
    tokenizer = Tokenizer.train([CHAPTER], 300)
    for row in rows_of(tmp_path / "out" / "train.jsonl"):
        assert sum(format_record(row, tokenizer).mask) > 0


def test_rules_quote_what_defines(books, tmp_path):
    found = dict(definitions(CHAPTER))
    assert set(found) == {"Magnitude", "the parallax", "Luminosity", "a parsec", "Flux", "Precession"}
    turns = rule_dialogue(Chapter("p", "t", CHAPTER), 0, 0, 4, "sentence")
    assert len(turns) == 4 and all(any(s in turns[n] for s in found.values()) for n in (1, 3))
    assert rule_dialogue(Chapter("p", "t", CHAPTER), 0, 9, 4, "sentence") is None
    config = ChatGenerateConfig(
        scheme="rule", rule_answers="sentence", min_words=50, num_turns=4, per_chapter=4, heldout_fraction=0.5
    )
    account = write_about(str(books), config, None, tmp_path / "out")
    assert sum(account.kept.values()) + sum(account.heldout.values()) == 9  # three a chapter, of two terms each
    paths = [
        {row["path_to_chapter"] for row in rows_of(tmp_path / "out" / f"{part}.jsonl")} for part in ("train", "heldout")
    ]
    assert paths[0].isdisjoint(paths[1])
    with pytest.raises(UserError, match="has no dialogues of the kind 'closedbook'"):
        write_about(str(books), config.model_copy(update={"kinds": ("closedbook",)}), None, tmp_path / "no")


BOOK = """# Seasons

The Ecliptic is the path of the Sun across the sky over the course of a year. It is inclined by 23.5 degrees. The points
where it crosses the Celestial Equator are known as the Equinoxes, and the Sun stands there twice a year.

## Why it is cold in winter

The days are short in winter because the Sun stays low in the sky at noon. It is above the horizon for less than twelve
hours, and its light reaches the ground at a flat angle. As a result, the ground stays cold.

To find the pole, switch to equatorial coordinates and hold down the key until the display stops. The bright star near
the center of the screen is Polaris, and the sky appears to rotate around it.

When a body has no air, it cools quickly at night. The Moon is an example of that, and its ground becomes colder than
any place on the Earth within a few hours.

Vega and Altair and Deneb stand high in summer evenings, and together these three bright stars form a triangle. Deneb
seems the faintest of the three, although it gives far more light than Vega: its distance is that great.

>>> print("code answers nothing, however long it is, and however many words of prose somebody has put into it here")
"""


def test_rules_ask_what_why_how_and_if_and_answer_with_whole_sentences():
    found = dict(questions(BOOK))
    answers = {
        "What is the Ecliptic?": ("The Ecliptic is the path", "twice a year."),
        "Why is it that the days are short in winter?": ("The days are short", "the ground stays cold."),
        "How can one find the pole?": ("To find the pole", "rotate around it."),
        "What happens if a body has no air?": ("When a body", "few hours."),
    }
    for question, (begins, ends) in answers.items():
        assert found[question].startswith(begins) and found[question].endswith(ends), question
    about = [answer for question, answer in found.items() if "deneb" in question]
    assert len(about) == 1 and about[0].startswith("Vega and Altair") and about[0].endswith("that great.")
    flat = " ".join(BOOK.split())
    for answer in found.values():  # nothing but what the chapter says, whole and in order
        assert answer in flat and answer[-1] == "." and FEWEST_WORDS <= len(answer.split()) <= MOST_WORDS
    assert len({answer[:40] for answer in found.values()}) == len(found)
    assert questions("") == questions("# Only a heading") == [] and questions("Too short.") == []


def test_all_of_a_long_chapter_is_asked_about_and_held_out_as_one(tmp_path):
    folder = tmp_path / "textbooks" / "phys" / "book"
    folder.mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.md").write_text(BOOK.replace("Sun", f"Sun{number}"))
    made = {}
    for long_chapters in ("cut", "split"):
        config = ChatGenerateConfig(
            scheme="rule", long_chapters=long_chapters, max_words=100, min_words=30, num_turns=2, heldout_fraction=0.5
        )
        account = write_about(str(tmp_path / "textbooks"), config, None, tmp_path / long_chapters)
        made[long_chapters] = [rows_of(tmp_path / long_chapters / f"{part}.jsonl") for part in ("train", "heldout")]
        assert account.chapters == 6
    first, all_of_it = ([row["conversation"] for part in made[each] for row in part] for each in ("cut", "split"))
    assert len(all_of_it) > len(first) > 0 and all(len(each[0].split()) <= 100 for each in all_of_it)
    assert not any("Vega" in each[0] for each in first) and any("Vega" in each[0] for each in all_of_it)
    assert all(each[2] in " ".join(each[0].split()) for each in all_of_it)  # its part holds the answer
    train, heldout = ({row["path_to_chapter"] for row in part} for part in made["split"])
    assert train and heldout and train.isdisjoint(heldout)


@pytest.mark.parametrize(
    ("turns", "gate"),
    [
        (["why is the star so far away", "As an AI language model, I cannot look at the star"], "refusal"),
        (["why is the star so far away", "it is far away and bright " * 80], "repetition"),
        (["why is the star so far away", "so"], "length"),
        (["warum ist dieser Stern so weit entfernt", FOREIGN], "language"),
        (["why is the star so far away", "the star is far"], None),
    ],
)  # fmt: skip
def test_gates(turns, gate):
    found = Gates(ChatGenerateConfig()).reason("openbook", turns, CHAPTER)
    assert (found or "").partition(":")[0] == (gate or "")


def test_questions_of_an_evaluation_and_repeats_are_dropped(tmp_path):
    asked = "how many stars does one see with the naked eye in a clear dark night far from cities"
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": asked, "chapter": "c"}) + "\n")
    gates = Gates(ChatGenerateConfig(decontaminate=(str(tmp_path / "eval.jsonl"),)))
    turns = ["please tell me the star story", "the star is far away and bright to the eye"]
    assert gates.reason("openbook", [asked, turns[1]], CHAPTER).startswith("decontamination")
    assert gates.reason("openbook", turns, CHAPTER) is None
    assert gates.reason("openbook", turns, CHAPTER) == "near-duplicate: of dialogue 0"


def test_a_ceiling_stops_before_it_is_passed_and_what_was_paid_is_kept(books, tmp_path):
    config = ChatGenerateConfig(min_words=50, num_turns=2)
    price = Price(prompt=1.0, completion=1.0)
    endpoint = Endpoint(
        model="m", backend="mock", replies=tmp_path / "x", price=price, max_cost_usd=0.004, concurrency=1
    )
    calls = []

    def answer(request):
        calls.append(1)
        return talk(request)

    with pytest.raises(BudgetExceeded):
        write_about(str(books), config, endpoint, tmp_path / "out", backends=(MockBackend(answer), None))
    paid = len(calls)
    more = endpoint.model_copy(update={"max_cost_usd": 1.0})
    write_about(str(books), config, more, tmp_path / "out", backends=(MockBackend(answer), None))
    assert 0 < paid < 6 == len(calls)


def test_what_is_private_is_not_sent_to_who_writes(books, tmp_path):
    seen = []

    def answer(request):
        seen.append(json.dumps(request.messages))
        return talk(request)

    config = ChatGenerateConfig(min_words=50, num_turns=2)
    endpoint = Endpoint(model="m", backend="mock", replies=tmp_path / "none")
    backends = (MockBackend(answer), None)
    write_about(str(books), config, endpoint, tmp_path / "out", backends=backends, redact=("kind [0-9]",))
    assert seen and all("[redacted]" in each and "kind 0" not in each for each in seen)


def test_a_dialogue_that_an_endpoint_failed_is_written_by_the_next_run(books, tmp_path):
    down = [True]

    def answer(request):
        if down[0] and "kind 1" in request.messages[0]["content"]:
            return Reply("failed", error="the endpoint is down")
        return talk(request)

    write(books, tmp_path / "out", MockBackend(answer), num_turns=2)
    assert len(rows_of(tmp_path / "out" / "train.jsonl")) == 2
    down[0] = False
    write(books, tmp_path / "out", MockBackend(answer), num_turns=2)
    assert len(rows_of(tmp_path / "out" / "train.jsonl")) == 3


def test_a_run_that_was_killed_tells_the_same_costs_as_one_that_was_not(books, tmp_path):
    """What was paid before the kill is in the cache, and was paid all the same."""
    config = ChatGenerateConfig(min_words=50, num_turns=2)
    endpoint = Endpoint(model="m", backend="mock", replies=tmp_path / "none", price=Price(prompt=1.0, completion=1.0))
    calls = []

    def answer(request):
        calls.append(1)
        return talk(request)

    def run(place):
        account = write_about(str(books), config, endpoint, place, backends=(MockBackend(answer), None))
        return account.cost_usd, (place / "train.jsonl").read_bytes()

    whole = run(tmp_path / "out")
    assert whole[0] > 0 and len(calls) == 6
    for path in (tmp_path / "out").glob("*.json*"):
        path.unlink()  # the rows of dialogues under way are lost by a kill, the cache is not
    assert run(tmp_path / "out") == whole and len(calls) == 6


def test_what_is_written_and_held_out_does_not_depend_on_where_the_books_lie(books, tmp_path, monkeypatch):
    config = ChatGenerateConfig(scheme="rule", min_words=50, num_turns=4, per_chapter=4, heldout_fraction=0.5)
    moved = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(books, moved)
    write_about(str(books), config, None, tmp_path / "one")
    write_about(str(moved), config, None, tmp_path / "two")
    monkeypatch.chdir(moved)
    write_about(".", config, None, tmp_path / "three")
    for part in ("train", "heldout"):
        one, two, three = (rows_of(tmp_path / each / f"{part}.jsonl") for each in ("one", "two", "three"))
        assert one and one == two == three


def test_a_term_has_letters() -> None:
    for term in ("**", "``", "`*`"):
        assert definitions(f"{term} is the product of two numbers, which is written between them here.") == []
