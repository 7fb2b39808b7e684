"""Tasks made for any tokenizer: pairs of prompts of equal length, with answers that are single tokens.

`ioi`: indirect object identification (Wang et al. 2023). `greater-than` (Hanna et al. 2023). `pronouns`: gendered
pronouns (Mathwin et al. 2023). `boolean`: the value of an expression, with solved expressions before it as examples in
context. `induction`: [A B ... A] -> B over random tokens. `mcqa`, `addition`, `subtraction`: a color among four
choices, and sums and differences, as in the Mechanistic Interpretability Benchmark (Mueller et al. 2025).

Splits are disjoint by construction, whatever the seeds: templates, predicates or years belong to one split each, and
where there are none of these a hash of the prompt says to which split it belongs.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError, did_you_mean
from lmlab.methods.edge_pruning.examples.words import (
    COLORS,
    EVENTS,
    HABITS,
    HELD_OUT_TEMPLATES,
    IOI_TEMPLATES,
    MEN,
    OBJECTS,
    PLACES,
    SPANS,
    THINGS,
    WOMEN,
)
from lmlab.methods.edge_pruning.examples.years import year_forms

Row = dict[str, Any]
Make = Callable[[], Row | None]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_SHARES = {"train": range(5), "validation": range(5, 7), "test": range(7, 10)}  # of ten values of a hash
_TRIES = 2000  # draws for each example that is asked for, most of which may be repeats or of another split
_STALE = 20_000  # draws in a row without a new example: there are hardly any more


def generate(
    name: str, tokenizer: Tokenizer, count: int, seed: int = 0, split: str = "train", shots: int = 3
) -> list[Row]:
    """Make different examples of a task.

    Arguments:
        name: one of `TASKS`.
        split: `train`, `validation` or `test`; no prompt of one split, clean or corrupted, is ever in another.
        shots: of `boolean`: solved expressions before the one that is asked for.

    Returns:
        rows for JSON lines: `clean`, `corrupted`, `answer`, `distractor`, `split`, where the choice is narrow
        `answer_set`, and where several answers are right `answers` and `distractors`. An answer is a text, or the
        number of its token where the text by itself would become other tokens than after the prompt.

    Raises:
        UserError: the task or the split is not known, or the tokenizer cannot express so many examples with
            single-token answers.
    """
    if name not in TASKS:
        raise UserError(f"There is no task '{name}'. {did_you_mean(name, TASKS)}")
    if split not in SPLITS:
        raise UserError(
            f"There is no split '{split}'. {did_you_mean(split, SPLITS)}", f"Splits are {', '.join(SPLITS)}."
        )
    draws = random.Random(f"{name} {split} {seed}")
    make = TASKS[name](tokenizer, draws, split, shots)
    rows: list[Row] = []
    seen: set[str] = set()
    stale = 0
    for _ in range(_TRIES * count):
        row = make()
        stale += 1
        if stale > _STALE:
            break
        if row is None or str(row["clean"]) in seen or not _in_split(row, split):
            continue
        if len(_encode(tokenizer, row["clean"])) != len(_encode(tokenizer, row["corrupted"])):
            continue
        found = _spelled(tokenizer, row)
        if found is None or (rows and found.get("answer_set") != rows[0].get("answer_set")):
            continue
        seen.add(str(row["clean"]))
        stale = 0
        rows.append({**found, "split": split})
        if len(rows) == count:
            return rows
    raise UserError(
        f"Only {len(rows)} different examples of '{name}' ({split}) could be made of {count}: with this tokenizer no"
        " more pairs have equal length and answers of one token.",
        "Ask for fewer, or take another tokenizer.",
    )


def side_of(text: str) -> str:
    """The split that a prompt belongs to, by its hash alone."""
    number = hashlib.sha256(text.encode()).digest()[0] % 10
    return next(split for split, share in _SHARES.items() if number in share)


def _in_split(row: Row, split: str) -> bool:
    return all(side_of(key) == split for key in row.get("keys", ()))


def _encode(tokenizer: Tokenizer, text: str | list[int]) -> list[int]:
    return tokenizer.encode(text) if isinstance(text, str) else text


def continuation(tokenizer: Tokenizer, prompt: str, text: str) -> int | None:
    """The one token that a text becomes after a prompt; None if it is several, or the prompt's own tokens change."""
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    return whole[-1] if len(whole) == len(before) + 1 and whole[:-1] == before else None


def _spelled(tokenizer: Tokenizer, row: Row) -> Row | None:
    """The row as it is written: every answer checked after its prompt, or nothing if one is not a single token."""
    found = {key: value for key, value in row.items() if key != "keys"}
    if not isinstance(row["clean"], str):
        return found

    def spell(value: str | int) -> str | int | None:
        number = continuation(tokenizer, row["clean"], value) if isinstance(value, str) else value
        return value if isinstance(value, str) and tokenizer.encode(value) == [number] else number

    for key in ("answer", "distractor"):
        found[key] = spell(row[key])
    for key in ("answer_set", "answers", "distractors"):
        if key in row:
            found[key] = [spell(each) for each in row[key]]
            if None in found[key] or len(set(found[key])) < len(found[key]):
                return None
    return None if None in (found["answer"], found["distractor"]) or found["answer"] == found["distractor"] else found


def _spans(text: str, marks: Mapping[str, tuple[int, str]]) -> dict[str, list[int]]:
    """The characters [start, end) of parts of a prompt by name, and of its end: the last word or space."""
    found = {name: [start, start + len(part)] for name, (start, part) in marks.items()}
    return {**found, "end": [min(text.rfind(" ") + 1, len(text) - 1), len(text)]}


def _single(tokenizer: Tokenizer, words: Sequence[str], least: int, what: str) -> list[str]:
    """Those of the words that are one token after another word."""
    found = [word for word in words if continuation(tokenizer, "to", f" {word}") is not None]
    if len(found) < least:
        raise UserError(
            f"This tokenizer has {len(found)} of the {what} as single tokens; the task needs {least}.",
            "Take a tokenizer of a larger model.",
        )
    return found


def _ioi(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    names = _single(tokenizer, [*WOMEN, *MEN], 5, "names")
    numbers = range(len(IOI_TEMPLATES))
    usable = list(numbers)[-HELD_OUT_TEMPLATES:] if split == "test" else list(numbers)[:-HELD_OUT_TEMPLATES]

    def make() -> Row | None:
        number = draws.choice(usable)
        template = (
            IOI_TEMPLATES[number].replace("{PLACE}", draws.choice(PLACES)).replace("{OBJECT}", draws.choice(OBJECTS))
        )
        if draws.random() < 0.5:
            template = template.replace("{B}", "{X}", 1).replace("{A}", "{B}", 1).replace("{X}", "{A}", 1)
        a, b, *others = draws.sample(names, 5)
        new = iter(others)
        corrupted = re.sub(r"\{[AB]\}", lambda match: next(new), template)
        clean = template.replace("{A}", a).replace("{B}", b)
        places = [[match.start() for match in re.finditer(rf"\b{name}\b", clean)] for name in (a, b)]
        marks = {"object": (places[0][0], a), "subject": (places[1][0], b), "subject_again": (places[1][1], b)}
        # train and validation share templates, and are told apart by the prompts
        sides = {side_of(text) == "validation" for text in (clean, corrupted)}
        if split != "test" and sides != {split == "validation"}:
            return None
        answers = {"answer": f" {a}", "distractor": f" {b}", "template": number}
        return {"clean": clean, "corrupted": corrupted, **answers, "spans": _spans(clean, marks)}

    return make


def _greater_than(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    form, offset = year_forms(tokenizer), SPLITS.index(split)

    def make() -> Row | None:
        start = f"The {draws.choice(EVENTS)} {draws.choice(SPANS)} the year "
        # years of the splits are disjoint, those of corrupted prompts too
        (century, year), (other, other_year) = (
            (draws.randint(11, 20), draws.choice(range(offset, 99, 3))) for _ in range(2)
        )
        if (century, year) == (other, other_year):
            return None
        row = form.row(start, century, year, other, other_year)
        if row is None:
            return None
        written = f"{century}{year:02d}"
        row["spans"] = _spans(row["clean"], {"year": (row["clean"].index(written), written)})
        return row

    return make


def _pronouns(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    def make() -> Row:
        # a name is not an answer, so it may have several tokens, as many as the other
        habit, woman = draws.choice(HABITS[split]), draws.random() < 0.5
        her, him = draws.choice(WOMEN), draws.choice(MEN)
        name, other, answer, distractor = (her, him, " she", " he") if woman else (him, her, " he", " she")
        return {
            "clean": f"So {name} {habit}",
            "corrupted": f"So {other} {habit}",
            "answer": answer,
            "distractor": distractor,
            "spans": _spans(f"So {name} {habit}", {"name": (3, name)}),
        }

    _require(tokenizer, "So Mary is great, isn't", (" she", " he"))
    return make


def _require(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> None:
    for answer in answers:
        if continuation(tokenizer, prompt, answer) is None:
            raise UserError(
                f"After '{prompt}' this tokenizer has no single tokens for '{answer}', which the task needs.",
                "Take a tokenizer of a larger model.",
            )


def _boolean(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    _require(tokenizer, "True and False is", (" True", " False"))

    def shape() -> str:
        """An expression with {} in the place of literals; of depth 3 at most."""
        parts = [f"{'not ' * draws.choice((0, 0, 1))}{{}}" for _ in range(draws.randint(1, 5))]
        while len(parts) > 1:
            place = draws.randrange(len(parts) - 1)
            joined = f"{parts[place]} {draws.choice(('and', 'or'))} {parts[place + 1]}"
            parts[place : place + 2] = [f"( {joined} )" if len(parts) > 2 and joined.count("(") < 2 else joined]
        return parts[0]

    def expression(like: str = "", value: bool | None = None) -> str:
        """One of this split, so that no expression that is asked for or solved in one split is in another."""
        for _ in range(_STALE):
            form = like or shape()
            found = form.format(*(draws.choice(("True", "False")) for _ in range(form.count("{}"))))
            if side_of(found) == split and value in (None, value_of(found)):
                return found
            if like and draws.random() < 0.02:  # after 50 draws on average; a form may have no such value in this split
                return ""
        raise AssertionError("every split has expressions")

    def make() -> Row | None:
        lines = "".join(f"{each} is {value_of(each)}\n" for each in (expression() for _ in range(shots)))
        first = expression()
        # of the same form, so that both have as many tokens
        second = expression(re.sub("True|False", "{}", first), not value_of(first))
        if not second:
            return None
        return {
            "clean": f"{lines}{first} is",
            "corrupted": f"{lines}{second} is",
            "answer": f" {value_of(first)}",
            "distractor": f" {value_of(second)}",
            "answer_set": [" True", " False"],
        }

    return make


def value_of(expression: str) -> bool:
    """The value of a Boolean expression of True, False, not, and, or, and brackets, by Python's precedence."""
    words = expression.replace("(", " ( ").replace(")", " ) ").split()

    def either() -> bool:
        value = both()
        while words and words[0] == "or":
            words.pop(0)
            value = both() or value
        return value

    def both() -> bool:
        value = one()
        while words and words[0] == "and":
            words.pop(0)
            value = one() and value
        return value

    def one() -> bool:
        word = words.pop(0)
        if word == "not":
            return not one()
        if word == "(":
            value = either()
            words.pop(0)
            return value
        return word == "True"

    return either()


def _induction(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    specials = {tokenizer.backend.token_to_id(token) for token in tokenizer.special_tokens}
    ids = [number for number in range(tokenizer.vocab_size) if number not in specials]

    def make() -> Row:
        row = induction_row(ids, draws)
        return {**row, "keys": tuple(f"induction {row[key]}" for key in ("clean", "corrupted"))}

    return make


def induction_row(ids: Sequence[int], draws: random.Random, length: int = 12) -> Row:
    """[...

    A B ... A] -> B over random tokens; corrupted, the first A is another token. The distractor is some other token of
    the text.
    """
    *text, other = draws.sample(list(ids), length)
    place = draws.randrange(1, length - 3)
    clean, corrupted = [*text, text[place]], [*text, text[place]]
    corrupted[place] = other
    return {"clean": clean, "corrupted": corrupted, "answer": text[place + 1], "distractor": text[place - 1]}


def _mcqa(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
    letters = [f" {letter}" for letter in "ABCD"]
    _require(tokenizer, "Answer:", letters)

    def make() -> Row:
        thing, choices, (right, wrong) = draws.choice(THINGS), draws.sample(COLORS, 4), draws.sample(range(4), 2)
        swapped = list(choices)
        swapped[right], swapped[wrong] = choices[wrong], choices[right]
        clean, corrupted = (
            f"A {thing} is {choices[right]}. What color is a {thing}?\n"
            + "".join(f"{letter.strip()}. {color}\n" for letter, color in zip(letters, colors, strict=True))
            + "Answer:"
            for colors in (choices, swapped)
        )
        keys = tuple(f"mcqa {text}" for text in (clean, corrupted))
        answers = {"answer": letters[right], "distractor": letters[wrong], "answer_set": letters}
        return {"clean": clean, "corrupted": corrupted, **answers, "keys": keys}

    return make


def _arithmetic(sign: int) -> Callable[[Tokenizer, random.Random, str, int], Make]:
    words = ("sum of {} and {}", "difference between {} and {}")[sign < 0]

    def begin(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Make:
        # one token for the result after "is", or after the space, or else its first digit
        tail, digits = next(
            (
                (tail, digits)
                for tail, digits in (("", 2), (" ", 2), (" ", 1), ("", 1))
                if all(
                    # any two numbers, to see how what follows is cut
                    continuation(tokenizer, f"The {words.format(57, 38)} is{tail}", text) is not None
                    for text in ([f"{' ' * (not tail)}{n}" for n in (range(10, 100) if digits == 2 else range(1, 10))])
                )
            ),
            (None, 0),
        )
        if tail is None:
            raise UserError(
                "This tokenizer has neither numbers of two digits nor digits as single tokens, which arithmetic needs."
            )

        def make() -> Row | None:
            (a, b), (c, d) = ((draws.randint(11, 88), draws.randint(11, 88)) for _ in range(2))
            results = [x + sign * y for x, y in ((a, b), (c, d))]
            if not all(10 <= each <= 99 for each in results):
                return None
            answer, distractor = (f"{' ' * (not tail)}{str(each)[:digits]}" for each in results)
            clean, corrupted = (f"The {words.format(x, y)} is{tail}" for x, y in ((a, b), (c, d)))
            keys = tuple(f"arithmetic {text}" for text in (clean, corrupted))
            return {
                "clean": clean,
                "corrupted": corrupted,
                "answer": answer,
                "distractor": distractor,
                "operands": [a, b],
                "keys": keys,
            }

        return make

    return begin


TASKS: dict[str, Callable[[Tokenizer, random.Random, str, int], Make]] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "pronouns": _pronouns,
    "boolean": _boolean,
    "induction": _induction,
    "mcqa": _mcqa,
    "addition": _arithmetic(1),
    "subtraction": _arithmetic(-1),
}
"""Names of tasks and what makes them."""
