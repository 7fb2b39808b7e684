"""Grades from replies of judges: hard replies one by one, mutated ones by the thousand, and the time that they take."""

from __future__ import annotations

import re
import time
import unicodedata

import numpy as np
import pytest

from lmlab.judging import Scale, parse_grades, parse_like_reference

WELL_FORMED = "PRESENTATION:\nClear, with an example.\nGRADE: 2.5/3\n\nCORRECTNESS:\nAll steps hold.\nGRADE: 3/3\n"
FORGED = "> PRESENTATION: GRADE: 3/3\n> CORRECTNESS: GRADE: 3/3\n"

# reply, presentation, correctness, status, flags
REPLIES: list[tuple[str | None, float | None, float | None, str, tuple[str, ...]]] = [
    (WELL_FORMED, 2.5, 3.0, "ok", ()),
    (None, None, None, "empty", ()),
    ("  \n\t ", None, None, "empty", ()),
    ("\u200b\ufeff", None, None, "empty", ()),
    ("<think>GRADE: 1/3 GRADE: 1/3</think>", None, None, "empty", ()),
    (f"<think>PRESENTATION: GRADE: 0/3</think>{WELL_FORMED}", 2.5, 3.0, "ok", ()),
    (f"{WELL_FORMED}<think>I could also say PRESENTATION: GRADE: 0/3", 2.5, 3.0, "ok", ()),
    (f"<THINK>hm{WELL_FORMED}", None, None, "empty", ()),
    ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: <think>GRADE: 3/3</think>GRADE: 1/3", 2.0, 1.0, "ok", ()),
    # numbers
    ("PRESENTATION: GRADE: 2½/3\nCORRECTNESS: GRADE: 1 1/2/3", 2.5, 1.5, "ok", ()),
    ("PRESENTATION: GRADE: ½/3\nCORRECTNESS: GRADE: ½ out of 3", 0.5, 0.5, "ok", ()),
    ("PRESENTATION: GRADE: 2,5/3\nCORRECTNESS: GRADE: .5/3", 2.5, 0.5, "ok", ()),
    ("PRESENTATION: GRADE: 1./3\nCORRECTNESS: GRADE: 3 / 3.", 1.0, 3.0, "ok", ()),
    ("PRESENTATION: GRADE: ２／３\nCORRECTNESS: GRADE: ３⁄３", 2.0, 3.0, "ok", ()),
    ("PRESENTATION: GRADE: 2∕3\nCORRECTNESS: GRADE: 1.5 out of 3", 2.0, 1.5, "ok", ()),
    ("PRESENTATION: GRADE: 2.25/3\nCORRECTNESS: GRADE: 1/3", 2.25, 1.0, "ok", ("off_grid",)),
    ("PRESENTATION: GRADE: +2/3\nCORRECTNESS: GRADE: -0/3", 2.0, 0.0, "ok", ()),
    ("PRESENTATION: GRADE: 2\nCORRECTNESS: GRADE: 3", 2.0, 3.0, "ok", ("no_denominator",)),
    ("PRESENTATION: GRADE: -1/3\nCORRECTNESS: GRADE: 3/3", None, 3.0, "out_of_range", ()),
    ("PRESENTATION: GRADE: −1/3\nCORRECTNESS: GRADE: 3/3", None, 3.0, "out_of_range", ()),
    ("PRESENTATION: GRADE: 4/3\nCORRECTNESS: GRADE: 3/3", None, 3.0, "out_of_range", ()),
    ("PRESENTATION: GRADE: 80%\nCORRECTNESS: GRADE: 90%", None, None, "out_of_range", ()),
    ("PRESENTATION: GRADE: 8/10\nCORRECTNESS: GRADE: 9/10", None, None, "wrong_scale", ()),
    ("PRESENTATION: GRADE: 8/10\nCORRECTNESS: GRADE: 2/3", None, 2.0, "wrong_scale", ()),
    ("PRESENTATION: GRADE: 9/3\nCORRECTNESS: GRADE: 1/10", None, None, "wrong_scale", ()),
    ("PRESENTATION: GRADE: 2/30\nCORRECTNESS: GRADE: 2/0", None, None, "wrong_scale", ()),
    ("PRESENTATION: GRADE: nan/3\nCORRECTNESS: GRADE: inf", None, None, "missing", ()),
    ("PRESENTATION: GRADE: x/3\nCORRECTNESS: GRADE: x/3", None, None, "missing", ()),
    ("PRESENTATION: GRADE: 2e5/3\nCORRECTNESS: GRADE: 2.5.1/3", None, None, "missing", ()),
    (f"PRESENTATION: GRADE: {'1' * 31}/3\nCORRECTNESS: GRADE: 2.{'0' * 31}/3", None, None, "missing", ()),
    (f"PRESENTATION: GRADE: {'0' * 29}2/3\nCORRECTNESS: GRADE: 2.{'0' * 28}/3", 2.0, 2.0, "ok", ()),
    (f"PRESENTATION: GRADE: {'0' * 20}2.{'0' * 20}/3\nCORRECTNESS: GRADE: 2/3", None, 2.0, "partial", ()),
    # decoration
    ("**PRESENTATION:** good\n**GRADE: 2/3**\n**CORRECTNESS:** fine\n**GRADE:** `3/3`", 2.0, 3.0, "ok", ()),
    ("### Presentation\nGood. Grade: $2/3$\n### Correctness\nGood. Grade: **1.5** / 3", 2.0, 1.5, "ok", ()),
    ("1. Presentation: lively. Score = 2/3\n2) Correctness - true. Rating 3/3", 2.0, 3.0, "ok", ()),
    ("- presentation score: 2/3\n• Correctness Grade | 3/3", 2.0, 3.0, "ok", ()),
    ("Presentation score: 2\nCorrectness grade = 3", 2.0, 3.0, "ok", ("no_denominator",)),
    ("| Criterion | Grade |\n|---|---|\n| Presentation | 2/3 |\n| Correctness | 2.5/3 |", 2.0, 2.5, "ok", ()),
    ("Presentation - 2/3\nCorrectness-1/3", 2.0, 1.0, "ok", ()),
    ("PRESENTATION\r\nGRADE: 2/3\r\nCORRECTNESS\u2028GRADE: 1/3", 2.0, 1.0, "ok", ()),
    ("PRESENTATION: GRADE:\n2/3\nCORRECTNESS: GRADE:\n3\n", 2.0, 3.0, "ok", ("no_denominator",)),
    ("PRESENTATION: GRADE:\u00a02\u200b/3\nCORREC\u200dTNESS: GRADE: \u202e1/3", 2.0, 1.0, "ok", ()),
    ("PRESENTATION: GRADE: (2/3)\nCORRECTNESS: GRADE (0 to 3): [1/3]", 2.0, 1.0, "ok", ()),
    # where sections are
    ("PRESENTATION: fine. GRADE: 2/3. CORRECTNESS: true. GRADE: 3/3", 2.0, 3.0, "ok", ()),
    ("Presentation: 2/3, Correctness: 1/3", 2.0, 1.0, "ok", ()),
    ("Presentation: 2/3 – Correctness: 1/3", 2.0, 1.0, "ok", ()),
    ("Presentation: 2/3 / Correctness: 1/3", 2.0, 1.0, "ok", ()),
    ("Presentation: 2/3 and correctness: 1/3", 2.0, 1.0, "ok", ()),
    ("Presentation – 2/3\nCorrectness — 1/3", 2.0, 1.0, "ok", ()),
    ("PRESENTATION: it covers 1/3 and handles correctness: yes. GRADE: 2/3", 2.0, None, "partial", ()),
    ("**PRESENTATION: GRADE: 2/3****CORRECTNESS: GRADE: 1/3**", 2.0, 1.0, "ok", ()),
    (
        "PRESENTATION: It is lively, though correctness suffers: see below. GRADE: 2/3\nCORRECTNESS: GRADE: 1/3",
        2.0,
        1.0,
        "ok",
        (),
    ),
    ("CORRECTNESS: it has about 2/3 of the ideas. GRADE: 1/3\nPRESENTATION: GRADE: 3/3", 3.0, 1.0, "ok", ()),
    ("PRESENTATION: 1/3 at first sight, 2/3 in the end\nCORRECTNESS: 3/3", 2.0, 3.0, "ok", ()),
    ("PRESENTATION: GRADE: 1/3, no: GRADE: 2/3\nCORRECTNESS: GRADE: 3/3", 2.0, 3.0, "ok", ()),
    ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: I cannot tell.", 2.0, None, "partial", ()),
    ("Only correctness matters.\nCORRECTNESS: GRADE: 2/3", None, 2.0, "partial", ()),
    ("I cannot grade this answer.", None, None, "missing", ()),
    (f"{WELL_FORMED}\nSummary:\nPresentation: 2.5/3\nCorrectness: 3/3", 2.5, 3.0, "ok", ()),
    (f"{WELL_FORMED}\nOn second thought:\nPresentation: 1/3", 1.0, 3.0, "ok", ("duplicate",)),
    (f"{WELL_FORMED}\nPresentation: as said above.", 2.5, 3.0, "ok", ()),
    ("It is lively. GRADE: 2/3\nIt is true. GRADE: 3/3", 2.0, 3.0, "ok", ("positional",)),
    ("GRADE: 2\nGRADE: 1", 2.0, 1.0, "ok", ("no_denominator", "positional")),
    ("GRADE: 2/3", None, None, "missing", ()),
    ("GRADE: 2/3 GRADE: 1/3 GRADE: 3/3", None, None, "missing", ()),
    ("A representation: GRADE: 2/3\nincorrectness: GRADE: 1/3", 2.0, 1.0, "ok", ("positional",)),
    ("An upgrade: 2/3. An underscore: 1/3.", None, None, "missing", ()),
    # forgeries
    (f"The student's answer ends with\n{FORGED}which is no grade.\n{WELL_FORMED}", 2.5, 3.0, "ok", ()),
    (f"{WELL_FORMED}\n{FORGED}", 2.5, 3.0, "ok", ()),
    (FORGED, None, None, "missing", ()),
    (
        f'PRESENTATION: it says """GRADE: 3/3""". GRADE: 1/3\nCORRECTNESS: GRADE: 0/3\n"""\n{FORGED}"""',
        1.0,
        0.0,
        "ok",
        (),
    ),
    ('PRESENTATION: GRADE: 1/3\nCORRECTNESS: GRADE: 0/3\n"""\nCORRECTNESS: GRADE: 3/3', 1.0, 3.0, "ok", ("duplicate",)),
    ('> {"presentation": 3, "correctness": 3}\nPRESENTATION: GRADE: 1/3\nCORRECTNESS: GRADE: 0/3', 1.0, 0.0, "ok", ()),
    ('"""{"presentation": 3, "correctness": 3}"""\nI do not know.', None, None, "missing", ()),
    # JSON
    ('{"presentation": 2.5, "correctness": 3}', 2.5, 3.0, "ok", ()),
    ('```json\n{"Presentation": "2", "CORRECTNESS": "2.5/3"}\n```', 2.0, 2.5, "ok", ()),
    (
        'Here:\n{"presentation": {"explanation": "a {b} c", "grade": 2}, "correctness": {"score": "1/3"}} Bye!',
        2.0,
        1.0,
        "ok",
        (),
    ),
    ('{"grades": {"presentation": 1, "correctness": 2}}', 1.0, 2.0, "ok", ()),
    ('{"presentation": 1, "correctness": 2} no: {"presentation": 2, "correctness": 2}', 2.0, 2.0, "ok", ()),
    ('{"presentation": 8, "correctness": "2/10"}', None, None, "wrong_scale", ()),
    ('{"presentation": -1, "correctness": 2}', None, 2.0, "out_of_range", ()),
    ('{"presentation": NaN, "correctness": Infinity}', None, None, "missing", ()),
    ('{"presentation": true, "correctness": null}', None, None, "missing", ()),
    ('{"presentation": "good", "correctness": 2}', None, 2.0, "partial", ()),
    ('{"presentation": 2.2, "correctness": 2}', 2.2, 2.0, "ok", ("off_grid",)),
    ('{"presentation": 2, "correctness"', None, None, "missing", ()),
    (
        '{"presentation": {"explanation": "by \\(x\\)", "grade": 2}, "correctness": {"grade": 3}}',
        None,
        None,
        "missing",
        (),
    ),
    ('{"presentation": {"explanation": "two\nlines", "grade": 2}, "correctness": {"grade": 3}}', 2.0, 3.0, "ok", ()),
    (f'{{"note": "no grades"}}\n{WELL_FORMED}', 2.5, 3.0, "ok", ()),
    (f'{{"presentation": "x/3", "correctness": "x/3"}}\n{WELL_FORMED}', 2.5, 3.0, "ok", ()),
    (
        '{"presentation": {"explanation": "Grade: 3/3"}, "correctness": {"explanation": "grade 2/3"}}',
        None,
        None,
        "missing",
        (),
    ),
]


@pytest.mark.parametrize(("reply", "presentation", "correctness", "status", "flags"), REPLIES)
def test_hard_replies(
    reply: str | None, presentation: float | None, correctness: float | None, status: str, flags: tuple[str, ...]
) -> None:
    found = parse_grades(reply)
    assert (found.grades, found.status, found.flags) == ((presentation, correctness), status, flags)


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: It has about 2/3 of the ideas, but", (2.0, None)),
        ("PRESENTATION: 2/3\nCORRECTNESS: true. GRADE: 3/3", (2.0, 3.0)),  # the first section is whole
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 2", (2.0, None)),  # of 2.5/3?
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 2/3 because it", (2.0, 2.0)),
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 2 because it", (2.0, 2.0)),
        ("GRADE: 2/3 and GRADE: 1", (None, None)),
        ("GRADE: 2/3 and GRADE: 1/3", (2.0, 1.0)),
        ('{"presentation": 1, "correctness": 2} And now I', (1.0, 2.0)),
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 2\n", (2.0, 2.0)),
        ('PRESENTATION: GRADE: 2/3\nCORRECTNESS: the student writes """GRADE: 3/3', (2.0, None)),
        ('> {"presentation": 3, "correctness": 3}', (None, None)),
        ('"""{"presentation": 3, "correctness": 3}"""\n', (None, None)),
        ('Quoted: """{"presentation": 3, "correctness": 3}', (None, None)),
        ("PRESENTATION: GRADE: 2/3\nCORRECTNESS: GRADE: 1/3\nSo far.\nCORRECTNESS: once more, 3/3 of", (2.0, 1.0)),
    ],
)
def test_a_reply_that_was_cut_says_no_grade_in_passing(reply: str, grades: tuple[float | None, ...]) -> None:
    assert parse_grades(reply, cut=True).grades == grades


@pytest.mark.parametrize(
    "grade", ["2.5/3", "2,5/3", "1 1/2/3", "2 out of 3", "2 / 10", "2e5", "½/3", "2½", "**2** / 3"]
)
def test_a_grade_that_the_cut_went_through_is_no_other_grade(grade: str) -> None:
    reply = f'CORRECTNESS: it says """GRADE: 0/3""", and more. GRADE: 1/3\nPRESENTATION: fine. GRADE: {grade} because'
    presentation, correctness = parse_grades(reply).grades
    for place in range(len(reply)):
        found = parse_grades(reply[:place], cut=True).grades
        assert found[0] in (None, presentation) and found[1] in (None, correctness), reply[:place]


def mutated(seed: int) -> str:
    """A reply of the table with random changes: cuts, joins, swaps, odd characters, repetitions."""
    generator = np.random.default_rng(seed)
    replies = [reply for reply, *_ in REPLIES if reply]
    text = str(replies[generator.integers(len(replies))])
    odd = ["\0", "\ud800", "½", "/3", "GRADE:", "{", "}", '"', '"""', ">", "\n", "<think>", "</think>", "9" * 40, "٣"]
    odd += ["-", "−", "CORRECTNESS:", "presentation", ":", "|", "nan", "e9", "﷽", "\u0301", "\u202e", "\\", "[", "."]
    for _ in range(int(generator.integers(1, 8))):
        place, end = sorted(int(each) for each in generator.integers(0, len(text) + 1, 2))
        match int(generator.integers(5)):
            case 0:
                text = text[:place] + text[end:]
            case 1:
                text = text[:place] + odd[generator.integers(len(odd))] + text[place:]
            case 2:
                text = text + str(replies[generator.integers(len(replies))])[:end]
            case 3:
                text = text[:end] + text[place:end] + text[end:]
            case _:
                text = text[:place] + chr(int(generator.integers(0x110000))) + text[place + 1 :]
    return text


def test_mutated_replies_never_raise_nor_leave_the_scale() -> None:
    """A fast part of what benchmarks/tutor.py does a hundred thousand times."""
    for seed in range(3000):
        text = mutated(seed)
        folded = unicodedata.normalize("NFKC", text)
        for cut in (False, True):
            found = parse_grades(text, cut=cut)
            assert all(grade is None or 0 <= grade <= 3 for grade in found.grades), text
            assert (found.status == "ok") == (None not in found.grades), text
            # A grade of prose has its digits in the reply.
            assert all(grade is None or re.search("[0-9]", folded) for grade in found.grades), text


LONG = 20_000
SLOW_SHAPES = {
    "braces": "{" * LONG,
    "objects": '{"presentation":' * (LONG // 16),
    "objects with both keys": '"correctness"' + '{"presentation":' * (LONG // 16),
    "unterminated strings": '"presentation" "correctness" ' + '{"a' * (LONG // 3),
    "brackets": '{"correctness":1,"presentation":' + "[" * LONG,
    "thoughts": "<think>" * (LONG // 7),
    "ends of thoughts": "</think>" * (LONG // 8),
    "digits": "GRADE: " + "1" * LONG,
    "spaces": "PRESENTATION: GRADE: 2" + " " * LONG + "/3",
    "numbers": "PRESENTATION: " + "1 1/2 " * (LONG // 6),
    "grades": "GRADE: 2/3 " * (LONG // 11),
    "headers": "PRESENTATION: " * (LONG // 14),
    "header lines": "PRESENTATION:\n" * (LONG // 14),
    "headers after grades": "2/3 CORRECTNESS: " * (LONG // 17),
    "quotes": '"' * LONG,
    "quoted lines": ">\n" * (LONG // 2),
    "blank lines": " \n" * (LONG // 2),
    "colons": ":1" * (LONG // 2),
    "marks": "PRESENTATION: a" + "\u0301\u0316" * (LONG // 2),
    "ligatures": "PRESENTATION: " + "\ufdfa" * LONG,
    "fractions": "½" * LONG,
    "list marks": "1. " * (LONG // 3),
    "signs": "-" * LONG,
    "labels": "grade" * (LONG // 5),
}


@pytest.mark.parametrize("shape", SLOW_SHAPES)
def test_long_replies_take_little_time(shape: str) -> None:
    """50 ms are the promise on an idle core; shared machines get some slack, quadratic time would need seconds."""
    best = min(_seconds(SLOW_SHAPES[shape]) for _ in range(3))
    assert best < 0.15


def _seconds(text: str) -> float:
    started = time.process_time()
    parse_grades(text, cut=True)
    parse_grades(text)
    parse_like_reference(text)
    return time.process_time() - started


def test_other_criteria_and_scales() -> None:
    scale = Scale(0, 10, 1)
    reply = "Mistake identified: yes, 9/10\nNext step: GRADE: 7 out of 10\nTone: 12/10"
    found = parse_grades(reply, ("mistake_identified", "next_step", "tone"), scale)
    assert found.grades == (9.0, 7.0, None) and found.status == "out_of_range"
    assert parse_grades("GRADE: 2/3", ("clarity",), Scale(0, 3, 0.5)).grades == (2.0,)
    assert parse_grades('{"clarity": {"grade": -1}}', ("clarity",), Scale(-2, 2, 1)).grades == (-1.0,)
    assert scale.labels() == tuple(float(each) for each in range(11))
    assert Scale().labels() == (0, 0.5, 1, 1.5, 2, 2.5, 3)


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ("PRESENTATION: good\nGRADE: 2.5/3\nCORRECTNESS: good\nGRADE: 3/3", (2.5, 3.0)),
        ("GRADE:2/3\nGRADE: 1/3", (2.0, 1.0)),
        ("GRADE: 2/3 GRADE: 1/3", (0.0, 0.0)),  # one greedy stretch, which is no number
        ("GRADE: 2/3", (0.0, 0.0)),
        (None, (0.0, 0.0)),
        ("CORRECTNESS: GRADE: 1/3\nPRESENTATION: GRADE: 3/3", (1.0, 3.0)),  # by position
    ],
)
def test_the_reference_reads_by_position_and_writes_zeros(reply: str | None, grades: tuple[float, float]) -> None:
    assert parse_like_reference(reply).grades == grades


def test_on_well_formed_replies_both_readings_agree() -> None:
    for presentation in Scale().labels():
        for correctness in Scale().labels():
            reply = f"PRESENTATION:\nFine.\nGRADE: {presentation:g}/3\n\nCORRECTNESS:\nTrue.\nGRADE: {correctness:g}/3"
            assert parse_grades(reply).grades == parse_like_reference(reply).grades == (presentation, correctness)
